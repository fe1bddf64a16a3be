// One isolation domain: its keys, its regions and generation table, its quota.
//
// Nothing of a tenant is reachable from another: not its keys, not its memory files, not its
// quota.  Sessions, tokens and connections carry the tenant they belong to.
//
// Threads: any, except Maintain(): one upkeep thread.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/status.h"
#include "storage/bulk_policy.h"
#include "storage/cxl_tier.h"
#include "storage/extent_pool.h"
#include "storage/gpu_tier.h"
#include "storage/keyspace.h"
#include "storage/memory_budget.h"
#include "storage/memory_queue.h"
#include "storage/ssd_tier.h"

namespace moonpool::storage {

struct TenantOptions {
  std::string name = "default";
  uint64_t quota_bytes = 1ull << 30;
  MaxmemoryPolicy policy = MaxmemoryPolicy::kAllKeysPrefix;
  std::vector<PartitionOptions> partitions;
  double high_watermark = 0.95;  // share of the quota at which eviction starts
  double evict_ratio = 0.05;     // and goes on until `high_watermark - evict_ratio`
  double cold_share = 0.1;       // see BulkPolicy
  uint64_t region_bytes = 0;     // 0: a sixteenth of the quota, at most 1 GiB
  uint64_t arena_bytes = 0;      // 0: a quarter of region_bytes
  RegionOptions region;
  CxlTierOptions cxl;
  GpuTierOptions gpu;
};

// Where a new value is to be: in a tier, of devices on one of some.
struct Preference {
  using Tier = protocol::Tier;
  Preference(Tier wanted = Tier::kDram, DeviceSet on = kAllDevices)  // NOLINT: a tier is one
      : tier(wanted), devices(on) {}
  Tier tier;
  DeviceSet devices;
  // By device: those of a lower rank come first, of one rank the emptiest.
  std::array<uint8_t, kMaxDevices> ranks{};
};

class Tenant {
 public:
  static Result<std::unique_ptr<Tenant>> Create(const TenantOptions& options);
  ~Tenant();

  const std::string& name() const { return name_; }
  Keyspace& keyspace() { return *keyspace_; }
  ExtentPool& pool() { return *pool_; }
  const MemoryBudget& budget() const { return budget_; }
  MemoryBudget& budget() { return budget_; }

  // Opens the SSD tier and fills the keyspace with what is on it.  At the start, before anything
  // else uses the tenant.
  Status OpenSsd(const SsdTierOptions& options, int64_t now_ms);
  // Ends what moves values within memory, before SsdTier::Save(); nobody else uses the tenant any
  // more.
  void CloseMoves() {
    if (pool_ != nullptr && pool_->growth() != nullptr) pool_->growth()->Stop();
    if (gpu_ != nullptr) gpu_->Stop();  // what it calls meanwhile finds it
    gpu_.reset();
    cxl_.reset();
  }
  // Ends that too.
  void CloseSsd() { ssd_.reset(); }
  // Null: there is none.
  SsdTier* ssd() { return ssd_.get(); }
  // Likewise.
  CxlTier* cxl() { return cxl_.get(); }
  GpuTier* gpu() { return gpu_.get(); }
  const MemoryBudget& cxl_budget() const { return cxl_budget_; }
  const MemoryBudget& gpu_budget(size_t device) const { return *gpu_budgets_[device]; }
  // What values can have of it: less than the budget's limit where the device gave less.
  uint64_t gpu_capacity(size_t device) const { return pool_->DeviceCapacity(device); }
  // Reads of values in CXL memory, and on devices.
  uint64_t cxl_hits() const { return bulk_policy_.cxl_hits(); }
  uint64_t gpu_hits() const { return bulk_policy_.gpu_hits(); }

  // Somebody reads along a chain and has come to this key: what follows it on the SSD, in its
  // partition, begins to come up.
  void ReadAhead(uint64_t hash, uint8_t partition);
  ReadAheadWindow& read_ahead() { return bulk_policy_.read_ahead(); }

