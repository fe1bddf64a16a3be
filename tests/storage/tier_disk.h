// A disk for the tests of the SSD store and tier: it fails on demand, one database at a time, holds
// reads and writes back, and counts them.
#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace moonpool::storage {

enum class Fault { kNone, kFull, kError };

struct DatabaseFaults {
  std::atomic<Fault> writes{Fault::kNone};
  std::atomic<bool> reads_fail{false};
  std::atomic<bool> writes_held{false};  // they wait until it is false again
  std::atomic<bool> reads_held{false};
  std::atomic<uint64_t> waiting{0};  // how many do
  std::atomic<uint64_t> blob_reads{0};
  std::atomic<uint64_t> refused{0};  // writes

  rocksdb::IOStatus Write() {
    Wait(writes_held);
    if (writes != Fault::kNone) refused.fetch_add(1);
    switch (writes.load()) {
      case Fault::kNone:
        return rocksdb::IOStatus::OK();
      case Fault::kFull:
        return rocksdb::IOStatus::NoSpace("No space left on device");
      case Fault::kError:
        return rocksdb::IOStatus::IOError("Input/output error");
    }
    return rocksdb::IOStatus::OK();
  }
  rocksdb::IOStatus Read(bool blob) {
    if (blob) {
      blob_reads.fetch_add(1);
      Wait(reads_held);
    }
    return blob && reads_fail ? rocksdb::IOStatus::IOError("Input/output error")
                              : rocksdb::IOStatus::OK();
  }

 private:
  void Wait(const std::atomic<bool>& held) {
    if (!held) return;
    waiting.fetch_add(1);
    while (held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    waiting.fetch_sub(1);
  }
};

class TierDiskWriter : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  using IOStatus = rocksdb::IOStatus;
  using IOOptions = rocksdb::IOOptions;
  using Slice = rocksdb::Slice;
  TierDiskWriter(std::unique_ptr<rocksdb::FSWritableFile>&& file, DatabaseFaults* faults)
      : FSWritableFileOwnerWrapper(std::move(file)), faults_(faults) {}
  IOStatus Append(const Slice& data, const IOOptions& options,
                  rocksdb::IODebugContext* context) override {
    IOStatus now = faults_->Write();
    return now.ok() ? FSWritableFileOwnerWrapper::Append(data, options, context) : now;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  rocksdb::IODebugContext* context) override {
    return Append(data, options, context);
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            rocksdb::IODebugContext* context) override {
    IOStatus now = faults_->Write();
    return now.ok() ? FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, context)
                    : now;
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo&,
                            rocksdb::IODebugContext* context) override {
    return PositionedAppend(data, offset, options, context);
  }

 private:
  DatabaseFaults* const faults_;
};

class TierDiskReader : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  TierDiskReader(std::unique_ptr<rocksdb::FSRandomAccessFile>&& file, DatabaseFaults* faults,
                 bool blob)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), faults_(faults), blob_(blob) {}
  rocksdb::IOStatus Read(uint64_t offset, size_t bytes, const rocksdb::IOOptions& options,
                         rocksdb::Slice* result, char* scratch,
                         rocksdb::IODebugContext* context) const override {
    rocksdb::IOStatus now = faults_->Read(blob_);
    if (!now.ok()) return now;
    return FSRandomAccessFileOwnerWrapper::Read(offset, bytes, options, result, scratch, context);
  }

 private:
  DatabaseFaults* const faults_;
  const bool blob_;
};

class TierDisk : public rocksdb::FileSystemWrapper {
 public:
  TierDisk() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "TierDisk"; }
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* result,
                                    rocksdb::IODebugContext* context) override {
    auto status = FileSystemWrapper::NewWritableFile(name, options, result, context);
    if (status.ok()) *result = std::make_unique<TierDiskWriter>(std::move(*result), &Of(name));
    return status;
  }
  rocksdb::IOStatus NewRandomAccessFile(const std::string& name,
                                        const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSRandomAccessFile>* result,
                                        rocksdb::IODebugContext* context) override {
    auto status = FileSystemWrapper::NewRandomAccessFile(name, options, result, context);
    if (status.ok()) {
      *result =
          std::make_unique<TierDiskReader>(std::move(*result), &Of(name), name.ends_with(".blob"));
    }
    return status;
  }

  DatabaseFaults payload;
  DatabaseFaults index;

 private:
  DatabaseFaults& Of(const std::string& name) {
    return name.find("/payload/") != std::string::npos ? payload : index;
  }
};

}  // namespace moonpool::storage
