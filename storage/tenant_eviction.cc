// Tenant: what goes when memory is short, and where.
#include "storage/tenant.h"

namespace moonpool::storage {

namespace {

// Victims looked at before a round gives up: those spared go to the far end, so the next round
// meets others.
constexpr int kVictimsPerRound = 1024;
// Small values were looked for in vain: not again for so long.
constexpr int64_t kInlinePauseMs = 100;

}  // namespace

bool Tenant::EvictToLimit(int64_t now_ms) {
  while (budget_.used_bytes() > budget_.limit() + coming_bytes()) {
    if (EvictOne(now_ms) == 0) return coming_bytes() > 0;
  }
  return true;
}

uint64_t Tenant::EvictOneInline(int64_t now_ms) {
  if (now_ms < evict_inline_after_ms_.load(std::memory_order_relaxed)) return 0;
  uint64_t bytes = 0;
  for (const bool ignore_soft_pins : {false, true}) {
    Keyspace::Movable movable;
    bytes = keyspace_->EvictInline(now_ms, ignore_soft_pins, ssd_ != nullptr ? &movable : nullptr);
    if (movable.length > 0) return DemoteInline(movable, now_ms);
    if (bytes > 0) break;
  }
  // Where partitions have policies of their own, small values that may go can be rare among those that
  // may not, and looking for them in vain takes long.
  if (bytes == 0 && keyspace_->partitions().any()) {
    evict_inline_after_ms_.store(now_ms + kInlinePauseMs, std::memory_order_relaxed);
  }
  return bytes;
}

uint64_t Tenant::DemoteInline(const Keyspace::Movable& victim, int64_t now_ms) {
  const uint64_t coming = coming_bytes();
  WriteHandle target;
  if (!ssd_->Full(victim.length)) {
    if (auto reserved = pool_->Reserve(victim.length)) target = std::move(*reserved);
  }
  if (!target) {
    // There is time while memory comes back from those before it.  Who writes small values does
    // not wait for a slow disk, though: over the limit one is given up, as without an SSD.
    const bool time = coming > 0 && budget_.used_bytes() <= budget_.limit() + coming;
    return time ? 0 : keyspace_->EvictInline(now_ms, true);
  }
  const ValueRef value = keyspace_->MoveToPool(victim.key, std::move(target), now_ms);
  if (value) Evict(value, now_ms, true);
  return victim.length;
}

uint64_t Tenant::EvictOne(int64_t now_ms) {
  if (!keyspace_->partitions().evicts()) return 0;
  // Each kind of value gives bytes in proportion to what it takes, so that both age alike.
  const uint64_t extent = budget_.extent_bytes();
  const uint64_t heap = budget_.inline_bytes();
  const double bulk_share =
      static_cast<double>(extent) / static_cast<double>(std::max<uint64_t>(extent + heap, 1));
  const auto evict_bulk = [&]() -> uint64_t {
    const uint64_t bytes = EvictOneBulk(now_ms);
    bulk_gave_.fetch_add(static_cast<int64_t>(static_cast<double>(bytes) * (1 - bulk_share)),
                         std::memory_order_relaxed);
    return bytes;
  };
  const auto evict_inline = [&]() -> uint64_t {
    const uint64_t bytes = EvictOneInline(now_ms);
    bulk_gave_.fetch_sub(static_cast<int64_t>(static_cast<double>(bytes) * bulk_share),
                         std::memory_order_relaxed);
    return bytes;
  };
  uint64_t bytes;
  if (ssd_ != nullptr && extent > heap) {
    // Large values are not lost, the smallest ones are.
    bytes = evict_bulk();
    if (bytes == 0 && coming_bytes() == 0) bytes = evict_inline();
  } else {
    const bool bulk_first = extent > 0 && bulk_gave_.load(std::memory_order_relaxed) <= 0;
    bytes = bulk_first ? evict_bulk() : evict_inline();
    if (bytes == 0) bytes = bulk_first ? evict_inline() : evict_bulk();
  }
  // Values on the SSD take little memory: they go when nothing else is left, now or soon, and it is
  // keys that memory is full of.
  if (bytes == 0 && ssd_ != nullptr && coming_bytes() == 0 && heap > extent) {
    bytes = keyspace_->EvictOnSsdForHeap(now_ms);
  }
  return bytes;
}

uint64_t Tenant::EvictOneBulk(int64_t now_ms, Taker taker) {
  const Partitions& partitions = keyspace_->partitions();
  Partitions::Order order;
  const size_t count = partitions.VictimOrder(&order);
  // What is pinned or read goes last, whichever partition the others are of.
  for (const Mercy mercy : {Mercy::kHeldAndPinned, Mercy::kPinned, Mercy::kNone}) {
    for (const uint8_t partition : std::span(order).first(count)) {
      if (partitions.policy(partition) == MaxmemoryPolicy::kNoEviction) continue;
      const bool cold = bulk_policy_.ColdFirst(partition, taker == Taker::kLoad);
      for (const bool these : {cold, !cold}) {
        const Among among = these ? Among::kCold : Among::kPolicy;
        if (const auto bytes = EvictOneBulk(partition, among, now_ms, mercy)) return *bytes;
      }
    }
  }
  return 0;
}

uint64_t Tenant::EvictOneCold(int64_t now_ms) {
  Partitions::Order order;
  const size_t count = keyspace_->partitions().VictimOrder(&order);
  for (const uint8_t partition : std::span(order).first(count)) {
    if (keyspace_->partitions().policy(partition) == MaxmemoryPolicy::kNoEviction ||
        !bulk_policy_.ColdFirst(partition, true)) {
      continue;
    }
    if (const auto bytes = EvictOneBulk(partition, Among::kCold, now_ms, Mercy::kHeldAndPinned)) {
      return *bytes;
    }
  }
  return 0;
}

uint64_t Tenant::EvictOneInCxl(int64_t now_ms) {
  return EvictOneIn(Tier::kCxl, Among::kCxl, 0, now_ms);
}

uint64_t Tenant::EvictOneInGpu(size_t device, int64_t now_ms) {
  return EvictOneIn(Tier::kGpu, Among::kGpu, device, now_ms);
}

uint64_t Tenant::EvictOneIn(Tier tier, Among among, size_t device, int64_t now_ms) {
  const Partitions& partitions = keyspace_->partitions();
  Partitions::Order order;
  const size_t count = partitions.VictimOrder(&order, tier);
  for (const Mercy mercy : {Mercy::kHeldAndPinned, Mercy::kPinned, Mercy::kNone}) {
    for (const uint8_t partition : std::span(order).first(count)) {
      if (partitions.policy(partition) == MaxmemoryPolicy::kNoEviction) continue;
      if (const auto bytes = EvictOneBulk(partition, among, now_ms, mercy, device)) return *bytes;
    }
  }
  return 0;
}

Tenant::Outcome Tenant::Evict(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins,
                              Among among) {
  // What came up from the SSD for one reader goes back there.
  if (among == Among::kPolicy) {
    if (const auto outcome = EvictToCxl(value, now_ms, ignore_soft_pins)) return *outcome;
  }
  if (among == Among::kGpu) {
    if (const auto outcome = EvictFromGpu(value, now_ms, ignore_soft_pins)) return *outcome;
  }
  return EvictFromMemory(value, now_ms, ignore_soft_pins);
}

std::optional<Tenant::Outcome> Tenant::EvictToCxl(const ValueRef& value, int64_t now_ms,
                                                  bool ignore_soft_pins) {
  if (cxl_ == nullptr || value->tier() != Tier::kDram || !cxl_->Holds(value->length())) {
    return std::nullopt;
  }
  return EvictToMemory(value, now_ms, ignore_soft_pins, [&] { return cxl_->Demote(value.Share()); });
}

std::optional<Tenant::Outcome> Tenant::EvictFromGpu(const ValueRef& value, int64_t now_ms,
                                                    bool ignore_soft_pins) {
  if (!pool_->CouldHold(value->length())) return std::nullopt;
  return EvictToMemory(value, now_ms, ignore_soft_pins, [&] { return gpu_->Demote(value.Share()); });
}

template <typename Demote>
Tenant::Outcome Tenant::EvictToMemory(const ValueRef& value, int64_t now_ms, bool ignore_soft_pins,
                                      Demote&& demote) {
  using Eviction = Keyspace::Eviction;
  switch (keyspace_->EvictBulk(*value, now_ms, ignore_soft_pins, Keyspace::Next::kMemory)) {
    case Eviction::kFreed:
      return Outcome::kFreed;
    case Eviction::kKept:
      return Outcome::kKept;
    case Eviction::kMoves:
      break;
  }
  // Out of the policy first: the value may be there before demote() returns.
  bulk_policy_.Unlink(value.get(), true);
  using Taken = decltype(demote());
  const Taken taken = demote();
  if (taken == Taken::kYes) return Outcome::kComing;
  keyspace_->AbandonDemotion(*value);
  return taken == Taken::kFull ? Outcome::kWait : Outcome::kKept;
}

Tenant::Outcome Tenant::EvictFromMemory(const ValueRef& value, int64_t now_ms,
                                        bool ignore_soft_pins) {
  using Eviction = Keyspace::Eviction;
  using Next = Keyspace::Next;
  const auto try_to = [&](Next next) {
    return keyspace_->EvictBulk(*value, now_ms, ignore_soft_pins, next);
  };
  Eviction evicted = try_to(ssd_ == nullptr ? Next::kDropped : Next::kSsd);
  if (evicted == Eviction::kMoves) {
    if (ssd_->Full(value->length())) return Outcome::kWait;
    // Out of the policy first: the value may be on the SSD before Demote() returns.
    bulk_policy_.Unlink(value.get(), true);
    switch (ssd_->Demote(value.Share())) {
      case SsdTier::Taken::kYes:
        return Outcome::kComing;
      case SsdTier::Taken::kFull:
        keyspace_->AbandonDemotion(*value);
        return Outcome::kWait;
      case SsdTier::Taken::kRefused:
        evicted = try_to(Next::kDropped);
        if (evicted == Eviction::kKept) keyspace_->AbandonDemotion(*value);
        break;
    }
  }
  return evicted == Eviction::kFreed ? Outcome::kFreed : Outcome::kKept;
}

std::optional<uint64_t> Tenant::EvictOneBulk(uint8_t partition, Among among, int64_t now_ms,
                                             Mercy mercy, size_t device) {
  const BulkValue* first_spared = nullptr;
  for (int i = 0; i < kVictimsPerRound; ++i) {
    ValueRef victim = bulk_policy_.Victim(partition, among, device);
    if (!victim || victim.get() == first_spared) return std::nullopt;  // none, or once round
    const uint64_t bytes = ExtentAllocator::RoundUp(victim->length());
    const bool held = victim->references() > 2;
    if (!held || mercy != Mercy::kHeldAndPinned) {
      const Outcome outcome = Evict(victim, now_ms, mercy == Mercy::kNone, among);
      if (outcome == Outcome::kWait) return 0;
      if (outcome != Outcome::kKept) return bytes;
    }
    if (first_spared == nullptr) first_spared = victim.get();
    bulk_policy_.Spare(victim);
  }
  return std::nullopt;
}

}  // namespace moonpool::storage
