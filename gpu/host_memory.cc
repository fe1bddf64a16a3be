#include "gpu/host_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>
#include <utility>

namespace moonpool::gpu {

Result<FileMapping> FileMapping::MapFile(UniqueFd own, int fd, uint64_t bytes, bool hidden) {
  void* real = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (real == MAP_FAILED) return FailErrno("mmap");
  void* data = real;
  if (hidden) {
    data = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
      munmap(real, bytes);
      return FailErrno("mmap");
    }
  }
  return FileMapping(std::move(own), static_cast<char*>(data), static_cast<char*>(real), bytes);
}

Result<FileMapping> FileMapping::Create(uint64_t bytes, bool hidden) {
  UniqueFd fd(memfd_create("moonpool-host-device", MFD_CLOEXEC));
  if (!fd) return FailErrno("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return FailErrno("ftruncate");
  const int file = fd.get();
  return MapFile(std::move(fd), file, bytes, hidden);
}

Result<FileMapping> FileMapping::Map(int fd, uint64_t bytes, bool hidden) {
  struct stat file {};
  if (fstat(fd, &file) != 0) return FailErrno("the file of a region");
  if (bytes == 0 || static_cast<uint64_t>(file.st_size) < bytes) {
    return Fail(ErrorCode::kInvalidArgument, "the region is not as long as its handle says");
  }
  return MapFile(UniqueFd(), fd, bytes, hidden);
}

FileMapping::FileMapping(FileMapping&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      real_(other.real_),
      bytes_(other.bytes_) {}

FileMapping::~FileMapping() {
  if (data_ == nullptr) return;
  if (real_ != data_) munmap(real_, bytes_);
  munmap(data_, bytes_);
}

void HostMemory::Add(const FileMapping& mapping, int device) {
  const auto begin = reinterpret_cast<uintptr_t>(mapping.data());
  MutexLock lock(mu_);
  ranges_[begin] = {begin,        begin + mapping.bytes(),        device, 1,
                    mapping.fd(), mapping.real() - mapping.data()};
}

void HostMemory::Remove(const void* data) {
  MutexLock lock(mu_);
  ranges_.erase(reinterpret_cast<uintptr_t>(data));
}

Result<uintptr_t> HostMemory::Pin(const void* data, uint64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  MutexLock lock(mu_);
  auto next = ranges_.upper_bound(begin);
  if (next != ranges_.begin()) {
    Range& before = std::prev(next)->second;
    if (before.device == kPinned && begin + bytes <= before.end) {
      ++before.pins;
      return before.begin;
    }
    if (before.end > begin) next = std::prev(next);
  }
  if (next != ranges_.end() && next->second.begin < begin + bytes) {
    return Fail(ErrorCode::kInvalidArgument,
                "a part of that memory is pinned already; pin it whole");
  }
  ranges_[begin] = {begin, begin + bytes, kPinned, 1};
  return begin;
}

void HostMemory::Unpin(uintptr_t begin) {
  MutexLock lock(mu_);
  const auto found = ranges_.find(begin);
  if (found != ranges_.end() && --found->second.pins == 0) ranges_.erase(found);
}

HostMemory::Range HostMemory::Find(const void* address, uint64_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  MutexLock lock(mu_);
  const auto next = ranges_.upper_bound(begin);
  if (next == ranges_.begin()) return {};
  const Range& range = std::prev(next)->second;
  return begin + bytes <= range.end ? range : Range{};
}

Result<char*> HostMemory::FromDevice(const void* address, uint64_t bytes) const {
  char* const data = const_cast<char*>(static_cast<const char*>(address));
  Range range = Find(data, bytes);
  if (range.end != 0 && range.device != kPinned) return data + range.real_offset;
  range = Find(data - pinned_offset_, bytes);
  if (range.end != 0 && range.device == kPinned) return data - pinned_offset_;
  return Fail(ErrorCode::kSystem, "an illegal memory access of a kernel");
}

}  // namespace moonpool::gpu