  // Extents for a value of `length` bytes; evicts to make room.  kOutOfMemory: nothing is
  // evictable, or the value fits into no region.  kBusy: memory is on its way (values to the SSD,
  // regions that values and clients leave); wait in memory_queue() and try again.
  // In the tier that is preferred if there is one and it has room, else in DRAM.  What the server
  // writes itself is never on a device.
  // `growing`: null, or the writer waits where a region is being made on devices: then they are in
  // *growing, and kBusy comes back; wait in pool().growth() and try again.
  using Tier = protocol::Tier;
  Result<WriteHandle> Reserve(uint64_t length, int64_t now_ms, const Preference& preference = {});
  Result<WriteHandle> ReserveInArena(SessionId session, uint64_t length, int64_t now_ms,
                                     const Preference& preference = {},
                                     DeviceSet* growing = nullptr);

  MemoryQueue& memory_queue() { return memory_queue_; }

  // Before a command that may take heap memory.  False: over the quota, nothing evictable.
  bool MakeRoom(int64_t now_ms) {
    return budget_.used_bytes() <= budget_.limit() || EvictToLimit(now_ms);
  }

  // How much of the memory is pinned for readers though no key refers to it any more, and so how
  // far new leases and holds must be cut: writers must never wait for readers.
  enum class Pressure { kNone, kShortLeases, kNoLeases };
  Pressure LeasePressure() const {
    const uint64_t limit = budget_.limit();
    const uint64_t unlinked = budget_.unlinked_bytes();
    if (unlinked > limit / 4) return Pressure::kNoLeases;
    const bool above = static_cast<double>(budget_.used_bytes()) >
                       high_watermark_.load(std::memory_order_relaxed) *
                           static_cast<double>(limit);
    return above || unlinked > limit / 8 ? Pressure::kShortLeases : Pressure::kNone;
  }

  // For that value: one on a device takes DRAM from nobody, and the device has its own watermark.
  Pressure LeasePressure(const BulkValue& value) const;

  // Holds of all its sessions.
  std::atomic<uint64_t>& holds() { return holds_; }

  void SetWatermarks(double high, double evict_ratio);
  void SetColdShare(double share) { bulk_policy_.set_cold_share(share); }
  void SetQuota(uint64_t bytes) { budget_.set_limit(bytes); }

  // One slice of background work: expiry, eviction above the watermark, faulting memory in,
  // draining regions, sweeping what KV.DROP voided.  True when there is more to do at once.
  bool Maintain(int64_t now_ms);
  // After it, on the same thread: nothing waits for the next slice, and memory is used as it was
  // when this was asked last.
  bool Quiet();

 private:
  enum class Mercy { kHeldAndPinned, kPinned, kNone };  // what a round of eviction spares

  using Among = BulkPolicy::Among;

