// What RocksDB's files get: syncs only where they are of use, and tables through the page cache.
#include "storage/ssd_file_system.h"

#include <gtest/gtest.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "storage/ssd_store.h"
#include "tests/storage/ssd_directory.h"
#include "tests/storage/ssd_values.h"

namespace moonpool::storage {
namespace {

class CountingDisk : public rocksdb::FileSystemWrapper {
 public:
  using IOStatus = rocksdb::IOStatus;
  CountingDisk() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "CountingDisk"; }

  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* result,
                           rocksdb::IODebugContext* context) override {
    Note(name, options.use_direct_writes);
    IOStatus status = FileSystemWrapper::NewWritableFile(name, options, result, context);
    if (status.ok()) *result = std::make_unique<File>(std::move(*result), &syncs);
    return status;
  }
  IOStatus NewRandomAccessFile(const std::string& name, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                               rocksdb::IODebugContext* context) override {
    Note(name, options.use_direct_reads);
    return FileSystemWrapper::NewRandomAccessFile(name, options, result, context);
  }
  // How many files with that ending were opened for direct I/O, or not.
  int Opened(const std::string& ending, bool direct) {
    const std::lock_guard lock(mu_);
    return opened_[{ending, direct}];
  }
  std::atomic<int> syncs{0};

 private:
  class File : public rocksdb::FSWritableFileOwnerWrapper {
   public:
    File(std::unique_ptr<rocksdb::FSWritableFile>&& file, std::atomic<int>* syncs)
        : FSWritableFileOwnerWrapper(std::move(file)), syncs_(syncs) {}
    IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
      syncs_->fetch_add(1);
      return FSWritableFileOwnerWrapper::Sync(options, context);
    }
    IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
      syncs_->fetch_add(1);
      return FSWritableFileOwnerWrapper::Fsync(options, context);
    }

   private:
    std::atomic<int>* const syncs_;
  };
  void Note(const std::string& name, bool direct) {
    const std::lock_guard lock(mu_);
    if (name.find("/payload/") == std::string::npos) return;
    ++opened_[{name.substr(name.rfind('.') + 1), direct}];
  }

  std::mutex mu_;
  std::map<std::pair<std::string, bool>, int> opened_;
};

// Writes and reads some values; returns how many times something was synced.
int SyncsOf(bool sync, const std::shared_ptr<CountingDisk>& disk) {
  const SsdDirectory directory;
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(disk);
  SsdOptions options = SmallSsd(directory.path());
  options.env = env.get();
  options.sync = sync;
  auto store = SsdStore::Open(options);
  EXPECT_TRUE(store) << store.error().message;
  EXPECT_TRUE((*store)->Recover(
      1, [](const SsdRecord&) {}, [](std::string_view, int64_t, std::string_view) {}));
  std::vector<SsdRecord> records;
  for (int i = 0; i < 40; ++i) {
    SsdRecord record{(*store)->NextId(), "k" + std::to_string(i), 200'000, 0, options.chunk_bytes};
    EXPECT_TRUE((*store)->WritePayload(record.id, SsdValue(record.id, record.length)));
    SsdChange change;
    change.Put(record);
    EXPECT_TRUE((*store)->Apply(change));
    records.push_back(record);
  }
  EXPECT_TRUE((*store)->FlushPayload());
  const int syncs = disk->syncs;
  std::string chunk(options.chunk_bytes, '\0');
  for (const SsdRecord& record : records) {
    EXPECT_TRUE((*store)->ReadChunk(record, 0, chunk));
    EXPECT_EQ(chunk, SsdValue(record.id, record.length).substr(0, chunk.size()));
  }
  EXPECT_TRUE((*store)->MarkClean({}));
  return syncs;
}

TEST(SsdFileSystemTest, NothingIsSyncedButWithSync) {
  EXPECT_EQ(SyncsOf(false, std::make_shared<CountingDisk>()), 0);
  // Of the log of changes with each, of a table and a blob file with each flush.
  EXPECT_GT(SyncsOf(true, std::make_shared<CountingDisk>()), 40);
}

TEST(SsdFileSystemTest, TablesPassThroughThePageCacheAndPayloadDoesNot) {
  for (const bool sync : {false, true}) {
    const auto disk = std::make_shared<CountingDisk>();
    SyncsOf(sync, disk);
    EXPECT_GT(disk->Opened("sst", false), 0);
    EXPECT_EQ(disk->Opened("sst", true), 0);
    EXPECT_GT(disk->Opened("blob", true), 0);
    EXPECT_EQ(disk->Opened("blob", false), 0);
  }
}

}  // namespace
}  // namespace moonpool::storage
