// Tenant: memory for a value, and who has to go for it.
#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <span>
#include <utility>

#include "storage/clock.h"
#include "storage/tenant.h"

namespace moonpool::storage {

namespace {

// A reservation that still fails after this much was evicted for it: what was freed lies where it
// does not help (other sessions' arenas, scattered pieces).  Then a region is to be emptied.
constexpr uint64_t kEvictionFactor = 16;
constexpr uint64_t kEvictionFloor = 64ull << 20;
// Before that, once a few times its length was evicted in vain, regions that are being emptied are
// emptied for good: so many values at a time, and not again for a while when that gave none back.
constexpr uint64_t kFinishFactor = 4;
constexpr size_t kMostFinished = 4096;
constexpr int64_t kFinishPauseMs = 100;
// Values that go with one that a writer waits for, at most.
constexpr int kMostAhead = 64;

}  // namespace

Result<WriteHandle> Tenant::ReserveAndWait(uint64_t length, int64_t wait_ms, bool evicts) {
  const int64_t until_ms = UnixMs() + wait_ms;
  for (bool again = false;; again = true) {
    auto handle =
        ReserveWith(kNoSession, length, UnixMs(), evicts ? Taker::kWrite : Taker::kLoad);
    const int64_t now_ms = UnixMs();
    if (handle || now_ms >= until_ms) return handle;
    const ErrorCode code = handle.error().code;
    // What is not evictable may be held by readers whose leases end, and by others that come up.
    const bool comes = code == ErrorCode::kBusy ||
                       (code == ErrorCode::kOutOfMemory && budget_.unlinked_bytes() > 0 &&
                        pool_->CouldHold(length));
    if (!comes) return handle;
    const auto woken = std::make_shared<std::promise<void>>();
    memory_queue_.Wait(length, until_ms, again, [woken] { woken->set_value(); });
    woken->get_future().wait_for(std::chrono::milliseconds(until_ms - now_ms));
  }
}

Result<WriteHandle> Tenant::Reserve(uint64_t length, int64_t now_ms,
                                    const Preference& preference) {
  return ReserveInArena(kNoSession, length, now_ms, preference);
}

Result<WriteHandle> Tenant::ReserveInArena(SessionId session, uint64_t length, int64_t now_ms,
                                           const Preference& preference, DeviceSet* growing) {
  if (preference.tier == Tier::kCxl && cxl_ != nullptr && cxl_->Holds(length)) {
    if (auto handle = ReserveInCxl(session, length, now_ms)) return handle;
  }
  if (preference.tier == Tier::kGpu && gpu_ != nullptr && session != kNoSession &&
      gpu_->Holds(length)) {
    DeviceSet on = 0;
    auto handle = ReserveInGpu(length, preference, session, now_ms, &on);
    if (handle) return handle;
    if (growing != nullptr && on != 0) {
      *growing = on;
      return handle;
    }
  }
  return ReserveWith(session, length, now_ms);
}

Result<WriteHandle> Tenant::ReserveInGpu(uint64_t length, const Preference& preference,
                                         SessionId writer, int64_t now_ms, DeviceSet* growing) {
  const std::vector<DeviceMemory*>& all = gpu_->devices();
  struct Candidate {
    size_t device;
    uint64_t free;
  };
  std::array<Candidate, kMaxDevices> candidates;
  size_t count = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if ((preference.devices >> i & 1) == 0 || all[i]->lost()) continue;
    const uint64_t capacity = gpu_capacity(i);
    candidates[count++] = {i, capacity - std::min(gpu_budgets_[i]->used_bytes(), capacity)};
  }
  if (count == 0) return Fail(ErrorCode::kUnavailable, "there is no such device");
  const std::span<Candidate> order = std::span(candidates).first(count);
  std::stable_sort(order.begin(), order.end(), [&](const Candidate& a, const Candidate& b) {
    const uint8_t rank = preference.ranks[a.device], other = preference.ranks[b.device];
    return rank != other ? rank < other : a.free > b.free;
  });
  // One grows, the first that can; but who finds room on another of its rank takes that.
  Result<WriteHandle> handle;
  *growing = 0;
  uint8_t rank = 0;
  for (const Candidate& candidate : order) {
    if (*growing != 0 && preference.ranks[candidate.device] != rank) break;
    rank = preference.ranks[candidate.device];
    handle = pool_->ReserveOnDevice(candidate.device, length, writer, *growing == 0);
    if (handle) return handle;
    if (handle.error().code == ErrorCode::kBusy) *growing |= DeviceSet{1} << candidate.device;
  }
  if (*growing != 0) return Fail(ErrorCode::kBusy, "a region is being made on a device");
  // Room for the next: values leave by copies, which nobody waits for here.
  for (const Candidate& candidate : order) {
    const size_t device = candidate.device;
    if (!pool_->CouldHoldOnDevice(device, length)) continue;
    bool any = false;
    for (uint64_t evicted = coming_bytes_on(device); evicted < length;) {
      const uint64_t bytes = EvictOneInGpu(device, now_ms);
      if (bytes == 0) break;
      evicted += bytes;
      any = true;
    }
    // Those that were dropped left room already.
    if (any) handle = pool_->ReserveOnDevice(device, length, writer, false);
    if (handle) return handle;
    if (gpu_->leaving_bytes(device) > 0) {
      return Fail(ErrorCode::kBusy, handle.error().message + " on the device yet");
    }
  }
  return handle;
}

