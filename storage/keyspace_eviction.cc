// Keyspace: which entries go when memory is short, and values that move.
#include <algorithm>

#include "storage/fast_random.h"
#include "storage/keyspace.h"

namespace moonpool::storage {

bool Keyspace::Evictable(const Stripe& stripe, const Entry& entry, int64_t now_ms,
                         bool ignore_soft_pins) const {
  const MaxmemoryPolicy policy = partitions_.policy(SlotOf(entry));
  if (policy == MaxmemoryPolicy::kNoEviction) return false;
  if (VolatileOnly(policy) && !entry.has(Entry::kHasExpiry)) return false;
  if (!entry.has(Entry::kPinned)) return true;
  const auto pin = stripe.pins.find(std::string(entry.key()));
  if (pin == stripe.pins.end()) return true;
  if (pin->second.until_ms != 0 && pin->second.until_ms <= now_ms) return true;
  return !pin->second.hard && ignore_soft_pins;
}

size_t Keyspace::EvictSampled(int64_t now_ms, bool ignore_soft_pins, bool on_ssd,
                              Movable* movable) {
  const MaxmemoryPolicy policy = this->policy();
  const LfuOptions lfu = lfu_options();
  const uint32_t wanted = samples_.load(std::memory_order_relaxed);
  // Higher is worse.
  const auto badness = [&](const Entry& entry) -> uint64_t {
    switch (policy) {
      case MaxmemoryPolicy::kNoEviction:  // another partition's policy lets this one go
      case MaxmemoryPolicy::kAllKeysLru:
      case MaxmemoryPolicy::kVolatileLru:
        return LruIdleSeconds(entry.access, now_ms);
      case MaxmemoryPolicy::kAllKeysLfu:
      case MaxmemoryPolicy::kVolatileLfu:
      case MaxmemoryPolicy::kAllKeysS3Fifo:
      case MaxmemoryPolicy::kAllKeysPrefix:
        return 255 - LfuUses(entry.access, now_ms, lfu);
      case MaxmemoryPolicy::kAllKeysRandom:
      case MaxmemoryPolicy::kVolatileRandom:
        return FastRandom();
      case MaxmemoryPolicy::kVolatileTtl:
        // One of a partition that evicts all keys may have none.
        return entry.has(Entry::kHasExpiry) ? UINT64_MAX - static_cast<uint64_t>(entry.expiry_ms())
                                            : 0;
    }
    __builtin_unreachable();
  };
  const auto evict_from = [&](Stripe& stripe, int tries) -> size_t {
    stripe.mu.AssertHeld();
    Entry* worst = nullptr;
    uint64_t worst_badness = 0;
    uint32_t seen = 0;
    for (; tries > 0 && seen < wanted; --tries) {
      stripe.table.Sample(FastRandom(), [&](Entry* entry) {
        stripe.mu.AssertHeld();
        if (entry->has(Entry::kBulk) || entry->has(Entry::kOnSsd) != on_ssd ||
            !Evictable(stripe, *entry, now_ms, ignore_soft_pins)) {
          return;
        }
        ++seen;
        const uint64_t bad = badness(*entry);
        if (worst == nullptr || bad > worst_badness) {
          worst = entry;
          worst_badness = bad;
        }
      });
    }
    if (worst == nullptr) return 0;
    const uint64_t hash = HashKey(worst->key());
    if (movable != nullptr && worst->value_bytes >= least_on_ssd_ && !worst->expired(now_ms) &&
        !(any_void_.load(std::memory_order_relaxed) && Voided(stripe, worst->key(), hash)) &&
        !MemoryOnly(stripe, worst->key())) {
      *movable = {std::string(worst->key()), worst->value_bytes};
      return 0;
    }
    const int64_t before = stripe.inline_bytes;
    Remove(stripe, hash, stripe.table.Find(hash, worst->key()), true);
    return static_cast<size_t>(before - stripe.inline_bytes);
  };
  const auto candidates = [&](Stripe& stripe) {
    stripe.mu.AssertHeld();
    if (!partitions_.any() && VolatileOnly(policy) && stripe.expiring == 0) return false;
    return on_ssd ? stripe.ssd_entries > 0
                  : stripe.table.size() > stripe.bulk_entries + stripe.ssd_entries;
  };
  const uint64_t start = FastRandom();
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[(start + i) % kStripes];
    SpinLock lock(stripe.mu);
    if (!candidates(stripe)) continue;
    // Evictable entries can be rare among pinned, bulk or lasting ones: then look harder.
    for (const int tries : {16, 256}) {
      const size_t bytes = evict_from(stripe, tries);
      if (bytes > 0 || (movable != nullptr && movable->length > 0)) return bytes;
    }
  }
  return 0;
}

