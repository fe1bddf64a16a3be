// The disk itself: a folder on it and files that are read and written past the page cache.
//
// Threads: one at a time.  Throws Failure.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/unique_fd.h"

namespace moonpool::bench {

// A folder of its own under `parent` (made when it is not there; empty: the system's temporary
// folder), removed with all that is in it.  Throws when that is no disk: a file system in memory,
// or one that refuses direct I/O.
class DiskFolder {
 public:
  explicit DiskFolder(const std::string& parent);
  ~DiskFolder();
  DiskFolder(const DiskFolder&) = delete;

  const std::string& path() const { return path_; }
  const std::string& file_system() const { return file_system_; }
  uint64_t free_bytes() const;

 private:
  std::string path_;
  std::string file_system_;
};

// A file that is gone when this is.  Sizes and offsets are whole blocks of 1 MiB.
class DirectFile {
 public:
  explicit DirectFile(const std::string& path);

  // GB/s of writing `bytes` behind what is there, until they are on the disk.
  double Append(uint64_t bytes);
  // GB/s of reading them in order, so many blocks at one time.
  double Read(uint64_t offset, uint64_t bytes, int depth) const;
  // The same into `memory_bytes` of memory in turns; there each block is checked once against its
  // checksum, and copied once to as much other memory: the least that is done by whoever hands the
  // disk's bytes, verified, to somebody else.
  double ReadCheckAndCopy(uint64_t offset, uint64_t bytes, int depth, uint64_t memory_bytes) const;
  uint64_t size() const { return size_; }

 private:
  // Each block is read to `to(number of the thread, of the block)`; then `done(block)` is called.
  template <typename To, typename Done>
  double ReadBlocks(uint64_t offset, uint64_t bytes, int depth, To to, Done done) const;

  UniqueFd fd_;
  uint64_t size_ = 0;
};

}  // namespace moonpool::bench
