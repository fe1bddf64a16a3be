// The regions of one tenant, in DRAM and perhaps in CXL memory and on devices, and the extents in
// them.
//
// Life of an extent:
//   1. Reserve() / ReserveInArena() takes it off a region's free list, with a generation slot.
//   2. The writer fills it: the server in a shared region, the session's client in a write arena.
//   3. WriteHandle::Publish() makes it a BulkValue; or the handle is dropped (-> 5).
//   4. The last ValueRef goes: nobody may read it with the server's consent any more.
//   5. The generation is incremented, a full fence, and only then it is free again.
//
// Life of a region: active -> draining (nothing new is reserved in it; Evictor moves or evicts
// what lives in it) -> empty -> gone.  An arena is given up only when F_SEAL_WRITE proves that no
// client can write to it any more; until then it counts against the budget.
//
// On a device every client of the tenant may write to any region: there are no arenas.  What a client
// reserved there and did not commit may be written to by a copy of its that is on the way: it is free
// only when the client said that it is done with it, or WriterGone() that it is done with everything.
//
// Regions on devices are made, exported and withdrawn by threads of their own (DeviceGrowth):
// nobody else calls a driver.
//
// Threads: any; mu_ is a leaf lock but for DeviceGrowth's, adding_ is taken before it.  The budget must
// outlive the pool; the pool must outlive every handle.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/bulk_value.h"
#include "storage/device_growth.h"
#include "storage/extent_allocator.h"
#include "storage/generation_table.h"
#include "storage/memory_budget.h"
#include "storage/region.h"

namespace moonpool::storage {

class Exporter;

struct PoolOptions {
  uint64_t region_bytes = 1ull << 30;
  uint64_t arena_bytes = 256ull << 20;
  uint32_t generation_slots = 1u << 20;
  RegionOptions region;
  RegionOptions cxl_region;  // of regions in CXL memory, where there is any
};

// A device whose memory the pool uses, and how much of it.
struct PoolDevice {
  DeviceMemory* memory = nullptr;
  MemoryBudget* budget = nullptr;
};

struct RegionInfo {
  uint32_t id = 0;
  Region::Kind kind = Region::Kind::kShared;
  protocol::Tier tier = protocol::Tier::kDram;
  SessionId session = kNoSession;  // an arena's writer, while its session lives
  bool draining = false;
  bool exported = false;  // and not yet withdrawn
  std::string export_error;  // why it is not; empty: it was not tried yet
  bool huge_pages = false;
  std::string device;  // its name, of a region that is on one
  uint64_t bytes = 0;
  uint64_t populated_bytes = 0;
  uint64_t extent_bytes = 0;
  uint64_t extents = 0;
};

class ExtentPool {
 public:
  using Tier = protocol::Tier;

  // `cxl_budget`: of CXL memory; null: there is none, and nothing is ever reserved there.
  static Result<std::unique_ptr<ExtentPool>> Create(const PoolOptions& options,
                                                    MemoryBudget* budget,
                                                    MemoryBudget* cxl_budget = nullptr,
                                                    std::vector<PoolDevice> devices = {});
  ~ExtentPool();

  // --- writing -----------------------------------------------------------------------------
  // An extent the server itself writes.  `length` > 0.  kOutOfMemory when none is free.
  Result<WriteHandle> Reserve(uint64_t length, Tier tier = Tier::kDram);
  // An extent the session's client writes.  REQUIRES: the tier is of host memory.
  Result<WriteHandle> ReserveInArena(SessionId session, uint64_t length, Tier tier = Tier::kDram);
  // On a device.  `writer`: whose client writes it; none: the server copies to it.  Does not wait for the
  // device.  kBusy: no room, but a region is being made there (`may_grow`: or is now); growth()->Wait()
  // for that and try again.
  Result<WriteHandle> ReserveOnDevice(size_t device, uint64_t length, SessionId writer, bool may_grow)
      EXCLUDES(mu_);
  // Null: there are no devices.
  DeviceGrowth* growth() const { return growth_.get(); }
  // False when no region there, now or after making one, could hold so long a value.
  bool CouldHoldOnDevice(size_t device, uint64_t length) const;
  // The limit of its budget; what it gave so far, where it refused more.
  uint64_t DeviceCapacity(size_t device) const;
  // False when no region in DRAM, now or after making one, could hold so long a value at all.
  bool CouldHold(uint64_t length) const;
  // Faults in the memory of a reservation, where that was not done ahead: a device that writes to
  // it would otherwise find small pages, which take several times as long.  Blocks.
  void FaultIn(const WriteHandle& handle) EXCLUDES(mu_);
  // A second value showing the same extent (COPY).
  ValueRef Alias(const BulkValue& value);

