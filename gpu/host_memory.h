// Memory of the host double: which addresses belong to which device, and which are pinned.
//
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "gpu/memory.h"
#include "protocol/mutex.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::gpu {

// A mapped memory file.
class FileMapping {
 public:
  // `hidden`: the processor that uses data() faults, and real() is the same memory elsewhere.
  static Result<FileMapping> Create(uint64_t bytes, bool hidden);
  // Of a file that another process made.
  static Result<FileMapping> Map(int fd, uint64_t bytes, bool hidden);
  FileMapping(FileMapping&& other) noexcept;
  FileMapping& operator=(FileMapping&&) = delete;
  ~FileMapping();

  char* data() const { return data_; }
  char* real() const { return real_; }
  uint64_t bytes() const { return bytes_; }
  int fd() const { return fd_.get(); }

 private:
  FileMapping(UniqueFd fd, char* data, char* real, uint64_t bytes)
      : fd_(std::move(fd)), data_(data), real_(real), bytes_(bytes) {}
  static Result<FileMapping> MapFile(UniqueFd own, int fd, uint64_t bytes, bool hidden);

  UniqueFd fd_;
  char* data_;
  char* real_;
  uint64_t bytes_;
};

class HostMemory {
 public:
  static constexpr int kPinned = -1;
  struct Range {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    int device = kPinned;
    int pins = 0;              // how often a pinned range was asked for
    int fd = -1;               // of device memory that was made here: its file
    intptr_t real_offset = 0;  // from there the processor reaches it
  };

  explicit HostMemory(intptr_t pinned_offset) : pinned_offset_(pinned_offset) {}

  intptr_t pinned_offset() const { return pinned_offset_; }
  void Add(const FileMapping& mapping, int device);
  void Remove(const void* data);
  // As the registration of CUDA does: within one that exists, or a new one, or an error.  Where the
  // range begins that was found or made.
  Result<uintptr_t> Pin(const void* data, uint64_t bytes);
  void Unpin(uintptr_t begin);

  // The range that holds all of it; its end is 0 when there is none: pageable memory.
  Range Find(const void* address, uint64_t bytes) const;
  // What a kernel would find at this address; an error is an illegal access.
  Result<char*> FromDevice(const void* address, uint64_t bytes) const;

 private:
  const intptr_t pinned_offset_;
  mutable Mutex mu_;
  std::map<uintptr_t, Range> ranges_ GUARDED_BY(mu_);
};

}  // namespace moonpool::gpu
