// Keyspace: entries whose values are on the SSD.
#include <algorithm>

#include "protocol/glob.h"
#include "storage/fast_random.h"
#include "storage/keyspace.h"

namespace moonpool::storage {

void Keyspace::SetMemoryOnly(std::vector<std::string> globs) {
  LockAll();
  memory_only_ = std::move(globs);
  UnlockAll();
}

bool Keyspace::MemoryOnly(const Stripe&, std::string_view key) const {
  if (partitions_.memory_only(PartitionOf(key))) return true;
  return std::any_of(memory_only_.begin(), memory_only_.end(),
                     [key](const std::string& glob) { return protocol::GlobMatch(glob, key); });
}

Table::Slot Keyspace::FindPlace(Stripe& stripe, uint64_t hash, const SsdPlace& place) {
  return stripe.table.FindIf(hash, [&](const Entry& entry) {
    return entry.has(Entry::kOnSsd) && entry.place().id == place.id;
  });
}

// The entry of a bulk value goes on with the SSD alone.
void Keyspace::KeepOnSsd(Stripe& stripe, Table::Slot slot, const SsdPlace& place) {
  BulkValue* value = slot.entry()->bulk();
  partitions_.CountEviction(value->partition());
  --stripe.bulk_entries;
  bulk_policy_->Unlink(value, true);
  LetGo(value);
  const auto flags = static_cast<uint8_t>((slot.entry()->flags & ~Entry::kBulk) | Entry::kOnSsd);
  Resize(stripe, slot, sizeof(SsdPlace), flags)->set_place(place);
  ++stripe.ssd_entries;
}

SsdPlace Keyspace::Restore(std::string_view key, int64_t expiry_ms, SsdPlace place) {
  const uint64_t hash = HashKey(key);
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const auto flags =
      static_cast<uint8_t>(Entry::kOnSsd | (expiry_ms != 0 ? Entry::kHasExpiry : 0));
  Entry* entry = Entry::Create(key, hash, sizeof(SsdPlace), flags);
  place.partition = PartitionOf(key);
  entry->set_place(place);
  if (expiry_ms != 0) {
    entry->set_expiry_ms(expiry_ms);
    ++stripe.expiring;
  }
  const size_t table_bytes = stripe.table.bytes();
  stripe.table.Insert(hash, entry);
  ++stripe.ssd_entries;
  Account(stripe, static_cast<int64_t>(stripe.table.bytes() - table_bytes) +
                      static_cast<int64_t>(entry->block_bytes()));
  log_->AddRecovered(place);
  CountOnSsd(place, 1);
  return place;
}

bool Keyspace::FinishDemotion(BulkValue& value, SsdPlace place, int64_t now_ms, bool keep) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindOwner(stripe, value);
  if (!slot) return false;
  const Entry& entry = *slot.entry();
  if (entry.expired(now_ms) ||
      (any_void_.load(std::memory_order_relaxed) && Voided(stripe, entry.key(), hash))) {
    Remove(stripe, hash, slot, false);
    return false;
  }
  if (const SsdPlace earlier = value.place()) {
    // It was written twice, and only one of the places would be erased with the key.
    keep ? LinkBulk(entry) : KeepOnSsd(stripe, slot, earlier);
    return false;
  }
  place.partition = value.partition();
  log_->Add(place, entry.key(), entry.has(Entry::kHasExpiry) ? entry.expiry_ms() : 0);
  CountOnSsd(place, 1);
  partitions_.CountDemotion(place.slot());
  if (keep) {
    value.set_place(place);
    LinkBulk(entry);
  } else {
    KeepOnSsd(stripe, slot, place);
  }
  return true;
}

void Keyspace::AbandonDemotion(BulkValue& value) {
  Stripe& stripe = StripeOf(value.owner_hash());
  SpinLock lock(stripe.mu);
  if (const Table::Slot slot = FindOwner(stripe, value)) LinkBulk(*slot.entry());
}

