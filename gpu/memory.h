// Memory a device can reach: regions in its own memory, and host memory pinned for it.
//
// All of these are owned by whoever holds the pointer and end with it.  REQUIRES of every
// destructor: no copy that uses the memory is still on its way (Completion::Wait).  When a process
// dies, the driver gives back what it had.
// Threads: const functions from any.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "gpu/uuid.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::gpu {

enum class HandleKind : uint8_t {
  kPosixFd = 1,  // a file descriptor, passed over a Unix socket
  kFabric = 2,   // 64 bytes, good in every process of one NVLink domain
  kIpc = 3,      // 64 bytes, good on this host, not in the process that exports (legacy)
};
std::string_view NameOf(HandleKind kind);

// What another process needs to import a region, besides the file of kPosixFd.
struct RegionHandle {
  HandleKind kind = HandleKind::kPosixFd;
  Uuid device;
  uint64_t bytes = 0;
  std::array<char, 64> opaque{};
};

struct ExportedRegion {
  RegionHandle handle;
  UniqueFd fd;
};

// Device memory as a file that drivers of NICs take (dma-buf), and where in it the memory begins:
// as far into a page of the host's as its address is.
struct Dmabuf {
  UniqueFd fd;
  uint64_t offset = 0;
};

// One contiguous range of a device's memory: allocated here, or imported.
class DeviceRegion {
 public:
  virtual ~DeviceRegion() = default;

  // An address for copies and kernels; not to be read by the processor.
  virtual char* data() const = 0;
  // At least what was asked for: a multiple of the device's granularity (2 MiB as a rule).
  virtual uint64_t bytes() const = 0;
  virtual const Uuid& device() const = 0;
  // For a region allocated here; as often as wanted.  kInvalidArgument for an imported one.
  virtual Result<ExportedRegion> Export() const = 0;
};

// Host memory that was mapped already and is pinned while this exists.
class PinnedRegion {
 public:
  virtual ~PinnedRegion() = default;

  virtual char* data() const = 0;
  virtual uint64_t bytes() const = 0;
};

// Memory of the library's own for bytes on their way: pinned host memory, or a device's.
class HostBlock {
 public:
  virtual ~HostBlock() = default;

  virtual char* data() const = 0;
  virtual uint64_t bytes() const = 0;
};
class DeviceBlock {
 public:
  virtual ~DeviceBlock() = default;

  virtual char* data() const = 0;
  virtual uint64_t bytes() const = 0;
};

enum class Access : uint8_t { kReadWrite, kReadOnly };

struct MemoryUse {
  uint64_t free_bytes = 0;
  uint64_t total_bytes = 0;
};

}  // namespace moonpool::gpu
