// Disks that are full, that fail, and that changed what was written.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "storage/ssd_store.h"
#include "tests/storage/ssd_directory.h"
#include "tests/storage/tier_disk.h"

namespace moonpool::storage {
namespace {

// A store on a disk that fails on demand.
struct FaultyStore {
  const SsdDirectory directory;
  const std::shared_ptr<TierDisk> disk = std::make_shared<TierDisk>();
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(disk);
  const SsdOptions options = [this] {
    SsdOptions on_disk = SmallSsd(directory);
    on_disk.env = env.get();
    return on_disk;
  }();
  OpenSsd store{options};
};

void WritesFailAndRecover(Fault fault, ErrorCode expected) {
  const SsdDirectory directory;
  const auto disk = std::make_shared<TierDisk>();
  const std::unique_ptr<rocksdb::Env> env = rocksdb::NewCompositeEnv(disk);
  SsdOptions options = SmallSsd(directory);
  options.env = env.get();
  std::vector<SsdRecord> records;
  SsdRecord erased;
  {
    OpenSsd store(options);
    for (int i = 0; i < 30; ++i) {
      records.push_back(PutVersion(*store.store, options, "k", 200000));
    }
    erased = PutVersion(*store.store, options, "erased", 200000);
    ASSERT_TRUE(store->FlushPayload());
    EXPECT_TRUE(store->Health());

    disk->payload.writes = fault;
    disk->index.writes = fault;
    Status failed;
    for (int i = 0; i < 200 && failed; ++i) {
      const uint64_t id = store->NextId();
      failed = store->WritePayload(id, SsdValue(id, 200000));
      if (failed) store->DropPayload(id, 200000, options.chunk_bytes);
    }
    ASSERT_FALSE(failed) << "everything was written to a disk that takes nothing";
    EXPECT_EQ(failed.error().code, expected) << failed.error().message;
    const Status not_erased = EraseVersion(*store.store, erased);
    ASSERT_FALSE(not_erased);
    EXPECT_EQ(not_erased.error().code, expected) << not_erased.error().message;
    const Status health = store->Health();
    ASSERT_FALSE(health);
    EXPECT_EQ(health.error().code, expected);
    EXPECT_FALSE(store->Resume());
    for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
    store->CollectGarbage();

    disk->payload.writes = Fault::kNone;
    disk->index.writes = Fault::kNone;
    EXPECT_TRUE(Eventually([&] { return store->Resume().has_value(); }));
    EXPECT_TRUE(store->Health());
    EXPECT_TRUE(EraseVersion(*store.store, erased));
    for (int i = 0; i < 30; ++i) {
      records.push_back(PutVersion(*store.store, options, "k", 200000));
    }
    CollectAll(*store.store);
    const Status flushed = store->FlushPayload();
    EXPECT_TRUE(flushed) << flushed.error().message;
    for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
  }
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.versions, records.size());
  EXPECT_EQ(store.found.count(erased.id), 0u);
  for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
}

TEST(SsdFaultsTest, AFullDiskIsToldAndRecoveredFrom) {
  WritesFailAndRecover(Fault::kFull, ErrorCode::kNoSpace);
}

TEST(SsdFaultsTest, WriteErrorsAreToldAndRecoveredFrom) {
  WritesFailAndRecover(Fault::kError, ErrorCode::kSystem);
}

// Takes every thread that flushes, until it is destroyed.
class NoFlushes {
 public:
  explicit NoFlushes(rocksdb::Env* env) {
    const int threads = env->GetBackgroundThreads(rocksdb::Env::Priority::HIGH);
    for (int i = 0; i < threads; ++i) env->Schedule(&Hold, this, rocksdb::Env::Priority::HIGH);
    EXPECT_TRUE(Eventually([&] { return held_ == threads; }));
  }
  ~NoFlushes() {
    end_ = true;
    EXPECT_TRUE(Eventually([&] { return held_ == 0; }));
  }