bool Keyspace::FinishLoad(uint64_t hash, const SsdPlace& loaded, ValueRef value,
                          BulkValue::Arrival arrival) {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindPlace(stripe, hash, loaded);
  if (!slot) return false;
  const SsdPlace place = slot.entry()->place();  // its partition may be another by now
  const auto flags = static_cast<uint8_t>((slot.entry()->flags & ~Entry::kOnSsd) | Entry::kBulk);
  Entry* entry = Resize(stripe, slot, sizeof(BulkValue*), flags);
  --stripe.ssd_entries;
  ++stripe.bulk_entries;
  value->set_owner_hash(hash);
  value->set_place(place);
  value->set_arrival(arrival);
  value->set_partition(place.slot());
  CountLinked(*value, 1);
  entry->set_bulk(value.Release());
  LinkBulk(*entry, arrival != BulkValue::Arrival::kNone);
  return true;
}

bool Keyspace::DropLost(uint64_t hash, const SsdPlace& place) {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = FindPlace(stripe, hash, place);
  if (slot) Remove(stripe, hash, slot, false);
  return static_cast<bool>(slot);
}

uint64_t Keyspace::EvictOnSsd(int64_t now_ms) {
  if (!partitions_.any()) return EvictOnSsd(now_ms, Partitions::Pressures{}, 0);
  Partitions::Pressures pressures;
  partitions_.SsdPressures(&pressures);
  const double highest = *std::max_element(pressures.begin(), pressures.end());
  if (const uint64_t length = EvictOnSsd(now_ms, pressures, highest)) return length;
  // Nothing of those that are furthest above their share was met: it is rare, pinned, or in memory.
  return EvictOnSsd(now_ms, pressures, 0);
}

uint64_t Keyspace::EvictOnSsd(int64_t now_ms, const Partitions::Pressures& pressures,
                              double least_pressure) {
  const MaxmemoryPolicy policy = this->policy();
  const LfuOptions lfu = lfu_options();
  const bool by_use = policy != MaxmemoryPolicy::kAllKeysLru &&
                      policy != MaxmemoryPolicy::kVolatileLru;
  // A stripe that has none of those looked for is left soon: another may.
  const int most_tries = least_pressure > 0 ? 4 : 64;
  const uint32_t wanted = samples_.load(std::memory_order_relaxed);
  const uint64_t start = FastRandom();
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[(start + i) % kStripes];
    SpinLock lock(stripe.mu);
    if (stripe.ssd_entries == 0) continue;
    Entry* worst = nullptr;
    std::pair<double, uint64_t> worst_badness;
    uint32_t seen = 0;
    for (int tries = 0; tries < most_tries && seen < wanted; ++tries) {
      stripe.table.Sample(FastRandom(), [&](Entry* entry) {
        stripe.mu.AssertHeld();
        if (!entry->has(Entry::kOnSsd) || entry->has(Entry::kPinned)) return;
        const double pressure = pressures[entry->place().slot()];
        if (pressure < least_pressure) return;
        ++seen;
        const uint64_t idle =
            by_use ? 255 - LfuUses(entry->access, now_ms, lfu) : LruIdleSeconds(entry->access, now_ms);
        const std::pair badness(pressure, idle);
        if (worst == nullptr || badness > worst_badness) {
          worst = entry;
          worst_badness = badness;
        }
      });
    }
    if (worst == nullptr) continue;
    const uint64_t length = worst->place().length;
    const uint64_t hash = HashKey(worst->key());
    Remove(stripe, hash, stripe.table.Find(hash, worst->key()), true);
    return length;
  }
  return 0;
}

uint64_t Keyspace::OnSsdSize() const {
  uint64_t size = 0;
  for (size_t i = 0; i < kStripes; ++i) {
    SpinLock lock(stripes_[i].mu);
    size += stripes_[i].ssd_entries;
  }
  return size;
}