  // --- reading -----------------------------------------------------------------------------
  const GenerationTable& generations() const { return *generations_; }
  // Null when there is no such region (any more).
  std::shared_ptr<Region> FindRegion(uint32_t id) const;
  std::vector<RegionInfo> Regions() const;

  // --- arenas ------------------------------------------------------------------------------
  // True when `session` may map the region read-write now.
  bool MayMapWritable(SessionId session, uint32_t region) const;
  // The session's client says that it has mapped its arena: seal it for everybody else.
  Status ArenaMapped(SessionId session, uint32_t region);
  // False until ArenaMapped(): nothing may be committed before.  On a device there is nothing to seal.
  bool ArenaSealed(uint32_t region) const;
  // The session is over; its arenas drain.  Its reservations must be gone.
  void SessionEnded(SessionId session);

  // --- clients that may write to what they reserved on devices, though it was dropped
  // Whether anything waits for WriterGone() of that session.
  bool HasLateWrites(SessionId writer) const EXCLUDES(mu_);
  // Nothing that its client has begun writes into memory of devices any more, and nothing will: what
  // waited for that is free.  REQUIRES: all of its handles are gone.
  void WriterGone(SessionId writer) EXCLUDES(mu_);
  // What waits for it, of all of them.
  uint64_t late_bytes() const EXCLUDES(mu_);

  // --- upkeep, on a background thread --------------------------------------------------------
  // Called without locks for regions clients should unmap.  Set once, before the first use.
  void set_on_gone(std::function<void(uint32_t region)> on_gone) { on_gone_ = std::move(on_gone); }
  // Makes regions reachable from outside: each once all of its memory was faulted in (and an arena
  // was sealed), until it is empty and about to go.  Set once, before the first use, and to null
  // before the exporter goes, which is before the pool and when no upkeep is under way any more:
  // that waits for the threads of devices to be out of it.
  void set_exporter(Exporter* exporter) EXCLUDES(mu_);
  // Does one slice of what is due: faulting memory in, making the next region ahead of need,
  // exporting and withdrawing one (one on a device: that begins), giving up empty ones.  True when
  // there is more to do at once. `populate_bytes` is about how much memory that slice may fault in.
  bool Maintain(uint64_t populate_bytes = kPopulateSlice);
  static constexpr uint64_t kPopulateSlice = 32ull << 20;
  // What follows, but for Draining() and GiveUpEmpty(), is about DRAM alone: in CXL memory nobody
  // waits for room, so regions there need not change hands.
  //
  // What is free where this writer cannot have it: in others' arenas, and for an arena's writer in
  // shared regions, but for the newest, where values move to.  Looks at every region.
  uint64_t FreeElsewhere(SessionId session) const;
  // Starts to drain the region that is cheapest to empty, so that its memory can be used
  // otherwise.  `sparing` says whose values may be lost when the other shared regions have no room
  // for them: any region's, only an arena's, nobody's.  `elsewhere_of`: only one that this writer
  // cannot have memory in.  One at a time: nothing more is begun while one is Emptying().  False: no
  // region qualifies.
  enum class Sparing { kNone, kShared, kAll };
  bool RetireOne(Sparing sparing = Sparing::kNone,
                 std::optional<SessionId> elsewhere_of = std::nullopt);
  // Whether a region's memory is on its way back: values are leaving it, or clients are about to
  // unmap it.  One that made no progress for a while (held values, a client that is stopped) does
  // not count.  Any thread.
  bool Emptying() const;
  // Whether a region is to be given up, however long that has taken.
  bool Drains() const;
  // Some values in draining regions, about `count`: other ones with each call, in turn.  May look in
  // vain; it holds the lock for a short while only.
  std::vector<ValueRef> Draining(size_t count);
  // Values of the draining region that has fewest left, at most `most` of them.  Any thread; looks at
  // every slot under the lock.
  std::vector<ValueRef> NearlyDrained(size_t most);
  // Gives up the draining regions that are empty, that are not exported, and that nobody can write to
  // any more; tells clients of all that are empty.  Any thread.  True when a region's memory came back.
  bool GiveUpEmpty() EXCLUDES(mu_);

