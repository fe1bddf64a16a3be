// Protection domains, and memory registered in them.
//
// Domains: one protection domain per device: those of one tenant on a server, or those of one
// Client. Registration: a range of memory in every domain of one Domains, cut into slices where it
// is long: some NICs slow down when a registration is larger than their cache of translations
// covers. Threads: const functions any.  Domains must outlive its registrations and the queue pairs
// in it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "protocol/unique_fd.h"
#include "rdma/verbs.h"

namespace moonpool::rdma {

// Devices of one host that are used at a time.
inline constexpr size_t kMaxDevices = 16;
// Mooncake's users measured a drop beyond this on ConnectX NICs.
inline constexpr uint64_t kDefaultSliceBytes = 3584ull << 20;

class Domains {
 public:
  static Result<std::unique_ptr<Domains>> Create(std::span<const std::shared_ptr<Device>> devices);

  size_t size() const { return domains_.size(); }
  ProtectionDomain& at(size_t device) const { return *domains_[device]; }
  Device& device(size_t device) const { return *devices_[device]; }
  // size() when it is none of these.
  size_t IndexOf(const Device* device) const;

 private:
  Domains() = default;
  std::vector<std::shared_ptr<Device>> devices_;
  std::vector<std::unique_ptr<ProtectionDomain>> domains_;
};

// Memory of another device (a GPU), which the processor must not touch and NICs may reach.
//
// Remembers which NICs refused it, so that each is asked once: their numbers are those of Domains,
// which are the same in all Domains of one NicSet.
// Threads: any.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  // [data, data + bytes) as a dma-buf, and where in it that begins.
  struct File {
    UniqueFd fd;
    uint64_t offset = 0;
  };
  virtual Result<File> Export(char* data, uint64_t bytes) = 0;
  // What NICs have written into it until now is there for whoever looks after this.
  virtual Status Flush() = 0;

  bool refused(size_t nic) const {
    return (refused_.load(std::memory_order_relaxed) >> nic & 1) != 0;
  }
  bool any_refused() const { return refused_.load(std::memory_order_relaxed) != 0; }
  void Refuse(size_t nic) { refused_.fetch_or(1u << nic, std::memory_order_relaxed); }

 private:
  std::atomic<uint32_t> refused_{0};
};

// What one slice is called on each device.
struct SliceKeys {
  struct Keys {
    uint32_t local = 0;
    uint32_t remote = 0;
    bool valid = false;  // this device has it
  };
  std::array<Keys, kMaxDevices> on{};
  bool peer = false;  // PeerMemory: its bytes cannot pass through memory of ours
};

class Registration {
 public:
  // `slice_bytes`: the most for one registration.  Devices that refuse are left out, and told
  // about; an error when all do.
  static Result<std::unique_ptr<Registration>> Create(
      const Domains& domains, char* data, uint64_t bytes, uint32_t access,
      uint64_t slice_bytes = kDefaultSliceBytes,
      const std::function<void(const std::string&)>& refused = {});

  // The same for memory of a device, on the NICs that take it, or only if all do.
  enum class Needs : uint8_t { kAnyNic, kEveryNic };
  static Result<std::unique_ptr<Registration>> CreatePeer(
      std::shared_ptr<PeerMemory> peer, const Domains& domains, char* data, uint64_t bytes,
      uint32_t access, uint64_t slice_bytes = kDefaultSliceBytes,
      const std::function<void(const std::string&)>& refused = {}, Needs needs = Needs::kAnyNic);

  char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Null for host memory.
  PeerMemory* peer() const { return peer_.get(); }

  struct Part {
    uint64_t offset = 0;  // of the slice, from the start of the range
    uint64_t length = 0;
    const SliceKeys* keys = nullptr;
  };
  // The slice that byte `offset` is in.  REQUIRES: offset < bytes()
  Part At(uint64_t offset) const;
  size_t slices() const { return keys_.size(); }

 private:
  Registration(char* data, uint64_t bytes, uint64_t slice_bytes, std::shared_ptr<PeerMemory> peer);
  // `file`: of the peer's, or null.
  Status Fill(const Domains& domains, const PeerMemory::File* file, uint32_t access,
              const std::function<void(const std::string&)>& refused, Needs needs);

  const std::shared_ptr<PeerMemory> peer_;
  char* const data_;
  const uint64_t bytes_;
  const uint64_t slice_bytes_;
  std::vector<SliceKeys> keys_;
  std::vector<std::unique_ptr<Registered>> registered_;
};

}  // namespace moonpool::rdma
