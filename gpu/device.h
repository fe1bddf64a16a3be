// A GPU, as far as Moonpool needs it: memory, streams, and work put into streams.
//
// Two implementations: CUDA's (cuda.h) and one in host memory for tests (host_device.h).  Callers
// copy with CopyBatch (copy_batch.h), which decides how bytes go; what is here are its means.
//
// Threads: any, on every function; no lock is held across a call that waits for the device.  The
// calling thread's current CUDA device or context is as before when a call returns.
// Errors: kInvalidArgument, kOutOfMemory; kUnavailable when the device is lost or the driver does
// not offer something; kSystem otherwise; messages end with what to do about it.
// A Device must outlive what it made.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "gpu/memory.h"
#include "gpu/pages.h"
#include "gpu/stream.h"
#include "gpu/uuid.h"
#include "protocol/seqlock.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::gpu {

class Device;

// How bytes get from one device to another, slowest first.
enum class Link : uint8_t {
  kNone,    // not at all: through host memory
  kPcie,    // peer to peer over PCIe
  kNvlink,  // peer to peer over NVLink
  kSame,    // one device
};
std::string_view NameOf(Link link);

struct DeviceInfo {
  Uuid uuid;
  std::string name;
  int driver_version = 0;      // 13000: the driver speaks CUDA 13.0
  int runtime_version = 0;     // of the CUDA that this was built with
  int compute_capability = 0;  // 90: 9.0
  int multiprocessors = 0;
  uint64_t total_bytes = 0;
  bool posix_handles = false;
  bool fabric_handles = false;
  bool ipc_handles = false;
  bool pins_read_only = false;  // host memory that is mapped read-only can be pinned
  bool dmabuf = false;          // NICs can reach its memory: ExportDmabuf(), FlushRemoteWrites()
};

// What kind of memory an address is in.
struct Place {
  enum class Kind : uint8_t {
    kPageable,  // host memory that no device can reach by itself
    kPinned,    // host memory
    kDevice,
  };
  Kind kind = Kind::kPageable;
  Device* device = nullptr;  // of kDevice; null when this process does not see that device
  // The same holds for [begin, end), at least.
  uintptr_t begin = 0;
  uintptr_t end = 0;
  // kPinned: how far the address for the device is from the one for the processor.
  intptr_t device_offset = 0;
};

struct Piece {
  void* to = nullptr;
  const void* from = nullptr;
  uint64_t bytes = 0;
};

// Compares a counter with what a descriptor said (seqlock.h), on the stream.
struct GenerationCheck {
  const protocol::GenerationCounter* counter = nullptr;
  uint64_t generation = 0;
};
enum class CheckState : uint32_t { kPending = 0, kUnchanged = 1, kChanged = 2 };

// Room for the states of a batch, in pinned memory.  Its launches are in one stream at a time.
class CheckBlock {
 public:
  virtual ~CheckBlock() = default;

  virtual CheckState* states() const = 0;
};

// Comparisons whose results go to the states of `block` from `first` on.
struct Checks {
  std::span<const GenerationCheck> checks = {};
  CheckBlock* block = nullptr;
  size_t first = 0;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  virtual Result<MemoryUse> Memory() const = 0;
  // From the topology the driver measured.  `other` is of the same kind of devices.
  virtual Link LinkTo(const Device& other) const = 0;

  // --- memory --------------------------------------------------------------------------------
  // `bytes` is rounded up.  The devices of this process with a link to this one may reach it too.
  virtual Result<std::unique_ptr<DeviceRegion>> Allocate(uint64_t bytes, HandleKind kind) = 0;
  // The best kind that the device offers.
  HandleKind BestHandle() const;
  // Maps another process's region so that this device reaches it.  `fd` stays the caller's.
  virtual Result<std::unique_ptr<DeviceRegion>> Import(const RegionHandle& handle, int fd) = 0;
  // Pins memory that is mapped, for every device.  What lies within a range that is pinned already
  // shares it.  kReadOnly for mappings that may only be read, where info().pins_read_only.
  virtual Result<std::unique_ptr<PinnedRegion>> Pin(void* data, uint64_t bytes, Access access) = 0;
  // Pinned memory that every device reaches, and memory of this device; kept for the next caller
  // when it is given back.
  virtual Result<std::unique_ptr<HostBlock>> NewHostBlock(uint64_t bytes) = 0;
  virtual Result<std::unique_ptr<DeviceBlock>> NewDeviceBlock(uint64_t bytes) = 0;
  // All pending.
  virtual Result<std::unique_ptr<CheckBlock>> NewCheckBlock(size_t states) = 0;
  // Memory of other libraries is known too, after a microsecond.
  virtual Result<Place> WhereIs(const void* address) = 0;

  // --- NICs that read and write the device's memory -----------------------------------------
  // Memory of this device, [data, data + bytes), for a NIC to register: as often as wanted.  What
  // is registered must stay until no registration is left: a NIC goes on reaching the pages it was
  // given, whatever is at the address later.  kUnavailable where there is no such way.
  virtual Result<Dmabuf> ExportDmabuf(const void* data, uint64_t bytes) = 0;
  // A NIC says that its writes have arrived before the device can see them: work that is given to
  // any device after this call sees what NICs had written to this one's memory before.  Blocks, for
  // microseconds.
  virtual Status FlushRemoteWrites() = 0;

  // --- streams -------------------------------------------------------------------------------
  virtual Result<std::unique_ptr<Stream>> NewStream() = 0;
  virtual Result<std::unique_ptr<Event>> NewEvent() = 0;
  // kInvalidArgument for a stream that is being captured into a graph: what is put into it would be
  // done later, again and again, and not now.
  virtual Status Accepts(StreamRef stream) = 0;
  virtual Status Record(Event& event, StreamRef stream) = 0;
  // Work put into `stream` from now on waits for the event, which may be another device's.
  virtual Status WaitFor(StreamRef stream, const Event& event) = 0;
  // Returns when the stream is empty.
  virtual Status Drain(StreamRef stream) = 0;

  // --- work, in the order of its stream; the calls return at once ----------------------------
  // Through the copy engine (within one device: as the driver does it).  Any memory but another
  // device's without a link.
  virtual Status CopyOne(StreamRef stream, const Piece& piece) = 0;
  // Each piece as one more launch would cost too much: all in one.  Pinned and device memory with a
  // link only; addresses as the device sees them.  `host`: one side is host memory.  `behind`,
  // which may be empty, is done as CheckGenerations() would, without a launch of its own.
  virtual Status CopyMany(StreamRef stream, std::span<const Piece> pieces, bool host,
                          const Checks& behind) = 0;
  // The same for pages.  REQUIRES: valid; addresses as the device sees them.
  virtual Status CopyPages(StreamRef stream, const PageCopy& copy, bool host) = 0;
  // Writes a CheckState per check.  All that the stream did before has been read when the counters
  // are.
  virtual Status CheckGenerations(StreamRef stream, const Checks& checks) = 0;
};

}  // namespace moonpool::gpu