  // --- a device that is lost -----------------------------------------------------------------
  // Nothing is reserved there any more, and its regions go when they are empty.
  void GiveUpDevice(size_t device) EXCLUDES(mu_);
  // Values there, at most `most`.  Looks at every slot under the lock.
  std::vector<ValueRef> OnDevice(size_t device, size_t most) EXCLUDES(mu_);

 private:
  friend class WriteHandle;
  friend class ValueRef;

  struct PoolRegion {
    PoolRegion(std::shared_ptr<Region> r, SessionId s)
        : region(std::move(r)), allocator(region->bytes()), session(s) {}
    std::shared_ptr<Region> region;
    ExtentAllocator allocator;
    SessionId session;  // of an arena
    bool sealed = false;
    bool draining = false;
    bool told_gone = false;
    bool populating = true;
    bool export_tried = false;
    bool exported = false;   // being exported, exported, or being withdrawn: it cannot be given up
    bool exporting = false;
    bool withdrawing = false;
    std::string export_error;
    uint64_t populated = 0;  // bytes faulted in ahead, from the start
    uint64_t extents = 0;
    std::chrono::steady_clock::time_point progress;  // of its draining
  };

  // What extents come from: regions of one kind, one writer, one tier and one device.
  struct Source {
    Region::Kind kind;
    SessionId session;
    Tier tier;
    size_t device = 0;
  };
  // Of one tier, or of one device.
  struct Shared {
    std::vector<PoolRegion*> regions;  // oldest first
    bool grow_ahead = true;            // make a region before it is needed
    // A device had no memory: not asked again before, and twice as long after each further refusal.
    std::chrono::steady_clock::time_point not_before;
    std::chrono::seconds pause{0};
  };
  ExtentPool(const PoolOptions& options, MemoryBudget* budget, MemoryBudget* cxl_budget,
             std::vector<PoolDevice> devices)
      : options_(options), budgets_{budget, cxl_budget}, devices_(std::move(devices)) {}

