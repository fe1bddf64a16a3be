#include "storage/region.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>

// Younger than the oldest C library we build with.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace moonpool::storage {

namespace {

size_t FreeHugePages() {
  std::FILE* file =
      std::fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");
  if (file == nullptr) return 0;
  size_t count = 0;
  if (std::fscanf(file, "%zu", &count) != 1) count = 0;
  std::fclose(file);
  return count;
}

Status BindToNode(void* data, size_t bytes, int node) {
  constexpr int kMaxNode = 1024;
  if (node >= kMaxNode) {
    return Fail(ErrorCode::kInvalidArgument, "numa-node " + std::to_string(node) +
                                                 " is beyond the last node this build knows");
  }
  constexpr int kBits = 8 * sizeof(unsigned long);
  unsigned long mask[kMaxNode / kBits] = {};
  mask[node / kBits] = 1ul << (node % kBits);
  if (syscall(SYS_mbind, data, bytes, MPOL_BIND, mask, kMaxNode, 0) != 0) {
    if (errno == ENOSYS && node == 0) return {};  // a kernel without NUMA: all memory is there
    return FailErrno("binding a region to NUMA node " + std::to_string(node));
  }
  return {};
}

}  // namespace

char* MapAligned(int fd, size_t bytes, int protection) {
  // Reserve a little more, then map over the aligned part of it.
  const size_t reserved = bytes + kHugePageBytes;
  void* hole = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
  if (hole == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<uintptr_t>(hole);
  const uintptr_t aligned = (start + kHugePageBytes - 1) & ~uintptr_t{kHugePageBytes - 1};
  void* data = mmap(reinterpret_cast<void*>(aligned), bytes, protection, MAP_SHARED | MAP_FIXED,
                    fd, 0);
  const int error = errno;
  if (aligned > start) munmap(hole, aligned - start);
  const uintptr_t end = start + reserved;
  if (end > aligned + bytes) {
    munmap(reinterpret_cast<void*>(aligned + bytes), end - aligned - bytes);
  }
  if (data == MAP_FAILED) {
    munmap(reinterpret_cast<void*>(aligned), bytes);
    errno = error;
    return nullptr;
  }
  return static_cast<char*>(data);
}

Result<std::unique_ptr<Region>> Region::Create(uint32_t id, Kind kind, size_t bytes,
                                               const RegionOptions& options) {
  bytes = (bytes + kHugePageBytes - 1) & ~(kHugePageBytes - 1);
  std::unique_ptr<Region> region(new Region(id, kind, options.tier, bytes));
  if (Status status = region->Open(options); !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  return region;
}

Result<std::unique_ptr<Region>> Region::CreateOnDevice(uint32_t id, DeviceMemory& device,
                                                       size_t number, size_t bytes) {
  auto range = device.Allocate(bytes);
  if (!range) return tl::unexpected<Error>(std::move(range.error()));
  auto handle = (*range)->Export();
  if (!handle) return tl::unexpected<Error>(std::move(handle.error()));
  std::unique_ptr<Region> region(
      new Region(id, Kind::kShared, protocol::Tier::kGpu, (*range)->bytes()));
  region->handle_ = std::move(*handle);
  region->device_ = &device;
  region->device_number_ = number;
  region->range_ = std::move(*range);
  return region;
}

Status Region::Open(const RegionOptions& options) {
  using HugePages = RegionOptions::HugePages;
  hugetlb_ = options.huge_pages == HugePages::kYes ||
             (options.huge_pages == HugePages::kAuto &&
              FreeHugePages() >= bytes_ / kHugePageBytes);
  const std::string name = "moonpool-region-" + std::to_string(id_);
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  fd_.Reset(memfd_create(name.c_str(), flags | (hugetlb_ ? MFD_HUGETLB : 0)));
  if (!fd_) return FailErrno("memfd_create for a region");
  if (ftruncate(fd_.get(), static_cast<off_t>(bytes_)) != 0) return FailErrno("sizing a region");
  const std::string self = "/proc/self/fd/" + std::to_string(fd_.get());
  read_fd_.Reset(open(self.c_str(), O_RDONLY | O_CLOEXEC));
  if (!read_fd_) return FailErrno("opening a region read-only (is /proc mounted?)");
  const bool arena = kind_ == Kind::kArena;
  data_ = arena ? MapAligned(read_fd_.get(), bytes_, PROT_READ)
                : MapAligned(fd_.get(), bytes_, PROT_READ | PROT_WRITE);
  if (data_ == nullptr && hugetlb_ && options.huge_pages == HugePages::kAuto) {
    // Somebody else took the huge pages between our look and our mapping.
    RegionOptions small = options;
    small.huge_pages = HugePages::kNo;
    return Open(small);
  }
  if (data_ == nullptr) return FailErrno("mapping a region of " + std::to_string(bytes_) + " bytes");
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return FailErrno("sealing the size of a region");
  }
  // Core dumps of a server would hold every tenant's values.
  madvise(data_, bytes_, MADV_DONTDUMP);
  if (options.numa_node >= 0) {
    if (Status status = BindToNode(data_, bytes_, options.numa_node); !status) return status;
  }
  if (arena) return {};
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    return FailErrno("sealing a region against writers");
  }
  return {};
}

Region::~Region() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

bool Region::Populate(size_t offset, size_t length) const {
  if (device_ != nullptr) return true;
  const size_t end = std::min(offset + length, bytes_);
  for (offset &= ~(kHugePageBytes - 1); offset < end; offset += kHugePageBytes) {
    char* const piece = data_ + offset;
    if (!hugetlb_) {
      // One small page, then collapse: the kernel makes the rest of the huge page from nothing,
      // which is several times faster than 512 faults and works without any system setting.
      if (fallocate(fd_.get(), 0, static_cast<off_t>(offset), 4096) == 0 &&
          madvise(piece, kHugePageBytes, MADV_COLLAPSE) == 0) {
        continue;
      }
    }
    if (fallocate(fd_.get(), 0, static_cast<off_t>(offset), kHugePageBytes) != 0 &&
        errno == ENOSPC) {
      return false;
    }
    const int advice = kind_ == Kind::kArena ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
    if (madvise(piece, kHugePageBytes, advice) != 0 && (errno == ENOMEM || errno == EFAULT)) {
      return false;
    }
  }
  return true;
}

Status Region::SealArena() const {
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0) {
    return FailErrno("sealing a write arena");
  }
  return {};
}

bool Region::ProveNoWriters() const {
  return fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0;
}

}  // namespace moonpool::storage
