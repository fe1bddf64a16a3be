// The memory of one server (one epoch of it) that this process has mapped.
//
// Shared by all connections of a client: a region is mapped once, whoever asked for it.  Regions
// are mapped read-only; a write arena read-write, by the connection whose session owns it.
// Threads: any; mu_ is a leaf lock.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "client/fork_guard.h"
#include "gpu/device.h"
#include "protocol/mutex.h"
#include "protocol/seqlock.h"
#include "protocol/unique_fd.h"

namespace moonpool::client {

// One mapping; unmapped when the last user lets go of it, which nobody does while a device copies
// from or to it.
class Mapping {
 public:
  // Null when the kernel refuses.
  static std::shared_ptr<Mapping> Create(int fd, size_t bytes, bool writable);
  // Memory of a device, imported by `device`.
  static std::shared_ptr<Mapping> OfDevice(gpu::Device* device,
                                           std::unique_ptr<gpu::DeviceRegion> region);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Of device memory an address for copies, not to be read by the processor.
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool writable() const { return writable_; }
  // Whose memory it is, as it was imported; null for host memory.
  gpu::Device* device() const { return device_; }
  // Pins host memory for devices, unless that was done.  False when it cannot be pinned, which is
  // tried again now and then: devices copy it at the driver's pace, and compare nothing in it.
  bool PinFor(gpu::Device& device);

 private:
  Mapping(char* data, size_t bytes, bool writable)
      : data_(data), bytes_(bytes), writable_(writable) {}

  char* const data_;
  const size_t bytes_;
  const bool writable_;
  const uint64_t forks_ = ForkCount();
  gpu::Device* device_ = nullptr;
  std::unique_ptr<gpu::DeviceRegion> region_;
  Mutex pin_mu_;
  std::chrono::steady_clock::time_point pin_after_ GUARDED_BY(pin_mu_) = {};
  std::chrono::milliseconds pin_pause_ GUARDED_BY(pin_mu_){0};
  std::unique_ptr<gpu::PinnedRegion> pinned_ GUARDED_BY(pin_mu_);
};

class NodeMemory {
 public:
  NodeMemory(uint64_t epoch, std::shared_ptr<Mapping> generations)
      : epoch_(epoch), generations_(std::move(generations)) {}

  uint64_t epoch() const { return epoch_; }
  // Null when the slot is not in the table: the descriptor is not of this server.
  const protocol::GenerationCounter* counter(uint32_t slot) const {
    if ((uint64_t{slot} + 1) * sizeof(protocol::GenerationCounter) > generations_->bytes()) {
      return nullptr;
    }
    return reinterpret_cast<const protocol::GenerationCounter*>(generations_->data()) + slot;
  }
  const std::shared_ptr<Mapping>& generations() const { return generations_; }

  std::shared_ptr<Mapping> Find(uint32_t region) const;
  void Add(uint32_t region, std::shared_ptr<Mapping> mapping);
  // Forgets the region; users that hold the mapping keep it.
  void Remove(uint32_t region);

  // While somebody holds this, what is removed stays mapped and pinned: to undo that waits for
  // devices, whatever it is that they do.
  std::shared_ptr<const void> KeepWhatGoes();

  // Whether a copy still uses memory of a device that was removed, whichever connection's it is.
  bool InUse(uint32_t region) const;

  // A device's region that could not be imported is not tried again; the last error stays.
  void CannotImport(uint32_t region, std::string why);
  bool importable(uint32_t region) const;
  std::string import_error() const;

 private:
  const uint64_t epoch_;
  const std::shared_ptr<Mapping> generations_;
  mutable Mutex mu_;
  std::unordered_map<uint32_t, std::shared_ptr<Mapping>> regions_ GUARDED_BY(mu_);
  // Of devices, and removed while somebody held them.
  std::unordered_map<uint32_t, std::weak_ptr<Mapping>> leaving_ GUARDED_BY(mu_);
  // Only added to, under mu_.
  using Kept = std::vector<std::shared_ptr<Mapping>>;
  std::weak_ptr<Kept> kept_ GUARDED_BY(mu_);
  std::unordered_set<uint32_t> not_importable_ GUARDED_BY(mu_);
  std::string import_error_ GUARDED_BY(mu_);
};

}  // namespace moonpool::client