std::vector<Keyspace::InMemory> Keyspace::BulkValuesOf(size_t index, int64_t now_ms) {
  const MaxmemoryPolicy policy = this->policy();
  const bool by_age = policy == MaxmemoryPolicy::kAllKeysLru ||
                      policy == MaxmemoryPolicy::kVolatileLru;
  const LfuOptions lfu = lfu_options();
  std::vector<InMemory> found;
  Stripe& stripe = stripes_[index];
  SpinLock lock(stripe.mu);
  uint64_t cursor = 0;
  do {
    cursor = stripe.table.Scan(cursor, [&](Entry* entry) {
      stripe.mu.AssertHeld();
      if (!entry->has(Entry::kBulk) || entry->expired(now_ms)) return;
      if (MemoryOnly(stripe, entry->key())) return;
      const uint64_t heat = by_age ? UINT32_MAX - LruIdleSeconds(entry->access, now_ms)
                                   : LfuUses(entry->access, now_ms, lfu);
      found.push_back({ValueRef::Share(entry->bulk()), heat});
    });
  } while (cursor != 0);
  return found;
}

std::vector<Keyspace::Small> Keyspace::SmallValuesOf(size_t index, int64_t now_ms) {
  std::vector<Small> found;
  Stripe& stripe = stripes_[index];
  SpinLock lock(stripe.mu);
  uint64_t cursor = 0;
  do {
    cursor = stripe.table.Scan(cursor, [&](Entry* entry) {
      stripe.mu.AssertHeld();
      if (entry->has(Entry::kBulk) || entry->has(Entry::kOnSsd) || entry->expired(now_ms)) return;
      if (any_void_.load(std::memory_order_relaxed) &&
          Voided(stripe, entry->key(), HashKey(entry->key()))) {
        return;
      }
      if (MemoryOnly(stripe, entry->key())) return;
      found.push_back({std::string(entry->key()),
                       entry->has(Entry::kHasExpiry) ? entry->expiry_ms() : 0,
                       std::string(entry->value())});
    });
  } while (cursor != 0);
  return found;
}

SsdPlace Keyspace::PlaceOf(const BulkValue& value) {
  Stripe& stripe = StripeOf(value.owner_hash());
  SpinLock lock(stripe.mu);
  return value.place();
}

SsdPlace Keyspace::PlaceOf(uint64_t hash) {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot =
      stripe.table.FindIf(hash, [](const Entry& entry) { return entry.has(Entry::kOnSsd); });
  return slot ? slot.entry()->place() : SsdPlace();
}

// --- Key -------------------------------------------------------------------------------------

void Keyspace::Key::LogExpiry(const Entry& entry) const {
  stripe_->mu.AssertHeld();
  const SsdPlace place = entry.has(Entry::kOnSsd)  ? entry.place()
                         : entry.has(Entry::kBulk) ? entry.bulk()->place()
                                                   : SsdPlace();
  if (place) {
    keyspace_->log_->Update(place, name_, entry.has(Entry::kHasExpiry) ? entry.expiry_ms() : 0);
  }
}

void Keyspace::Key::ComesAfter() const {
  stripe_->mu.AssertHeld();
  SsdLog::AddToThreadSequence(stripe_->taken_away);
}

Entry* Keyspace::Key::TakeOnSsd(Key& from, int64_t expiry_ms) {
  stripe_->mu.AssertHeld();
  from.stripe_->mu.AssertHeld();
  SsdPlace place = from.slot_.entry()->place();
  from.slot_.entry()->set_place({});
  keyspace_->Remove(*from.stripe_, from.hash_, from.slot_, false);
  Entry* entry = Put(sizeof(SsdPlace), Entry::kOnSsd, false);
  keyspace_->MoveToPartition(&place, partition());
  entry->set_place(place);
  if (entry->has(Entry::kPinned)) keyspace_->ResizePin(*stripe_, *entry);
  from.stripe_->taken_away = keyspace_->log_->Update(place, name_, expiry_ms);
  return expiry_ms != 0 ? SetExpiry(expiry_ms) : entry;
}

}  // namespace moonpool::storage
