// ExtentPool: what becomes of regions, from sealing arenas to emptying those that are to go.
#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "storage/extent_pool.h"

namespace moonpool::storage {

namespace {

// One look for values in draining regions: less than a millisecond when each slot is a cache miss.
constexpr size_t kSlotsPerLook = 8192;

// A draining region without progress for so long is not waited for.  Clients unmap within
// milliseconds, on a busy machine within tenths of seconds.
constexpr std::chrono::seconds kPatience{1};

}  // namespace

bool ExtentPool::MayMapWritable(SessionId session, uint32_t id) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(id);
  // One that drains meanwhile may be mapped for what is reserved in it: that is yet to be written.
  return found != regions_.end() && session != kNoSession &&
         found->second->session == session && !found->second->sealed &&
         (!found->second->draining || found->second->extents > 0);
}

Status ExtentPool::ArenaMapped(SessionId session, uint32_t id) {
  std::shared_ptr<Region> region;
  {
    MutexLock lock(mu_);
    const auto found = regions_.find(id);
    if (found == regions_.end() || session == kNoSession || found->second->session != session) {
      return Fail(ErrorCode::kPermissionDenied,
                  "region " + std::to_string(id) + " is no arena of this session");
    }
    if (found->second->sealed) return {};
    region = found->second->region;
  }
  if (Status sealed = region->SealArena(); !sealed) return sealed;
  MutexLock lock(mu_);
  const auto found = regions_.find(id);
  if (found != regions_.end()) found->second->sealed = true;
  return {};
}

bool ExtentPool::ArenaSealed(uint32_t id) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(id);
  return found != regions_.end() &&
         (found->second->sealed || found->second->region->device() != nullptr);
}

void ExtentPool::SessionEnded(SessionId session) {
  MutexLock lock(mu_);
  const auto arenas = arenas_.find(session);
  if (arenas == arenas_.end()) return;
  for (PoolRegion* arena : std::vector<PoolRegion*>(arenas->second)) DrainRegion(*arena);
  arenas_.erase(session);
}

void ExtentPool::DrainRegion(PoolRegion& region) {
  region.draining = true;
  region.progress = std::chrono::steady_clock::now();
  region.populating = false;
  if (region.region->kind() == Region::Kind::kShared) {
    std::erase(shared(*region.region).regions, &region);
  } else {
    std::erase(arenas_[region.session], &region);
  }
}

bool ExtentPool::Progresses(const PoolRegion& region) {
  return region.draining && InDram(region) &&
         std::chrono::steady_clock::now() - region.progress < kPatience;
}

bool ExtentPool::Emptying() const {
  MutexLock lock(mu_);
  return std::any_of(regions_.begin(), regions_.end(),
                     [](const auto& entry) { return Progresses(*entry.second); });
}

bool ExtentPool::Drains() const {
  MutexLock lock(mu_);
  return std::any_of(regions_.begin(), regions_.end(),
                     [](const auto& entry) { return entry.second->draining; });
}

uint64_t ExtentPool::FreeElsewhere(SessionId session) const {
  uint64_t free = 0;
  MutexLock lock(mu_);
  for (const auto& [id, region] : regions_) {
    if (region->draining || region->region->kind() == Region::Kind::kShared) continue;
    if (InDram(*region) && region->session != session) free += region->allocator.free_bytes();
  }
  if (session == kNoSession) return free;
  const std::vector<PoolRegion*>& shared = shared_[static_cast<size_t>(Tier::kDram)].regions;
  for (size_t i = 0; i + 1 < shared.size(); ++i) free += shared[i]->allocator.free_bytes();
  return free;
}

bool ExtentPool::RetireOne(Sparing sparing, std::optional<SessionId> elsewhere_of) {
  MutexLock lock(mu_);
  const std::vector<PoolRegion*>& shared_regions = shared(Tier::kDram).regions;
  uint64_t shared_free = 0;
  for (const PoolRegion* region : shared_regions) shared_free += region->allocator.free_bytes();
  PoolRegion* best = nullptr;
  double best_share = 2;
  for (const auto& [id, region] : regions_) {
    if (Progresses(*region)) return true;
    if (region->draining || !InDram(*region)) continue;
    const bool shared = region->region->kind() == Region::Kind::kShared;
    if (shared && shared_regions.size() < 2) continue;
    if (elsewhere_of == region->session) continue;  // shared ones are of kNoSession
    // Its writer has yet to map it: the emptiest, and the one that will be filled first.
    if (!shared && !region->sealed && region->extents > 0) continue;
    const uint64_t free = region->allocator.free_bytes();
    const uint64_t used = region->region->bytes() - free;
    const bool fits = used <= shared_free - (shared ? free : 0);
    if (!fits && (sparing == Sparing::kAll || (shared && sparing == Sparing::kShared))) continue;
    const double share =
        static_cast<double>(used) / static_cast<double>(region->region->bytes());
    if (share < best_share) {
      best = region.get();
      best_share = share;
    }
  }
  if (best == nullptr) return false;
  DrainRegion(*best);
  return true;
}

std::vector<ValueRef> ExtentPool::Draining(size_t count) {
  std::vector<ValueRef> values;
  MutexLock lock(mu_);
  std::vector<const Region*> draining;
  for (const auto& [id, region] : regions_) {
    if (region->draining && region->extents > 0) draining.push_back(region->region.get());
  }
  if (draining.empty()) return values;
  const size_t slots = std::min(by_slot_.size(), kSlotsPerLook);
  for (size_t i = 0; i < slots && values.size() < count; ++i) {
    if (++drain_cursor_ >= by_slot_.size()) drain_cursor_ = 0;
    BulkValue* const first = by_slot_[drain_cursor_];
    if (first == nullptr ||
        std::find(draining.begin(), draining.end(), first->extent_.region) == draining.end()) {
      continue;
    }
    AddAliases(first, &values);
  }
  return values;
}

// All values of one slot that are not about to leave by themselves.
void ExtentPool::AddAliases(BulkValue* first, std::vector<ValueRef>* values) {
  for (BulkValue* value = first; value != nullptr; value = value->next_alias_) {
    uint32_t references = value->references_.load(std::memory_order_relaxed);
    while (references > 0 && !value->references_.compare_exchange_weak(
                                 references, references + 1, std::memory_order_relaxed)) {
    }
    if (references > 0) values->push_back(ValueRef::Adopt(value));
  }
}

std::vector<ValueRef> ExtentPool::NearlyDrained(size_t most) {
  std::vector<ValueRef> values;
  MutexLock lock(mu_);
  const PoolRegion* fewest = nullptr;
  for (const auto& [id, region] : regions_) {
    if (!region->draining || region->extents == 0 || !InDram(*region)) continue;
    if (fewest == nullptr || region->extents < fewest->extents) fewest = region.get();
  }
  if (fewest == nullptr) return values;
  for (BulkValue* const first : by_slot_) {
    if (values.size() >= most) break;
    if (first != nullptr && first->extent_.region == fewest->region.get()) {
      AddAliases(first, &values);
    }
  }
  return values;
}

}  // namespace moonpool::storage
