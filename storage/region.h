// One contiguous range of memory that the server owns and can export: a sealed memfd, or a range of a
// device's memory.
//
// kShared: the server maps it read-write, *then* seals it against every further writable mapping
// (SHRINK|GROW|FUTURE_WRITE|SEAL), so a client that gets the file can only ever read.
// kArena: the server maps it read-only.  The one session that writes maps it read-write; then
// SealArena() closes that door for everybody else.  Only F_SEAL_WRITE succeeding proves that no
// writable mapping is left anywhere (an end of file on a socket does not: mappings outlive it
// through fork, passed descriptors, or plain closing).
// On a device: every client of the tenant that maps it may write; the processor never touches it.
//
// Threads: const functions from any.  Owns the file and the mapping; readers and extents must be
// gone before it is destroyed (ExtentPool sees to that).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "protocol/descriptor.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"
#include "storage/device_memory.h"

namespace moonpool::storage {

// Huge pages of x86-64; regions are multiples of it and aligned to it in every mapping.
inline constexpr size_t kHugePageBytes = 2 << 20;

struct RegionOptions {
  enum class HugePages { kNo, kAuto, kYes };
  // kAuto: reserved huge pages (hugetlb) when enough are free, else collapsed ones where the
  // kernel can (Linux 6.1), else small ones.  kYes: reserved ones or an error.
  HugePages huge_pages = HugePages::kAuto;
  int numa_node = -1;  // bind the memory to this node; -1: wherever the first touch falls
  protocol::Tier tier = protocol::Tier::kDram;
};

class Region {
 public:
  enum class Kind { kShared, kArena };

  // Creates and maps; the memory itself comes with Populate() or with the first touch.
  // `bytes` is rounded up to kHugePageBytes.
  static Result<std::unique_ptr<Region>> Create(uint32_t id, Kind kind, size_t bytes,
                                                const RegionOptions& options);
  // In the memory of a device, which is number `number` of the tenant's.  As large as it gives.
  // Blocks as long as its driver does, and exports it, so that nobody else must call that.
  static Result<std::unique_ptr<Region>> CreateOnDevice(uint32_t id, DeviceMemory& device,
                                                        size_t number, size_t bytes);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uint32_t id() const { return id_; }
  Kind kind() const { return kind_; }
  protocol::Tier tier() const { return tier_; }
  size_t bytes() const { return bytes_; }
  bool huge_pages() const { return hugetlb_; }
  // A shared region's bytes may be written by the server; an arena's only read.  Null on a device.
  char* data() const { return data_; }
  // Null: it is in host memory.
  DeviceMemory* device() const { return device_; }
  size_t device_number() const { return device_number_; }
  const DeviceMemory::Range* range() const { return range_.get(); }
  // What other processes need to map it, if it is on a device.
  const DeviceMemory::Handle& handle() const { return handle_; }
  // Where it is, for copies: on the device, if it is there.
  char* address() const { return range_ != nullptr ? range_->data() : data_; }
  // Open for writing: only for the session that writes an arena, to map it.
  int fd() const { return fd_.get(); }
  // Open for reading: what everybody else maps.  (Mappings made through a writable descriptor
  // count as writers for F_SEAL_WRITE, even read-only ones.)
  int read_fd() const { return read_fd_.get(); }

  // NICs of clients may read it where it is (Exporter).  The pool says so, as long as values there
  // are told of.
  bool exported() const { return exported_.load(std::memory_order_relaxed); }
  void set_exported(bool exported) { exported_.store(exported, std::memory_order_relaxed); }

  // Faults [offset, offset + length) in, with huge pages where possible.  Safe while the bytes
  // are in use.  False when memory is short.  Blocks: 0.1 to 2 ms per 2 MiB.
  bool Populate(size_t offset, size_t length) const;

  // Arena: no new writable mapping from now on.  Existing ones stay.
  Status SealArena() const;
  // Arena: true when no writable mapping exists any more, and none can come.
  bool ProveNoWriters() const;

 private:
  Region(uint32_t id, Kind kind, protocol::Tier tier, size_t bytes)
      : id_(id), kind_(kind), tier_(tier), bytes_(bytes) {}
  Status Open(const RegionOptions& options);

  const uint32_t id_;
  const Kind kind_;
  const protocol::Tier tier_;
  const size_t bytes_;
  bool hugetlb_ = false;
  UniqueFd fd_;
  UniqueFd read_fd_;
  char* data_ = nullptr;
  DeviceMemory* device_ = nullptr;
  size_t device_number_ = 0;
  std::unique_ptr<DeviceMemory::Range> range_;
  DeviceMemory::Handle handle_;
  std::atomic<bool> exported_{false};
};

// Maps `bytes` of `fd` at an address aligned for huge pages; null and errno on failure.
// `protection` as for mmap(2).  Unmap with munmap(address, bytes).
char* MapAligned(int fd, size_t bytes, int protection);

}  // namespace moonpool::storage