  MemoryBudget* budget(Tier tier, size_t device = 0) const {
    if (tier != Tier::kGpu) return budgets_[static_cast<size_t>(tier)];
    return device < devices_.size() ? devices_[device].budget : nullptr;
  }
  MemoryBudget* budget(const Region& region) const {
    return budget(region.tier(), region.device_number());
  }
  Shared& shared(Tier tier, size_t device = 0) REQUIRES(mu_) {
    return tier == Tier::kGpu ? shared_on_[device] : shared_[static_cast<size_t>(tier)];
  }
  Shared& shared(const Region& region) REQUIRES(mu_) {
    return shared(region.tier(), region.device_number());
  }
  Result<WriteHandle> ReserveIn(const Source& source, uint64_t length);
  std::optional<Extent> TakeExtent(const Source& source, uint64_t length) REQUIRES(mu_);
  // REQUIRES: the tier is of host memory.
  static uint32_t NextRegionId();
  Status AddRegion(const Source& source, uint64_t least_bytes) REQUIRES(adding_) EXCLUDES(mu_);
  // extent_pool_devices.cc
  // Begins to make a region that can hold so much.
  bool GrowOnDevice(size_t device, uint64_t least_bytes) REQUIRES(mu_);
  void GrowAheadOnDevice(size_t device) EXCLUDES(mu_);
  // On the device's thread.
  void MakeDeviceRegion(size_t device, uint64_t bytes) EXCLUDES(mu_);
  std::optional<Result<WriteHandle>> TryReserve(const Source& source, uint64_t length) EXCLUDES(mu_);
  Result<WriteHandle> ReserveAdded(const Source& source, uint64_t length, Status added) EXCLUDES(mu_);
  void DrainRegion(PoolRegion& region) REQUIRES(mu_);
  static bool InDram(const PoolRegion& region) { return region.region->tier() == Tier::kDram; }
  static bool Progresses(const PoolRegion& region);
  static void AddAliases(BulkValue* first, std::vector<ValueRef>* values);
  // extent_pool_upkeep.cc
  bool PopulateSlice(uint64_t bytes) EXCLUDES(mu_);
  bool ExportOne() EXCLUDES(mu_);
  bool WithdrawOne() EXCLUDES(mu_);
  void ExportNow(const std::shared_ptr<Region>& region) EXCLUDES(mu_);
  void WithdrawNow(const std::shared_ptr<Region>& region) EXCLUDES(mu_);
  // Here and now, or on the thread of the region's device.
  void RunFor(std::shared_ptr<Region> region,
              void (ExtentPool::*act)(const std::shared_ptr<Region>&)) EXCLUDES(mu_);
  // Null: there is none (any more).  Else LeaveExporter() follows.
  Exporter* EnterExporter() EXCLUDES(mu_);
  void LeaveExporter() REQUIRES(mu_);
  void GrowAhead(Tier tier) EXCLUDES(mu_);
  void FreeExtent(const Extent& extent) REQUIRES(mu_);

  // For the handles.
  ValueRef Publish(const Extent& extent, std::optional<uint32_t> crc) EXCLUDES(mu_);
  void Recycle(const Extent& extent, SessionId late_writer) EXCLUDES(mu_);
  void Destroy(BulkValue* value) EXCLUDES(mu_);

  const PoolOptions options_;
  MemoryBudget* const budgets_[protocol::kTiers];  // null: there is no such tier; kGpu: see devices_
  const std::vector<PoolDevice> devices_;
  std::function<void(uint32_t)> on_gone_;
  std::unique_ptr<GenerationTable> generations_;  // its free list under mu_

  // Who finds no room waits for the region that another thread adds.  Before mu_.
  mutable Mutex adding_;
  mutable Mutex mu_;
  Exporter* exporter_ GUARDED_BY(mu_) = nullptr;
  int within_exporter_ GUARDED_BY(mu_) = 0;
  CondVar exporter_left_;
  std::unordered_map<uint32_t, std::unique_ptr<PoolRegion>> regions_ GUARDED_BY(mu_);
  // Regions new extents may come from: shared ones by tier, and arenas by session.
  Shared shared_[protocol::kTiers] GUARDED_BY(mu_);
  Shared shared_on_[kMaxDevices] GUARDED_BY(mu_);
  std::array<std::atomic<bool>, kMaxDevices> refused_{};  // the device's last answer
  std::unordered_map<SessionId, std::vector<Extent>> late_ GUARDED_BY(mu_);  // by who writes there yet
  uint64_t late_bytes_ GUARDED_BY(mu_) = 0;
  std::unordered_map<SessionId, std::vector<PoolRegion*>> arenas_ GUARDED_BY(mu_);
  // By generation slot, the values that show that extent, linked through next_alias_.
  std::vector<BulkValue*> by_slot_ GUARDED_BY(mu_);
  size_t drain_cursor_ GUARDED_BY(mu_) = 0;  // the slot Draining() looked at last
  std::unique_ptr<DeviceGrowth> growth_;     // its threads use the rest
};

}  // namespace moonpool::storage
