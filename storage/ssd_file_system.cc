#include "storage/ssd_file_system.h"

#include <rocksdb/file_system.h>

#include <string>
#include <utility>

#include "storage/ssd_blob_file.h"

namespace moonpool::storage {

namespace {

using rocksdb::FileOptions;
using rocksdb::FSDirectory;
using rocksdb::FSRandomAccessFile;
using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

class UnsyncedFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  using FSWritableFileOwnerWrapper::FSWritableFileOwnerWrapper;
  // RocksDB wants what it syncs to have left this process.
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    return Flush(options, context);
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    return Flush(options, context);
  }
};

class UnsyncedDirectory : public rocksdb::FSDirectoryWrapper {
 public:
  using FSDirectoryWrapper::FSDirectoryWrapper;
  IOStatus Fsync(const IOOptions&, IODebugContext*) override { return IOStatus::OK(); }
  IOStatus FsyncWithDirOptions(const IOOptions&, IODebugContext*,
                               const rocksdb::DirFsyncOptions&) override {
    return IOStatus::OK();
  }
};

class SsdFileSystem : public rocksdb::FileSystemWrapper {
 public:
  SsdFileSystem(const std::shared_ptr<rocksdb::FileSystem>& base, bool sync)
      : FileSystemWrapper(base), sync_(sync) {}
  const char* Name() const override { return "SsdFileSystem"; }

  IOStatus NewRandomAccessFile(const std::string& name, const FileOptions& options,
                               std::unique_ptr<FSRandomAccessFile>* result,
                               IODebugContext* context) override {
    const FileOptions ours = For(name, options);
    IOStatus status = FileSystemWrapper::NewRandomAccessFile(name, ours, result, context);
    if (status.ok() && name.ends_with(".blob")) {
      *result = NewBlobFile(std::move(*result), ours.use_direct_reads);
    }
    return status;
  }
  IOStatus NewWritableFile(const std::string& name, const FileOptions& options,
                           std::unique_ptr<FSWritableFile>* result,
                           IODebugContext* context) override {
    return Wrap(FileSystemWrapper::NewWritableFile(name, For(name, options), result, context),
                result);
  }
  IOStatus ReopenWritableFile(const std::string& name, const FileOptions& options,
                              std::unique_ptr<FSWritableFile>* result,
                              IODebugContext* context) override {
    return Wrap(FileSystemWrapper::ReopenWritableFile(name, For(name, options), result, context),
                result);
  }
  IOStatus ReuseWritableFile(const std::string& name, const std::string& old_name,
                             const FileOptions& options, std::unique_ptr<FSWritableFile>* result,
                             IODebugContext* context) override {
    return Wrap(
        FileSystemWrapper::ReuseWritableFile(name, old_name, For(name, options), result, context),
        result);
  }
  IOStatus NewDirectory(const std::string& name, const IOOptions& options,
                        std::unique_ptr<FSDirectory>* result, IODebugContext* context) override {
    IOStatus status = FileSystemWrapper::NewDirectory(name, options, result, context);
    if (status.ok() && !sync_) *result = std::make_unique<UnsyncedDirectory>(std::move(*result));
    return status;
  }

 private:
  static FileOptions For(const std::string& name, const FileOptions& options) {
    FileOptions result = options;
    if (name.ends_with(".sst")) result.use_direct_reads = result.use_direct_writes = false;
    return result;
  }
  IOStatus Wrap(IOStatus status, std::unique_ptr<FSWritableFile>* file) const {
    if (status.ok() && !sync_) *file = std::make_unique<UnsyncedFile>(std::move(*file));
    return status;
  }

  const bool sync_;
};

}  // namespace

std::unique_ptr<rocksdb::Env> NewSsdEnv(rocksdb::Env* base, bool sync) {
  return rocksdb::NewCompositeEnv(std::make_shared<SsdFileSystem>(
      base != nullptr ? base->GetFileSystem() : rocksdb::FileSystem::Default(), sync));
}

}  // namespace moonpool::storage