ValueRef Keyspace::MoveToPool(std::string_view key, WriteHandle target, int64_t now_ms) {
  const uint64_t hash = HashKey(key);
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindLive(stripe, key, hash, now_ms);
  if (!slot || !slot.entry()->is_inline()) return {};
  if (slot.entry()->value_bytes != target.length()) return {};
  const std::string_view bytes = slot.entry()->value();
  std::copy(bytes.begin(), bytes.end(), target.data());
  ValueRef value = std::move(target).Publish();
  value->set_owner_hash(hash);
  value->set_partition(PartitionOf(key));
  const auto flags = static_cast<uint8_t>(slot.entry()->flags | Entry::kBulk);
  Entry* entry = Resize(stripe, slot, sizeof(BulkValue*), flags);
  ++stripe.bulk_entries;
  CountLinked(*value, 1);
  entry->set_bulk(value.Share().Release());
  LinkBulk(*entry);
  return value;
}

Table::Slot Keyspace::FindOwner(Stripe& stripe, const BulkValue& value) {
  return stripe.table.FindIf(value.owner_hash(), [&](const Entry& entry) {
    return entry.has(Entry::kBulk) && entry.bulk() == &value;
  });
}

Keyspace::Eviction Keyspace::EvictBulk(const BulkValue& value, int64_t now_ms,
                                       bool ignore_soft_pins, Next next) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindOwner(stripe, value);
  if (!slot || !Evictable(stripe, *slot.entry(), now_ms, ignore_soft_pins)) return Eviction::kKept;
  Entry* entry = slot.entry();
  const bool dead = entry->expired(now_ms) || (any_void_.load(std::memory_order_relaxed) &&
                                               Voided(stripe, entry->key(), hash));
  if (next == Next::kMemory && !dead) return Eviction::kMoves;
  if (log_ != nullptr && !dead) {
    if (const SsdPlace place = value.place()) {
      KeepOnSsd(stripe, slot, place);
      return Eviction::kFreed;
    }
    if (next != Next::kDropped) {
      if (!MemoryOnly(stripe, entry->key())) return Eviction::kMoves;
      memory_only_dropped_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  Remove(stripe, hash, slot, true);
  return Eviction::kFreed;
}

bool Keyspace::MoveBulk(const BulkValue& value, ValueRef moved) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindOwner(stripe, value);
  if (!slot) return false;
  Entry* entry = slot.entry();
  moved->set_owner_hash(hash);
  moved->set_place(value.place());
  moved->set_partition(value.partition());
  moved->set_arrival(value.arrival());
  bulk_policy_->Replace(entry->bulk(), moved.get());
  LetGo(entry->bulk());
  CountLinked(*moved, 1);
  entry->set_bulk(moved.Release());
  LinkBulk(*entry);  // one on its way to the SSD was not; this copy is not on its way
  return true;
}

bool Keyspace::DropLost(const BulkValue& value) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  if (const Table::Slot slot = FindOwner(stripe, value)) {
    if (const SsdPlace place = value.place(); place && log_ != nullptr) {
      KeepOnSsd(stripe, slot, place);
    } else {
      Remove(stripe, hash, slot, false);
    }
    return true;
  }
  return false;
}

}  // namespace moonpool::storage
