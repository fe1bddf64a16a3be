#include "tools/bench/memory_block.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "tools/bench/failure.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace moonpool::bench {

namespace {

constexpr size_t kHugePage = 2 << 20;

size_t RoundUp(size_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

// Maps `bytes` (whole huge pages) at an address that is a multiple of a huge page.
char* MapAligned(size_t bytes, int flags, int fd) {
  void* hole = mmap(nullptr, bytes + kHugePage, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED) throw Failure(std::string("mmap: ") + std::strerror(errno));
  const auto start = reinterpret_cast<uintptr_t>(hole);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  munmap(hole, aligned - start);
  munmap(reinterpret_cast<void*>(aligned + bytes), start + kHugePage - aligned);
  void* data = mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ | PROT_WRITE,
                    flags | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) throw Failure(std::string("mmap: ") + std::strerror(errno));
  return static_cast<char*>(data);
}

void Touch(char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 4096) {
    *reinterpret_cast<volatile char*>(data + i) = 1;
  }
}

}  // namespace

MemoryBlock MemoryBlock::Anonymous(size_t bytes) {
  const size_t rounded = RoundUp(bytes);
  char* data = MapAligned(rounded, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  madvise(data, rounded, MADV_HUGEPAGE);
  Touch(data, rounded);
  return MemoryBlock(data, rounded);
}

MemoryBlock MemoryBlock::SharedFile(size_t bytes) {
  const size_t rounded = RoundUp(bytes);
  const int fd = memfd_create("moonpool-bench", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(rounded)) != 0) {
    if (fd >= 0) close(fd);
    throw Failure(std::string("memfd: ") + std::strerror(errno));
  }
  char* data = MapAligned(rounded, MAP_SHARED, fd);
  close(fd);
  for (size_t at = 0; at < rounded; at += kHugePage) {
    *reinterpret_cast<volatile char*>(data + at) = 1;
    madvise(data + at, kHugePage, MADV_COLLAPSE);  // small pages where the kernel cannot
  }
  Touch(data, rounded);
  return MemoryBlock(data, rounded);
}

MemoryBlock::MemoryBlock(MemoryBlock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}

MemoryBlock::~MemoryBlock() {
  if (data_ != nullptr) munmap(data_, size_);
}

std::string_view NameOf(CopyMethod method) {
  return method == CopyMethod::kMemcpy ? "memcpy" : "rep movsb";
}

void CopyBy(CopyMethod method, void* to, const void* from, size_t bytes) {
#if defined(__x86_64__)
  if (method == CopyMethod::kFastString) {
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return;
  }
#endif
  std::memcpy(to, from, bytes);
  // The copy is the point: it must happen although nobody looks at it.
  asm volatile("" : : "r"(to) : "memory");
}

}  // namespace moonpool::bench