  explicit Tenant(const TenantOptions& options);
  void OpenCxl(const CxlTierOptions& options);
  void OpenGpu(const GpuTierOptions& options);
  // What came of trying to evict a value.
  enum class Outcome {
    kFreed,
    kComing,  // it is on its way to a lower tier
    kKept,    // pinned, or gone
    kWait,    // too many are on their way
  };
  Outcome Evict(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins,
                Among among = Among::kPolicy);
  // To CXL memory; nullopt: not there.
  std::optional<Outcome> EvictToCxl(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins);
  // From a device to DRAM; nullopt: not there.
  std::optional<Outcome> EvictFromGpu(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins);
  template <typename Demote>
  Outcome EvictToMemory(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins,
                        Demote&& demote);
  // Out of memory.
  Outcome EvictFromMemory(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins);
  // For the tier's own threads.
  // `evicts`: as a write does.
  Result<WriteHandle> ReserveAndWait(uint64_t length, int64_t wait_ms, bool evicts = false);
  // With that many bytes more in use eviction would be over, below the low watermark.
  bool Roomy(uint64_t bytes) const;
  // DRAM that will come free without another victim.
  uint64_t coming_bytes() const {
    return (ssd_ != nullptr ? ssd_->queued_bytes(Tier::kDram) : 0) +
           (cxl_ != nullptr ? cxl_->queued_bytes() : 0);
  }
  // Likewise: on that device.
  uint64_t coming_bytes_on(size_t device) const {
    return (ssd_ != nullptr ? ssd_->queued_bytes(Tier::kGpu) : 0) + gpu_->leaving_bytes(device);
  }
  // Who takes the memory of those that are evicted.
  enum class Taker : uint8_t { kWrite, kLoad };
  Result<WriteHandle> ReserveWith(SessionId session, uint64_t length, int64_t now_ms,
                                  Taker taker = Taker::kWrite);
  // In CXL memory; evicts there.  kOutOfMemory, kBusy as Reserve().
  Result<WriteHandle> ReserveInCxl(SessionId session, uint64_t length, int64_t now_ms);
  // On one of its devices; evicts only where no other has room, and no more than `length`.
  // kOutOfMemory, kBusy likewise; `writer` as for ReserveOnDevice(), *growing as for ReserveInArena().
  Result<WriteHandle> ReserveInGpu(uint64_t length, const Preference& preference, SessionId writer,
                                   int64_t now_ms, DeviceSet* growing);
  bool EvictToLimit(int64_t now_ms);
  // Evicts one value or a handful of entries; returns the bytes that will come back, now or when
  // they are on the SSD; 0: nothing is evictable, or too much is on its way.
  uint64_t EvictOne(int64_t now_ms);
  uint64_t EvictOneBulk(int64_t now_ms, Taker taker = Taker::kWrite);
  // Of those that came up cold, where they are many.
  uint64_t EvictOneCold(int64_t now_ms);
  uint64_t EvictOneInCxl(int64_t now_ms);
  uint64_t EvictOneInGpu(size_t device, int64_t now_ms);
  uint64_t EvictOneIn(Tier tier, Among among, size_t device, int64_t now_ms);
  // Of one partition; nullopt: nothing of it could go, but another's may.
  std::optional<uint64_t> EvictOneBulk(uint8_t partition, Among among, int64_t now_ms, Mercy mercy,
                                       size_t device = 0);
  uint64_t EvictOneInline(int64_t now_ms);
  // Moves a small value into an extent, and from there to the SSD like any other.
  uint64_t DemoteInline(const Keyspace::Movable& victim, int64_t now_ms);
  bool MaintainOnce(int64_t now_ms);
  bool EvictAboveWatermark(int64_t now_ms);
  bool MaintainCxl(int64_t now_ms);
  bool MaintainGpu(int64_t now_ms);
  // Its keys go.  True when there are more.
  bool DropDevice(size_t device, int64_t now_ms);
  bool MaintainSsd(int64_t now_ms);
  bool DrainSome(int64_t now_ms);
  // Evicts what is left in a draining region and gives the region up; false: none could be.
  bool FinishDraining(int64_t now_ms);

  const std::string name_;
  MemoryBudget budget_;
  MemoryBudget cxl_budget_;
  std::vector<std::unique_ptr<MemoryBudget>> gpu_budgets_;  // by device
  std::atomic<double> high_watermark_;
  std::atomic<double> evict_ratio_;
  std::atomic<uint64_t> holds_{0};
  // How many bytes bulk values gave beyond their share of the evictions; inline ones, when negative.
  std::atomic<int64_t> bulk_gave_{0};
  std::atomic<int64_t> finish_draining_after_ms_{0};  // the last try was in vain
  std::atomic<int64_t> evict_inline_after_ms_{0};     // so was that one, and looked at much
  bool evicting_ = false;  // Maintain()'s: between the two watermarks, on the way down
  bool evicting_in_cxl_ = false;
  struct DeviceUpkeep {
    bool evicting = false;
    bool given_up = false;
    int64_t look_again_ms = 0;
    int64_t probe_ms = 0;
  };
  std::array<DeviceUpkeep, kMaxDevices> device_upkeep_{};
  bool quiet_ = false;         // Quiet()'s last answer
  uint64_t memory_seen_ = 0;  // what it saw
  BulkPolicy bulk_policy_;
  std::unique_ptr<ExtentPool> pool_;
  std::unique_ptr<Keyspace> keyspace_;  // its values must go before the pool
  MemoryQueue memory_queue_;
  std::unique_ptr<SsdTier> ssd_;
  std::unique_ptr<CxlTier> cxl_;
  std::unique_ptr<GpuTier> gpu_;
};

}  // namespace moonpool::storage
