// What one tenant's clients may reach through RDMA: its regions and its generation table, in
// protection domains of its own.  Never writable from outside.
//
// Threads: any; mu_ is a leaf lock, except that registering (slow) is done without it.
// Lifetime: shared by the service's sessions; the memory itself stays until Remove() has returned
// and no lane of the tenant is left that knew it (Service::Withdraw sees to that).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "protocol/mutex.h"
#include "rdma/nic_set.h"
#include "rdma/registration.h"

namespace moonpool::rdma {

class TenantMemory {
 public:
  // `generations`: the table's memory, which must stay.
  static Result<std::shared_ptr<TenantMemory>> Create(
      const NicSet& nics, char* generations, uint64_t generations_bytes,
      uint64_t slice_bytes = kDefaultSliceBytes,
      std::function<void(const std::string&)> refused = {});

  const Domains& domains() const { return *domains_; }

  // Registers and shows a region.  `writable`: the server may READ into it (over no iWARP device:
  // there that would take remote write access).  Blocks: the memory is pinned, and faulted in where
  // it was not.
  Status Add(uint32_t region, char* data, uint64_t bytes, bool writable) EXCLUDES(mu_);
  // The same for memory of a device: every NIC takes it, or it is not shown, so that
  // every lane reads it.
  Status AddPeer(uint32_t region, std::shared_ptr<PeerMemory> peer, char* data, uint64_t bytes,
                 bool writable) EXCLUDES(mu_);
  // Nobody is told of the region from now on; it is still registered.
  void Hide(uint32_t region) EXCLUDES(mu_);
  // Deregisters: READs of it fail.
  void Remove(uint32_t region) EXCLUDES(mu_);

  struct Reach {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t address = 0;
    uint32_t key = 0;
    uint64_t total = 0;
  };
  // The part of the region that `offset` is in, as a device shows it.
  std::optional<Reach> Find(uint32_t region, uint64_t offset, size_t device) const EXCLUDES(mu_);
  std::optional<Reach> Generations(size_t device) const;
  // For the server's own READs and WRITEs; null when there is no such region.
  std::shared_ptr<const Registration> Keys(uint32_t region) const EXCLUDES(mu_);

 private:
  struct Region {
    std::shared_ptr<Registration> registration;
    bool hidden = false;
  };
  static std::optional<Reach> ReachOf(const Registration& registration, uint64_t offset,
                                      size_t device);

  TenantMemory() = default;
  Status Show(uint32_t region, Result<std::unique_ptr<Registration>> made) EXCLUDES(mu_);

  std::unique_ptr<Domains> domains_;
  uint64_t slice_bytes_ = kDefaultSliceBytes;
  std::function<void(const std::string&)> refused_;
  std::unique_ptr<Registration> generations_;

  mutable Mutex mu_;
  std::unordered_map<uint32_t, Region> regions_ GUARDED_BY(mu_);
};

}  // namespace moonpool::rdma
