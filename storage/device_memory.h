// Memory of a device (a GPU), as the pool needs it: ranges for its regions, and copies between them
// and host memory.  What a device is, storage does not know: the server gives it these.
//
// Threads: any.  A DeviceMemory outlives the tenants that use it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "protocol/attach_wire.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::storage {

// Devices of one server, by number.
inline constexpr size_t kMaxDevices = 16;
using DeviceSet = uint32_t;  // bit i: device number i
inline constexpr DeviceSet kAllDevices = (DeviceSet{1} << kMaxDevices) - 1;

class DeviceMemory {
 public:
  using Uuid = std::array<uint8_t, 16>;

  // What another process needs to map a range.
  struct Handle {
    protocol::DeviceHandleKind kind = protocol::DeviceHandleKind::kNone;
    std::array<char, 64> opaque{};
    UniqueFd fd;
  };
  // Memory of a device as a file that drivers of NICs take (dma-buf), and where in it that begins.
  struct Dmabuf {
    UniqueFd fd;
    uint64_t offset = 0;
  };
  // One contiguous range, given back when it is destroyed.
  class Range {
   public:
    virtual ~Range() = default;
    // An address on the device, which the processor must not touch.
    virtual char* data() const = 0;
    virtual uint64_t bytes() const = 0;
    virtual Result<Handle> Export() const = 0;
    // All of it, as often as wanted.  A NIC that was given it goes on reaching that memory,
    // whatever is there later: it lets go of it before the range does.  kUnavailable where there is
    // no such way.
    virtual Result<Dmabuf> ExportDmabuf() const = 0;
  };

  virtual ~DeviceMemory() = default;
  virtual const Uuid& uuid() const = 0;
  // The same as text: "GPU-...".
  virtual const std::string& name() const = 0;
  // At least `bytes`.
  virtual Result<std::unique_ptr<Range>> Allocate(uint64_t bytes) = 0;
  // Each side is host memory or in a range of this device.  Returns when the bytes are there.
  virtual Status Copy(char* to, const char* from, uint64_t bytes) = 0;
  // It does not answer any more, and never will: what was in its memory is gone.  Cheap.
  virtual bool lost() const = 0;
  // Sees whether it answers.  May block.
  virtual void Probe() = 0;
};

}  // namespace moonpool::storage
