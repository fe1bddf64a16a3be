// What devices in host memory (host_device.h) make: regions, blocks, streams, events.
//
// Threads: as the interfaces say.  Each keeps what the devices share alive.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gpu/host_device.h"
#include "gpu/host_memory.h"
#include "gpu/host_streams.h"

namespace moonpool::gpu {

// What the devices of one call share.
struct HostWorld {
  explicit HostWorld(const HostDeviceOptions& o)
      : options(o), memory(o.pinned_offset), streams(o.seed) {}
  const HostDeviceOptions options;
  HostMemory memory;
  std::vector<Device*> devices;
  std::atomic<uint64_t> allocated[16] = {};  // bytes of regions, by device
  HostStreams streams;                       // its thread uses the rest
};
using WorldPtr = std::shared_ptr<HostWorld>;

// Memory that the double knows about while this lives.
class KnownHostMemory {
 public:
  KnownHostMemory(WorldPtr world, FileMapping mapping, int device)
      : world_(std::move(world)), mapping_(std::move(mapping)) {
    world_->memory.Add(mapping_, device);
  }
  ~KnownHostMemory() { world_->memory.Remove(mapping_.data()); }
  KnownHostMemory(const KnownHostMemory&) = delete;
  KnownHostMemory& operator=(const KnownHostMemory&) = delete;

  const FileMapping& mapping() const { return mapping_; }

 private:
  const WorldPtr world_;
  FileMapping mapping_;
};

class HostRegion : public DeviceRegion {
 public:
  HostRegion(WorldPtr world, FileMapping mapping, int device, const Uuid& uuid, HandleKind kind,
             bool imported)
      : world_(world),
        memory_(std::move(world), std::move(mapping), device),
        device_(device),
        uuid_(uuid),
        kind_(kind),
        imported_(imported) {
    if (!imported_) world_->allocated[device_] += bytes();
  }
  ~HostRegion() override {
    if (!imported_) world_->allocated[device_] -= bytes();
  }

  char* data() const override { return memory_.mapping().data(); }
  uint64_t bytes() const override { return memory_.mapping().bytes(); }
  const Uuid& device() const override { return uuid_; }
  Result<ExportedRegion> Export() const override {
    if (imported_) {
      return Fail(ErrorCode::kInvalidArgument, "only who allocated a region can export it");
    }
    ExportedRegion exported;
    exported.handle = {kind_, uuid_, bytes(), {}};
    exported.fd.Reset(dup(memory_.mapping().fd()));
    if (!exported.fd) return FailErrno("dup");
    return exported;
  }

 private:
  const WorldPtr world_;
  KnownHostMemory memory_;
  const int device_;
  const Uuid uuid_;
  const HandleKind kind_;
  const bool imported_;
};

template <typename Interface>
class HostOwned : public Interface {
 public:
  HostOwned(WorldPtr world, FileMapping mapping, int device)
      : memory_(std::move(world), std::move(mapping), device) {}
  char* data() const override { return memory_.mapping().data(); }
  uint64_t bytes() const override { return memory_.mapping().bytes(); }

 private:
  KnownHostMemory memory_;
};

class HostPinned : public PinnedRegion {
 public:
  HostPinned(WorldPtr world, char* data, uint64_t bytes, uintptr_t range)
      : world_(std::move(world)), data_(data), bytes_(bytes), range_(range) {}
  ~HostPinned() override { world_->memory.Unpin(range_); }
  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  const WorldPtr world_;
  char* const data_;
  const uint64_t bytes_;
  const uintptr_t range_;
};

class HostStream : public Stream {
 public:
  HostStream(WorldPtr world, int device)
      : world_(std::move(world)), handle_(world_->streams.NewStream(device)) {}
  ~HostStream() override { world_->streams.EndStream(handle_); }
  StreamRef ref() const override { return {handle_}; }

 private:
  const WorldPtr world_;
  void* const handle_;
};

class HostEvent : public Event {
 public:
  explicit HostEvent(WorldPtr world) : world_(std::move(world)) { point->reached = true; }
  Result<bool> Reached() const override {
    bool lost = false;
    const bool reached = world_->streams.Reached(*point, &lost);
    if (lost) return Lost();
    return reached;
  }
  Status Wait() const override {
    if (!world_->streams.WaitUntilReached(*point)) return Lost();
    return {};
  }
  Result<bool> WaitUntil(std::chrono::steady_clock::time_point deadline) const override {
    bool lost = false;
    const bool reached = world_->streams.WaitUntil(*point, deadline, &lost);
    if (lost) return Lost();
    return reached;
  }
  void* native() const override { return nullptr; }
  static tl::unexpected<Error> Lost() {
    return Fail(ErrorCode::kUnavailable, "the device is lost; make it anew");
  }

  std::shared_ptr<HostStreams::Point> point = std::make_shared<HostStreams::Point>();

 private:
  const WorldPtr world_;
};

class HostChecks : public CheckBlock {
 public:
  HostChecks(std::unique_ptr<HostBlock> block, size_t states) : block_(std::move(block)) {
    std::fill_n(this->states(), states, CheckState::kPending);
  }
  CheckState* states() const override { return reinterpret_cast<CheckState*>(block_->data()); }

 private:
  const std::unique_ptr<HostBlock> block_;
};

}  // namespace moonpool::gpu
