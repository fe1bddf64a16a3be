#include "storage/ssd_blob_file.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace moonpool::storage {

namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

constexpr uint64_t kPageBytes = 4096;

thread_local BlobRead* current = nullptr;

// Aligned to pages, and grows as it must.
class PageBuffer {
 public:
  ~PageBuffer() { std::free(data_); }
  PageBuffer() = default;
  PageBuffer(const PageBuffer&) = delete;

  char* Reserve(uint64_t bytes) {
    if (bytes > capacity_) {
      std::free(data_);
      capacity_ = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
      data_ = static_cast<char*>(std::aligned_alloc(kPageBytes, capacity_));
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  uint64_t capacity_ = 0;
};

// `bytes` of the file from `offset` on, of which direct I/O reads more, through `buffer`.
IOStatus ReadAround(rocksdb::FSRandomAccessFile& file, uint64_t alignment, uint64_t offset,
                    size_t bytes, const IOOptions& options, IODebugContext* context,
                    PageBuffer& buffer, std::string_view* result) {
  const uint64_t begin = offset / alignment * alignment;
  const uint64_t end = (offset + bytes + alignment - 1) / alignment * alignment;
  char* const memory = buffer.Reserve(end - begin);
  Slice read;
  IOStatus status = file.Read(begin, end - begin, options, &read, memory, context);
  if (!status.ok()) return status;
  const uint64_t skip = offset - begin;
  const uint64_t found = read.size() > skip ? std::min<uint64_t>(read.size() - skip, bytes) : 0;
  *result = {read.data() + skip, found};
  return status;
}

}  // namespace

class BlobFile : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  BlobFile(std::unique_ptr<rocksdb::FSRandomAccessFile> file, bool direct)
      : FSRandomAccessFileOwnerWrapper(std::move(file)),
        alignment_(direct ? FSRandomAccessFileOwnerWrapper::GetRequiredBufferAlignment() : 1) {}

  // RocksDB may ask for any bytes.
  bool use_direct_io() const override { return false; }

  IOStatus Read(uint64_t offset, size_t bytes, const IOOptions& options, Slice* result,
                char* scratch, IODebugContext* context) const override {
    if (current != nullptr && bytes >= kLeastBlobBytes) {
      return current->From(*target(), alignment_, offset, bytes, options, context);
    }
    if ((offset | bytes | reinterpret_cast<uintptr_t>(scratch)) % alignment_ == 0) {
      return target()->Read(offset, bytes, options, result, scratch, context);
    }
    PageBuffer buffer;
    std::string_view read;
    IOStatus status =
        ReadAround(*target(), alignment_, offset, bytes, options, context, buffer, &read);
    if (status.ok()) {
      std::memcpy(scratch, read.data(), read.size());
      *result = {scratch, read.size()};
    }
    return status;
  }
  // One by one, through Read().
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t count, const IOOptions& options,
                     IODebugContext* context) override {
    return FSRandomAccessFile::MultiRead(requests, count, options, context);
  }

 private:
  const uint64_t alignment_;  // a power of two
};

BlobRead::BlobRead(uint64_t blob_bytes, uint64_t offset, std::span<char> to)
    : blob_bytes_(blob_bytes), offset_(offset), to_(to) {
  current = this;
}

BlobRead::~BlobRead() {
  current = nullptr;
}

IOStatus BlobRead::From(rocksdb::FSRandomAccessFile& file, uint64_t alignment, uint64_t offset,
                        size_t bytes, const IOOptions& options, IODebugContext* context) {
  const uint64_t wanted = offset + offset_;
  const auto misaligned =
      (wanted | to_.size() | reinterpret_cast<uintptr_t>(to_.data())) % alignment;
  uint64_t missing;
  if (bytes == blob_bytes_ && !to_.empty() && offset_ + to_.size() <= bytes && misaligned == 0) {
    Slice read;
    IOStatus status = file.Read(wanted, to_.size(), options, &read, to_.data(), context);
    if (!status.ok()) return status;
    if (read.data() != to_.data()) std::memcpy(to_.data(), read.data(), read.size());
    missing = to_.size() - read.size();
    in_place_ = true;
  } else {
    thread_local PageBuffer buffer;
    IOStatus status = ReadAround(file, alignment, offset, bytes, options, context, buffer, &blob_);
    if (!status.ok()) return status;
    missing = bytes - blob_.size();
  }
  if (missing > 0) return IOStatus::Corruption("a blob file is too short");
  taken_ = true;
  return IOStatus::Aborted("taken");
}

std::unique_ptr<rocksdb::FSRandomAccessFile> NewBlobFile(
    std::unique_ptr<rocksdb::FSRandomAccessFile> file, bool direct) {
  return std::make_unique<BlobFile>(std::move(file), direct);
}

}  // namespace moonpool::storage