Result<WriteHandle> Tenant::ReserveInCxl(SessionId session, uint64_t length, int64_t now_ms) {
  const auto reserve = [&] {
    return session == kNoSession ? pool_->Reserve(length, Tier::kCxl)
                                 : pool_->ReserveInArena(session, length, Tier::kCxl);
  };
  Result<WriteHandle> handle = reserve();
  const auto coming = [&] { return ssd_ != nullptr ? ssd_->queued_bytes(Tier::kCxl) : 0; };
  const uint64_t most = std::max(length * kEvictionFactor, kEvictionFloor);
  for (uint64_t evicted = 0; !handle && evicted < most && coming() < length;) {
    const uint64_t bytes = EvictOneInCxl(now_ms);
    if (bytes == 0) break;
    evicted += bytes;
    handle = reserve();
  }
  if (!handle && coming() > 0) {
    return Fail(ErrorCode::kBusy, handle.error().message + " in CXL memory yet");
  }
  return handle;
}

Result<WriteHandle> Tenant::ReserveWith(SessionId session, uint64_t length, int64_t now_ms,
                                        Taker taker) {
  const auto reserve = [&] {
    return session == kNoSession ? pool_->Reserve(length) : pool_->ReserveInArena(session, length);
  };
  Result<WriteHandle> handle = reserve();
  if (handle || handle.error().code != ErrorCode::kOutOfMemory) return handle;
  if (!pool_->CouldHold(length)) {
    return Fail(ErrorCode::kOutOfMemory,
                "a value of " + std::to_string(length) +
                    " bytes fits into no region; raise region-size or maxmemory");
  }
  // Whether memory is, or can be made to be, on its way.
  const auto retire = [&](std::optional<SessionId> elsewhere_of = std::nullopt) {
    using Sparing = ExtentPool::Sparing;
    const bool keep_all = !keyspace_->partitions().evicts();
    return pool_->RetireOne(keep_all ? Sparing::kAll : Sparing::kShared, elsewhere_of);
  };
  // As much is free as eviction ever frees ahead, but not where it helps, as in arenas that lie
  // idle.  What is free in others' arenas is not lost, though: they need evict nothing for their
  // next writes.  So up to there eviction simply goes on.
  const auto scattered = [&] {
    return static_cast<double>(pool_->FreeElsewhere(session)) >
           evict_ratio_.load(std::memory_order_relaxed) * static_cast<double>(budget_.limit());
  };
  // What comes up takes the place of what came up before, wherever else there is room.
  for (uint64_t evicted = 0; taker == Taker::kLoad && evicted < kFinishFactor * length;) {
    const uint64_t bytes = EvictOneCold(now_ms);
    if (bytes == 0) break;
    evicted += bytes;
    handle = reserve();
    if (handle || handle.error().code != ErrorCode::kOutOfMemory) return handle;
  }
  if (scattered()) retire(session);
  const uint64_t most = std::max(length * kEvictionFactor, kEvictionFloor);
  const auto busy = [&] {
    return Fail(ErrorCode::kBusy, handle.error().message + " yet: memory is being emptied");
  };
  // Who waits for a value to go down will soon write more: others go with it, so that the disk has
  // more to do at a time than that one, but none that upkeep would spare.
  const auto evict_ahead = [&] {
    const auto limit = static_cast<double>(budget_.limit());
    const double ratio = evict_ratio_.load(std::memory_order_relaxed);
    const double low = (high_watermark_.load(std::memory_order_relaxed) - ratio) * limit;
    for (int i = 0; i < kMostAhead; ++i) {
      const auto coming = static_cast<double>(coming_bytes());
      const bool enough = static_cast<double>(budget_.used_bytes()) - coming <= low;
      if (enough || coming >= ratio * limit || EvictOneBulk(now_ms) == 0) return;
    }
  };
  for (uint64_t evicted = 0; evicted < most;) {
    if (coming_bytes() >= length) {
      if (taker == Taker::kWrite) evict_ahead();
      return busy();
    }
    const bool in_vain = evicted >= kFinishFactor * length;
    const bool waits = evicted >= length && Roomy(length) && pool_->Emptying();
    const bool finished = (in_vain || waits) && FinishDraining(now_ms);
    if (!finished && (waits || (in_vain && scattered() && retire(session)))) return busy();
    const uint64_t bytes = finished ? 0 : EvictOneBulk(now_ms, taker);
    if (!finished && bytes == 0 && !FinishDraining(now_ms)) break;
    evicted += bytes;
    handle = reserve();
    if (handle || handle.error().code != ErrorCode::kOutOfMemory) return handle;
  }
  if (coming_bytes() > 0 || retire()) return busy();
  return handle;
}

Tenant::Pressure Tenant::LeasePressure(const BulkValue& value) const {
  if (value.device() == nullptr) return LeasePressure();
  const size_t device = value.device_number();
  const double watermark =
      gpu_->options().high_watermark * static_cast<double>(gpu_capacity(device));
  return static_cast<double>(gpu_budgets_[device]->used_bytes()) > watermark
             ? Pressure::kShortLeases
             : Pressure::kNone;
}

bool Tenant::Roomy(uint64_t bytes) const {
  const double low = high_watermark_.load(std::memory_order_relaxed) -
                     evict_ratio_.load(std::memory_order_relaxed);
  return static_cast<double>(budget_.used_bytes() + bytes) <=
         low * static_cast<double>(budget_.limit());
}

bool Tenant::FinishDraining(int64_t now_ms) {
  if (!keyspace_->partitions().evicts() ||
      now_ms < finish_draining_after_ms_.load(std::memory_order_relaxed)) {
    return false;
  }
  for (const ValueRef& value : pool_->NearlyDrained(kMostFinished)) Evict(value, now_ms, true);
  const bool given_up = pool_->GiveUpEmpty();
  if (!given_up) {
    finish_draining_after_ms_.store(now_ms + kFinishPauseMs, std::memory_order_relaxed);
  }
  return given_up;
}

}  // namespace moonpool::storage
