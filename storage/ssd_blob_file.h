// Blob files as RocksDB gets to see them: reads of payload go straight to where it is wanted.
//
// RocksDB reads a blob into memory of its own and copies it to its caller, who copies it again; at
// the speed of an SSD those copies are most of what a read costs.  A Get() under a BlobRead only
// finds the blob: the file reads the bytes into their place and ends the Get() with an error that
// stands for "taken".  Whatever else reads the file (compactions, headers) finds it as it is.
//
// Direct I/O takes whole sectors, in the file and in memory.  SsdPayload lays its chunks out so
// that they begin with one; what does not passes through memory of the reading thread.
#pragma once

#include <rocksdb/file_system.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace moonpool::storage {

// Files smaller things are read from as well: their header and footer, below kLeastBlobBytes.
inline constexpr uint64_t kLeastBlobBytes = 64;

// Threads: belongs to the one that makes it, which has one at a time.
class BlobRead {
 public:
  // If the blob that is read next has `blob_bytes`, what stands in it from `offset` on is wanted in
  // `to`, all of it: as much as whole sectors need.  Empty: nowhere, see blob().
  BlobRead(uint64_t blob_bytes, uint64_t offset, std::span<char> to);
  ~BlobRead();
  BlobRead(const BlobRead&) = delete;

  // A blob was read.  Otherwise Get() has the value, or says why not.
  bool taken() const { return taken_; }
  // What was wanted is in its place.
  bool in_place() const { return in_place_; }
  // The whole blob, unless it is in place; valid until this thread's next one.
  std::string_view blob() const { return blob_; }

 private:
  friend class BlobFile;
  rocksdb::IOStatus From(rocksdb::FSRandomAccessFile& file, uint64_t alignment, uint64_t offset,
                         size_t bytes, const rocksdb::IOOptions& options,
                         rocksdb::IODebugContext* context);

  const uint64_t blob_bytes_;
  const uint64_t offset_;
  const std::span<char> to_;
  bool taken_ = false;
  bool in_place_ = false;
  std::string_view blob_;
};

// Around one that was opened for direct I/O (`direct`), or not.
std::unique_ptr<rocksdb::FSRandomAccessFile> NewBlobFile(
    std::unique_ptr<rocksdb::FSRandomAccessFile> file, bool direct);

}  // namespace moonpool::storage