 private:
  static void Hold(void* self) {
    auto& no = *static_cast<NoFlushes*>(self);
    no.held_.fetch_add(1);
    while (!no.end_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    no.held_.fetch_sub(1);
  }

  std::atomic<int> held_{0};
  std::atomic<bool> end_{false};
};

TEST(SsdFaultsTest, AnErrorDoesNotOvertakeAFlush) {
  FaultyStore rig;
  const SsdOptions& options = rig.options;
  TierDisk* const disk = rig.disk.get();
  OpenSsd& store = rig.store;

  auto no_flushes = std::make_unique<NoFlushes>(rig.env.get());
  SsdChange change;
  // The index fills its memtable once, whose flush waits for a thread.
  for (int i = 0; i < 1500; ++i) {
    const uint64_t id = store->NextId();
    change.Put({id, std::string(4096, 'k') + std::to_string(id), 1000, 0, options.chunk_bytes});
    if (i % 100 != 99) continue;
    const Status applied = store->Apply(change);
    ASSERT_TRUE(applied) << applied.error().message;
    change.Clear();
  }
  disk->index.writes = Fault::kFull;
  change.Put({store->NextId(), "refused", 1000, 0, options.chunk_bytes});
  std::thread refused([&] { EXPECT_FALSE(store->Apply(change)); });
  EXPECT_TRUE(Eventually([&] { return disk->index.refused > 0; }));
  no_flushes.reset();
  refused.join();
  EXPECT_FALSE(store->Health());

  disk->index.writes = Fault::kNone;
  std::atomic<bool> resumed{false};
  std::thread resuming([&] { resumed = Eventually([&] { return store->Resume().has_value(); }); });
  EXPECT_TRUE(Eventually([&] { return resumed.load(); }));
  if (!resumed) store->GiveUpResuming();
  resuming.join();
  ASSERT_TRUE(resumed) << "nobody flushes what Resume() waits for";
  EXPECT_TRUE(store->Health());
  EXPECT_TRUE(store->Apply(change));
}

TEST(SsdFaultsTest, ReadErrorsAreErrorsOfOneRead) {
  FaultyStore rig;
  const SsdOptions& options = rig.options;
  TierDisk* const disk = rig.disk.get();
  OpenSsd& store = rig.store;
  const SsdRecord record = PutVersion(*store.store, options, "k", 200000);
  ASSERT_TRUE(store->FlushPayload());
  disk->payload.reads_fail = true;
  const auto read = ReadVersion(*store.store, record);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kSystem) << read.error().message;
  disk->payload.reads_fail = false;
  EXPECT_TRUE(IsThere(*store.store, record));
}

// --- what is on the disk is not what was written -------------------------------------------------

std::vector<std::filesystem::path> BlobFiles(const SsdDirectory& directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path() + "/payload")) {
    if (entry.path().extension() == ".blob") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<SsdRecord> WriteSome(const SsdOptions& options) {
  OpenSsd store(options);
  std::vector<SsdRecord> records;
  for (int i = 0; i < 100; ++i) {
    records.push_back(PutVersion(*store.store, options, "k", 1 + i * 3001));
  }
  EXPECT_TRUE(store->MarkClean({}));
  return records;
}

void ExpectRightOrCorrupt(SsdStore& store, const std::vector<SsdRecord>& records, int* corrupt) {
  for (const SsdRecord& record : records) {
    const auto read = ReadVersion(store, record);
    if (read) {
      EXPECT_TRUE(Same(*read, SsdValue(record.id, record.length)));
    } else {
      EXPECT_TRUE(read.error().code == ErrorCode::kCorrupt ||
                  read.error().code == ErrorCode::kNotFound)
          << read.error().message;
      ++*corrupt;
    }
  }
}

TEST(SsdFaultsTest, FlippedBitsAreNeverServed) {
  using Compression = SsdOptions::Compression;
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (const auto compression : {Compression::kNone, Compression::kLz4, Compression::kZstd}) {
    const SsdDirectory directory;
    SsdOptions options = SmallSsd(directory);
    options.compression = compression;
    const auto records = WriteSome(options);
    const auto files = BlobFiles(directory);
    ASSERT_FALSE(files.empty());
    for (const auto& file : files) {
      const int fd = open(file.c_str(), O_RDWR);
      ASSERT_GE(fd, 0);
      const uint64_t size = std::filesystem::file_size(file);
      for (int i = 0; i < 8; ++i) {
        const auto at = static_cast<off_t>(random() % size);
        char byte = 0;
        ASSERT_EQ(pread(fd, &byte, 1, at), 1);
        byte = static_cast<char>(byte ^ (1 << random() % 8));
        ASSERT_EQ(pwrite(fd, &byte, 1, at), 1);
      }
      close(fd);
    }
    OpenSsd store(options);
    int corrupt = 0;
    ExpectRightOrCorrupt(*store.store, records, &corrupt);
    EXPECT_GT(corrupt, 0);
    // What it cannot read it can still erase.
    for (const SsdRecord& record : records) EXPECT_TRUE(EraseVersion(*store.store, record));
    CollectAll(*store.store);
    EXPECT_TRUE(IsThere(*store.store, PutVersion(*store.store, options, "new", 300000)));
  }
}

TEST(SsdFaultsTest, ALostBlobFileCostsItsValues) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  const auto records = WriteSome(options);
  const auto files = BlobFiles(directory);
  ASSERT_GT(files.size(), 2u);
  std::filesystem::remove(files[0]);
  std::filesystem::resize_file(files[1], std::filesystem::file_size(files[1]) / 2);
  OpenSsd store(options);
  ASSERT_NE(store.store, nullptr);
  int corrupt = 0;
  ExpectRightOrCorrupt(*store.store, records, &corrupt);
  EXPECT_GT(corrupt, 0);
  EXPECT_TRUE(IsThere(*store.store, PutVersion(*store.store, options, "new", 300000)));
}

TEST(SsdFaultsTest, ADatabaseThatIsDamagedAsAWholeStartsEmpty) {
  for (const char* name : {"/payload", "/index"}) {
    const SsdDirectory directory;
    SsdOptions options = SmallSsd(directory);
    WriteSome(options);
    for (const auto& entry : std::filesystem::directory_iterator(directory.path() + name)) {
      if (entry.path().filename().string().starts_with("MANIFEST")) {
        std::filesystem::resize_file(entry.path(), 10);
      }
    }
    {
      OpenSsd store(options);
      ASSERT_NE(store.store, nullptr);
      EXPECT_TRUE(store.recovery.wiped);
      EXPECT_EQ(store.recovery.versions, 0u);
      PutVersion(*store.store, options, "new", 300000);
    }
    std::filesystem::remove_all(directory.path() + name);
    OpenSsd store(options);
    EXPECT_TRUE(store.recovery.wiped);
    EXPECT_EQ(store.recovery.versions, 0u);
  }
}

}  // namespace
}  // namespace moonpool::storage
