#include "storage/keyspace.h"

#include <algorithm>
#include <random>

#include "protocol/glob.h"

namespace moonpool::storage {

namespace {

// Changes of a stripe's memory reach the budget when they add up to this much, so that loops do
// not fight over one counter; for small limits sooner, to stay within 1/256 of the limit.
constexpr int64_t kReportBytes = 64 * 1024;
constexpr int kReportShift = 16;

// A scan step visits at most this many buckets per wanted entry (Redis's rule).
constexpr size_t kScanBucketsPerEntry = 10;

// xorshift64* (S. Vigna, 2016): good enough to sample with, and nearly free.
uint64_t Random() {
  thread_local uint64_t state = uint64_t{std::random_device{}()} << 32 | 1;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 2685821657736338717ull;
}

}  // namespace

Keyspace::Keyspace(MemoryBudget* budget, BulkPolicy* bulk_policy, MaxmemoryPolicy policy)
    : budget_(budget), bulk_policy_(bulk_policy), policy_(policy), stripes_(new Stripe[kStripes]) {
  for (size_t i = 0; i < kStripes; ++i) {
    SpinLock lock(stripes_[i].mu);
    Account(stripes_[i], static_cast<int64_t>(stripes_[i].table.bytes()));
  }
}

Keyspace::~Keyspace() {
  Clear();
  for (size_t i = 0; i < kStripes; ++i) {
    SpinLock lock(stripes_[i].mu);
    budget_->AddInline(stripes_[i].unreported - stripes_[i].inline_bytes);
  }
}

// --- stripes ---------------------------------------------------------------------------------

void Keyspace::LockAll() {
  for (size_t i = 0; i < kStripes; ++i) stripes_[i].mu.Lock();
}

void Keyspace::UnlockAll() {
  for (size_t i = kStripes; i-- > 0;) stripes_[i].mu.Unlock();
}

void Keyspace::Account(Stripe& stripe, int64_t bytes) {
  stripe.inline_bytes += bytes;
  stripe.unreported += bytes;
  const int64_t threshold =
      std::min(kReportBytes, static_cast<int64_t>(budget_->limit() >> kReportShift));
  if (std::abs(stripe.unreported) > threshold) {
    budget_->AddInline(std::exchange(stripe.unreported, 0));
  }
}

void Keyspace::RecordUse(Entry& entry, int64_t now_ms) const {
  uint32_t access;
  const MaxmemoryPolicy policy = this->policy();
  if (policy == MaxmemoryPolicy::kAllKeysLfu || policy == MaxmemoryPolicy::kVolatileLfu ||
      policy == MaxmemoryPolicy::kAllKeysS3Fifo) {
    access = LfuTouched(entry.access, now_ms, lfu_options(), static_cast<uint32_t>(Random() >> 32));
  } else {
    access = LruNow(now_ms);
  }
  // Most reads repeat within the clock's resolution: leave the cache line clean then.
  if (entry.access != access) entry.access = access & kAccessMask;
}

LfuOptions Keyspace::lfu_options() const {
  return {lfu_log_factor_.load(std::memory_order_relaxed),
          lfu_decay_minutes_.load(std::memory_order_relaxed)};
}

void Keyspace::set_lfu_options(const LfuOptions& options) {
  lfu_log_factor_.store(options.log_factor, std::memory_order_relaxed);
  lfu_decay_minutes_.store(options.decay_minutes, std::memory_order_relaxed);
}

Table::Slot Keyspace::FindLive(Stripe& stripe, std::string_view key, uint64_t hash,
                               int64_t now_ms) {
  const Table::Slot slot = stripe.table.Find(hash, key);
  if (!slot) return slot;
  if (slot.entry()->expired(now_ms)) {
    expired_.fetch_add(1, std::memory_order_relaxed);
  } else if (!any_void_.load(std::memory_order_relaxed) || !Voided(stripe, key, hash)) {
    return slot;
  }
  Remove(stripe, hash, slot, false);
  return Table::Slot();
}

void Keyspace::Remove(Stripe& stripe, uint64_t hash, Table::Slot slot, bool evicted) {
  const size_t table_bytes = stripe.table.bytes();
  Entry* entry = stripe.table.Erase(hash, slot);
  if (entry->has(Entry::kHasExpiry)) --stripe.expiring;
  if (entry->has(Entry::kPinned)) DropPin(stripe, entry->key());
  if (entry->has(Entry::kBulk)) {
    --stripe.bulk_entries;
    bulk_policy_->Unlink(entry->bulk(), evicted);
    LetGo(entry->bulk());
  }
  if (evicted) evicted_.fetch_add(1, std::memory_order_relaxed);
  Account(stripe, static_cast<int64_t>(stripe.table.bytes() - table_bytes) -
                      static_cast<int64_t>(entry->block_bytes()));
  Entry::Destroy(entry);
}

// An entry's reference goes; others may keep the value alive for a while.
void Keyspace::LetGo(BulkValue* value) {
  budget_->AddLinked(-static_cast<int64_t>(value->policy_bytes));
  ValueRef::Adopt(value).Reset();
}

void Keyspace::LinkBulk(const Entry& entry) {
  const bool expires = entry.has(Entry::kHasExpiry);
  if (VolatileOnly(policy()) && !expires) return;
  bulk_policy_->Link(entry.bulk(), expires ? entry.expiry_ms() : 0);
}

void Keyspace::DropPin(Stripe& stripe, std::string_view key) {
  const auto pin = stripe.pins.find(std::string(key));
  if (pin == stripe.pins.end()) return;
  if (pin->second.hard) {
    hard_pinned_bytes_.fetch_sub(pin->second.bytes, std::memory_order_relaxed);
  }
  stripe.pins.erase(pin);
}

size_t Keyspace::DropPassedPins(Stripe& stripe, int64_t now_ms) {
  const size_t looked_at = stripe.pins.size();
  for (auto pin = stripe.pins.begin(); pin != stripe.pins.end();) {
    if (pin->second.until_ms == 0 || pin->second.until_ms > now_ms) {
      ++pin;
      continue;
    }
    if (const Table::Slot slot = stripe.table.Find(HashKey(pin->first), pin->first)) {
      slot.entry()->flags &= static_cast<uint8_t>(~Entry::kPinned);
    }
    if (pin->second.hard) {
      hard_pinned_bytes_.fetch_sub(pin->second.bytes, std::memory_order_relaxed);
    }
    pin = stripe.pins.erase(pin);
  }
  return looked_at;
}

void Keyspace::ResizePin(Stripe& stripe, const Entry& entry) {
  const auto pin = stripe.pins.find(std::string(entry.key()));
  if (pin == stripe.pins.end()) return;
  const uint64_t bytes = entry.has(Entry::kBulk) ? entry.bulk()->length() : entry.value_bytes;
  if (pin->second.hard) {
    hard_pinned_bytes_.fetch_add(bytes - pin->second.bytes, std::memory_order_relaxed);
  }
  pin->second.bytes = bytes;
}

void Keyspace::PrefetchEntry(uint64_t hash) const {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  stripe.table.PrefetchEntry(hash);
}

// --- one key ---------------------------------------------------------------------------------

Entry* Keyspace::Key::Find() {
  stripe_->mu.AssertHeld();
  slot_ = keyspace_->FindLive(*stripe_, name_, hash_, now_ms_);
  return slot_ ? slot_.entry() : nullptr;
}

Entry* Keyspace::Key::Read() {
  Entry* entry = Find();
  if (entry != nullptr) keyspace_->RecordUse(*entry, now_ms_);
  return entry;
}

// Leaves an entry with room for the value, in place where its block fits, and everything that
// hung on the old value let go of.
Entry* Keyspace::Key::Put(size_t value_bytes, uint8_t kind, bool keep_expiry) {
  Stripe& stripe = *stripe_;
  stripe.mu.AssertHeld();
  if (keyspace_->any_void_.load(std::memory_order_relaxed)) {
    Find();  // before the mark below makes a voided entry look alive
    stripe.written[hash_] = keyspace_->void_sequence_;
  }
  Entry* const old = Find();
  if (old == nullptr) {
    Entry* entry = Entry::Create(name_, hash_, value_bytes, kind);
    const size_t table_bytes = stripe.table.bytes();
    stripe.table.Insert(hash_, entry);
    slot_ = stripe.table.Find(hash_, name_);
    if (kind & Entry::kBulk) ++stripe.bulk_entries;
    keyspace_->Account(stripe, static_cast<int64_t>(stripe.table.bytes() - table_bytes) +
                                   static_cast<int64_t>(entry->block_bytes()));
    entry->access = LfuNew(now_ms_) & kAccessMask;
    keyspace_->RecordUse(*entry, now_ms_);
    return entry;
  }
  if (old->has(Entry::kBulk)) {
    --stripe.bulk_entries;
    keyspace_->bulk_policy_->Unlink(old->bulk(), false);
    keyspace_->LetGo(old->bulk());
  }
  if (kind & Entry::kBulk) ++stripe.bulk_entries;
  const bool expiry = keep_expiry && old->has(Entry::kHasExpiry);
  if (old->has(Entry::kHasExpiry) && !expiry) --stripe.expiring;
  const auto flags = static_cast<uint8_t>(kind | (expiry ? Entry::kHasExpiry : 0) |
                                          (old->flags & Entry::kPinned));
  const size_t old_block = old->block_bytes();
  Entry* entry = old;
  const size_t bytes = Entry::Bytes(name_.size(), value_bytes, flags);
  if (HeapBlockBytes(bytes) == old_block &&
      (old->flags & Entry::kHasExpiry) == (flags & Entry::kHasExpiry)) {
    entry->flags = flags;
    entry->value_bytes = static_cast<uint32_t>(value_bytes);
  } else {
    entry = Entry::Create(name_, hash_, value_bytes, flags);
    entry->access = old->access;
    if (expiry) entry->set_expiry_ms(old->expiry_ms());
    stripe.table.Replace(slot_, entry);
    Entry::Destroy(old);
    keyspace_->Account(stripe, static_cast<int64_t>(entry->block_bytes()) -
                                   static_cast<int64_t>(old_block));
  }
  keyspace_->RecordUse(*entry, now_ms_);
  return entry;
}

Entry* Keyspace::Key::Set(std::string_view value, bool keep_expiry) {
  Entry* entry = SetUninitialized(value.size(), keep_expiry);
  std::copy(value.begin(), value.end(), entry->value_data());
  return entry;
}

Entry* Keyspace::Key::SetUninitialized(size_t bytes, bool keep_expiry) {
  stripe_->mu.AssertHeld();
  Entry* entry = Put(bytes, 0, keep_expiry);
  if (entry->has(Entry::kPinned)) keyspace_->ResizePin(*stripe_, *entry);
  return entry;
}

Entry* Keyspace::Key::SetBulk(ValueRef value, bool keep_expiry) {
  Entry* entry = Put(sizeof(BulkValue*), Entry::kBulk, keep_expiry);
  stripe_->mu.AssertHeld();
  value->set_owner_hash(hash_);
  keyspace_->budget_->AddLinked(static_cast<int64_t>(value->policy_bytes));
  entry->set_bulk(value.Release());
  keyspace_->LinkBulk(*entry);
  if (entry->has(Entry::kPinned)) keyspace_->ResizePin(*stripe_, *entry);
  return entry;
}

bool Keyspace::Key::Erase() {
  stripe_->mu.AssertHeld();
  if (Find() == nullptr) return false;
  keyspace_->Remove(*stripe_, hash_, slot_, false);
  return true;
}

ValueRef Keyspace::Key::TakeBulk() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  ValueRef value = ValueRef::Share(entry->bulk());
  keyspace_->Remove(*stripe_, hash_, slot_, false);
  return value;
}

// Gives the entry the block that goes with other flags.
Entry* Keyspace::Key::SetFlags(Entry* entry, uint8_t flags) {
  stripe_->mu.AssertHeld();
  if (flags == entry->flags) return entry;
  Entry* const old = entry;
  if ((old->flags & Entry::kHasExpiry) != (flags & Entry::kHasExpiry)) {
    entry = Entry::Create(name_, hash_, old->value_bytes, flags);
    entry->access = old->access;
    std::memcpy(entry->value_data(), old->value_data(), old->value_bytes);
    stripe_->table.Replace(slot_, entry);
    keyspace_->Account(*stripe_, static_cast<int64_t>(entry->block_bytes()) -
                                     static_cast<int64_t>(old->block_bytes()));
    Entry::Destroy(old);
  } else {
    entry->flags = flags;
  }
  return entry;
}

Entry* Keyspace::Key::SetExpiry(int64_t at_ms) {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kHasExpiry)) ++stripe_->expiring;
  entry = SetFlags(entry, static_cast<uint8_t>(entry->flags | Entry::kHasExpiry));
  entry->set_expiry_ms(at_ms);
  if (entry->has(Entry::kBulk) && VolatileOnly(keyspace_->policy())) {
    keyspace_->bulk_policy_->Unlink(entry->bulk(), false);
    keyspace_->LinkBulk(*entry);
  }
  return entry;
}

Entry* Keyspace::Key::ClearExpiry() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kHasExpiry)) return entry;
  --stripe_->expiring;
  entry = SetFlags(entry, static_cast<uint8_t>(entry->flags & ~Entry::kHasExpiry));
  if (entry->has(Entry::kBulk) && VolatileOnly(keyspace_->policy())) {
    keyspace_->bulk_policy_->Unlink(entry->bulk(), false);
  }
  return entry;
}

void Keyspace::Key::SetPin(Pin pin) {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  keyspace_->DropPin(*stripe_, name_);
  pin.bytes = 0;
  stripe_->pins.emplace(std::string(name_), pin);
  keyspace_->ResizePin(*stripe_, *entry);
  SetFlags(entry, static_cast<uint8_t>(entry->flags | Entry::kPinned));
}

bool Keyspace::Key::ClearPin() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kPinned)) return false;
  keyspace_->DropPin(*stripe_, name_);
  SetFlags(entry, static_cast<uint8_t>(entry->flags & ~Entry::kPinned));
  return true;
}

std::optional<Pin> Keyspace::Key::GetPin() const {
  stripe_->mu.AssertHeld();
  const auto pin = stripe_->pins.find(std::string(name_));
  if (pin == stripe_->pins.end()) return std::nullopt;
  if (pin->second.until_ms != 0 && pin->second.until_ms <= now_ms_) return std::nullopt;
  return pin->second;
}

KeysLock::KeysLock(Keyspace& keyspace, std::span<const std::string_view> names, int64_t now_ms) {
  keys_.reserve(names.size());
  stripes_.reserve(names.size());
  for (const std::string_view name : names) {
    const uint64_t hash = HashKey(name);
    keys_.push_back(Keyspace::Key(&keyspace, &keyspace.StripeOf(hash), name, hash, now_ms));
    stripes_.push_back(keys_.back().stripe_);
  }
  // Stripes are elements of one array: address order is index order.
  std::sort(stripes_.begin(), stripes_.end());
  stripes_.erase(std::unique(stripes_.begin(), stripes_.end()), stripes_.end());
  for (Keyspace::Stripe* stripe : stripes_) stripe->mu.Lock();
}

KeysLock::~KeysLock() {
  for (auto stripe = stripes_.rbegin(); stripe != stripes_.rend(); ++stripe) {
    (*stripe)->mu.Unlock();
  }
}

// --- all keys --------------------------------------------------------------------------------

uint64_t Keyspace::Size() const {
  uint64_t size = 0;
  for (size_t i = 0; i < kStripes; ++i) {
    SpinLock lock(stripes_[i].mu);
    size += stripes_[i].table.size();
  }
  return size;
}

uint64_t Keyspace::ExpiringSize() const {
  uint64_t size = 0;
  for (size_t i = 0; i < kStripes; ++i) {
    SpinLock lock(stripes_[i].mu);
    size += stripes_[i].expiring;
  }
  return size;
}

// The tables that were taken out; what their bulk entries refer to goes with them.
class Keyspace::Cleared {
 public:
  Cleared(MemoryBudget* budget, BulkPolicy* policy)
      : budget_(budget), policy_(policy), tables_(new Table[kStripes]) {}
  ~Cleared() {
    for (size_t i = 0; i < kStripes; ++i) {
      uint64_t cursor = 0;
      do {
        cursor = tables_[i].Scan(cursor, [this](Entry* entry) {
          if (!entry->has(Entry::kBulk)) return;
          // A scan may meet an entry twice only when the table changes, which it does not.
          policy_->Unlink(entry->bulk(), false);
          budget_->AddLinked(-static_cast<int64_t>(entry->bulk()->policy_bytes));
          ValueRef::Adopt(entry->bulk()).Reset();
        });
      } while (cursor != 0);
    }
    budget_->AddInline(-bytes_);
  }

 private:
  friend class Keyspace;
  MemoryBudget* const budget_;
  BulkPolicy* const policy_;
  std::unique_ptr<Table[]> tables_;
  int64_t bytes_ = 0;
};

void Keyspace::DestroyCleared::operator()(Cleared* cleared) const { delete cleared; }

std::unique_ptr<Keyspace::Cleared, Keyspace::DestroyCleared> Keyspace::Clear() {
  std::unique_ptr<Cleared, DestroyCleared> cleared(new Cleared(budget_, bulk_policy_));
  LockAll();
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[i];
    stripe.mu.AssertHeld();
    stripe.table.Swap(cleared->tables_[i]);
    budget_->AddInline(std::exchange(stripe.unreported, 0));
    cleared->bytes_ += std::exchange(stripe.inline_bytes, 0);
    Account(stripe, static_cast<int64_t>(stripe.table.bytes()));
    stripe.expiring = 0;
    stripe.bulk_entries = 0;
    stripe.pins.clear();
  }
  hard_pinned_bytes_.store(0, std::memory_order_relaxed);
  UnlockAll();
  return cleared;
}

uint64_t Keyspace::Scan(uint64_t cursor, size_t count, int64_t now_ms,
                        std::vector<std::string>* keys) {
  // The low bits of a cursor are the stripe, the rest is the stripe's own cursor.
  size_t index = cursor % kStripes;
  uint64_t inner = cursor / kStripes;
  size_t buckets = count * kScanBucketsPerEntry;
  size_t seen = 0;
  while (index < kStripes) {
    Stripe& stripe = stripes_[index];
    SpinLock lock(stripe.mu);
    do {
      inner = stripe.table.Scan(inner, [&](Entry* entry) {
        stripe.mu.AssertHeld();
        ++seen;
        if (entry->expired(now_ms)) return;
        if (any_void_.load(std::memory_order_relaxed) &&
            Voided(stripe, entry->key(), HashKey(entry->key()))) {
          return;
        }
        keys->emplace_back(entry->key());
      });
      if (buckets > 0) --buckets;
    } while (inner != 0 && seen < count && buckets > 0);
    if (inner != 0) break;
    ++index;
    if (seen >= count || buckets == 0) break;
  }
  return index == kStripes ? 0 : inner * kStripes + index;
}

std::optional<std::string> Keyspace::RandomKey(int64_t now_ms) {
  // Uniform over buckets, not over keys, like Redis.  Give up on random picks when the keyspace
  // is nearly empty and look everywhere.
  constexpr int kRandomTries = 128;
  std::optional<std::string> found;
  const auto look = [&](Stripe& stripe, uint64_t random) {
    stripe.mu.AssertHeld();
    uint64_t seen = 0;
    stripe.table.Sample(random, [&](Entry* entry) {
      stripe.mu.AssertHeld();
      if (entry->expired(now_ms)) return;
      if (any_void_.load(std::memory_order_relaxed) &&
          Voided(stripe, entry->key(), HashKey(entry->key()))) {
        return;
      }
      if (Random() % ++seen == 0) found = std::string(entry->key());
    });
  };
  for (int i = 0; i < kRandomTries && !found; ++i) {
    const uint64_t random = Random();
    Stripe& stripe = StripeOf(random);
    SpinLock lock(stripe.mu);
    if (stripe.table.size() > 0) look(stripe, random);
  }
  uint64_t cursor = 0;
  while (!found) {
    std::vector<std::string> keys;
    cursor = Scan(cursor, 16, now_ms, &keys);
    if (!keys.empty()) return keys[Random() % keys.size()];
    if (cursor == 0) break;
  }
  return found;
}

template <typename Doomed>
size_t Keyspace::RemoveNamed(Stripe& stripe, const std::vector<std::string>& names,
                             Doomed&& doomed) {
  size_t removed = 0;
  for (const std::string& name : names) {
    const uint64_t hash = HashKey(name);
    const Table::Slot slot = stripe.table.Find(hash, name);
    if (!slot || !doomed(*slot.entry(), hash)) continue;
    Remove(stripe, hash, slot, false);
    ++removed;
  }
  return removed;
}

size_t Keyspace::ExpireSome(size_t buckets, int64_t now_ms) {
  size_t expired = 0;
  std::vector<std::string> names;
  for (size_t visited = 0; visited < kStripes && buckets > 0; ++visited) {
    Stripe& stripe =
        stripes_[expire_stripe_.load(std::memory_order_relaxed) & (kStripes - 1)];
    SpinLock lock(stripe.mu);
    uint64_t cursor = stripe.expire_cursor;
    if (cursor == 0 && !stripe.pins.empty()) {
      buckets -= std::min(buckets - 1, DropPassedPins(stripe, now_ms));
    }
    if (stripe.expiring > 0) {
      names.clear();
      do {
        cursor = stripe.table.ScanExpiring(cursor, [&](Entry* entry) {
          if (entry->expired(now_ms)) names.emplace_back(entry->key());
        });
      } while (--buckets > 0 && cursor != 0);
      expired += RemoveNamed(stripe, names, [&](const Entry& entry, uint64_t) {
        return entry.expired(now_ms);
      });
    } else {
      cursor = 0;
    }
    stripe.expire_cursor = cursor;
    if (cursor == 0) expire_stripe_.fetch_add(1, std::memory_order_relaxed);
  }
  expired_.fetch_add(expired, std::memory_order_relaxed);
  return expired;
}

// --- eviction --------------------------------------------------------------------------------

bool Keyspace::Evictable(const Stripe& stripe, const Entry& entry, int64_t now_ms,
                         bool ignore_soft_pins) const {
  const MaxmemoryPolicy policy = this->policy();
  if (policy == MaxmemoryPolicy::kNoEviction) return false;
  if (VolatileOnly(policy) && !entry.has(Entry::kHasExpiry)) return false;
  if (!entry.has(Entry::kPinned)) return true;
  const auto pin = stripe.pins.find(std::string(entry.key()));
  if (pin == stripe.pins.end()) return true;
  if (pin->second.until_ms != 0 && pin->second.until_ms <= now_ms) return true;
  return !pin->second.hard && ignore_soft_pins;
}

size_t Keyspace::EvictInline(int64_t now_ms, bool ignore_soft_pins) {
  const MaxmemoryPolicy policy = this->policy();
  const LfuOptions lfu = lfu_options();
  const uint32_t wanted = samples_.load(std::memory_order_relaxed);
  // Higher is worse.
  const auto badness = [&](const Entry& entry) -> uint64_t {
    switch (policy) {
      case MaxmemoryPolicy::kNoEviction:
        return 0;
      case MaxmemoryPolicy::kAllKeysLru:
      case MaxmemoryPolicy::kVolatileLru:
        return LruIdleSeconds(entry.access, now_ms);
      case MaxmemoryPolicy::kAllKeysLfu:
      case MaxmemoryPolicy::kVolatileLfu:
      case MaxmemoryPolicy::kAllKeysS3Fifo:
        return 255 - LfuUses(entry.access, now_ms, lfu);
      case MaxmemoryPolicy::kAllKeysRandom:
      case MaxmemoryPolicy::kVolatileRandom:
        return Random();
      case MaxmemoryPolicy::kVolatileTtl:
        return UINT64_MAX - static_cast<uint64_t>(entry.expiry_ms());
    }
    __builtin_unreachable();
  };
  const auto evict_from = [&](Stripe& stripe, int tries) -> size_t {
    stripe.mu.AssertHeld();
    Entry* worst = nullptr;
    uint64_t worst_badness = 0;
    uint32_t seen = 0;
    for (; tries > 0 && seen < wanted; --tries) {
      stripe.table.Sample(Random(), [&](Entry* entry) {
        stripe.mu.AssertHeld();
        if (entry->has(Entry::kBulk) || !Evictable(stripe, *entry, now_ms, ignore_soft_pins)) {
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
    const int64_t before = stripe.inline_bytes;
    const uint64_t hash = HashKey(worst->key());
    Remove(stripe, hash, stripe.table.Find(hash, worst->key()), true);
    return static_cast<size_t>(before - stripe.inline_bytes);
  };
  const auto candidates = [&](Stripe& stripe) {
    stripe.mu.AssertHeld();
    return VolatileOnly(policy) ? stripe.expiring > 0
                                : stripe.table.size() > stripe.bulk_entries;
  };
  const uint64_t start = Random();
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[(start + i) % kStripes];
    SpinLock lock(stripe.mu);
    if (!candidates(stripe)) continue;
    // Evictable entries can be rare among pinned, bulk or lasting ones: then look harder.
    if (const size_t bytes = evict_from(stripe, 16)) return bytes;
    if (const size_t bytes = evict_from(stripe, 256)) return bytes;
  }
  return 0;
}

bool Keyspace::EvictBulk(const BulkValue& value, int64_t now_ms, bool ignore_soft_pins) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = stripe.table.FindIf(hash, [&](const Entry& entry) {
    return entry.has(Entry::kBulk) && entry.bulk() == &value;
  });
  if (!slot || !Evictable(stripe, *slot.entry(), now_ms, ignore_soft_pins)) return false;
  Remove(stripe, hash, slot, true);
  return true;
}

bool Keyspace::MoveBulk(const BulkValue& value, ValueRef moved) {
  const uint64_t hash = value.owner_hash();
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = stripe.table.FindIf(hash, [&](const Entry& entry) {
    return entry.has(Entry::kBulk) && entry.bulk() == &value;
  });
  if (!slot) return false;
  Entry* entry = slot.entry();
  moved->set_owner_hash(hash);
  bulk_policy_->Replace(entry->bulk(), moved.get());
  LetGo(entry->bulk());
  budget_->AddLinked(static_cast<int64_t>(moved->policy_bytes));
  entry->set_bulk(moved.Release());
  return true;
}

void Keyspace::SetPolicy(MaxmemoryPolicy policy) {
  policy_.store(policy, std::memory_order_relaxed);
  bulk_policy_->Change(policy);
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[i];
    SpinLock lock(stripe.mu);
    if (stripe.bulk_entries == 0) continue;
    uint64_t cursor = 0;
    do {
      cursor = stripe.table.Scan(cursor, [this](Entry* entry) {
        if (entry->has(Entry::kBulk)) LinkBulk(*entry);
      });
    } while (cursor != 0);
  }
}

void Keyspace::ResetStats() {
  expired_.store(0, std::memory_order_relaxed);
  evicted_.store(0, std::memory_order_relaxed);
}

// --- KV.DROP ---------------------------------------------------------------------------------

bool Keyspace::Void::Matches(std::string_view key) const {
  return is_glob ? protocol::GlobMatch(text, key) : key.substr(0, text.size()) == text;
}

bool Keyspace::AddVoid(std::string text, bool is_glob) {
  LockAll();
  const bool room = voids_.size() < kMaxVoids;
  if (room) {
    voids_.push_back({++void_sequence_, std::move(text), is_glob});
    any_void_.store(true, std::memory_order_relaxed);
  }
  UnlockAll();
  return room;
}

bool Keyspace::Voided(const Stripe& stripe, std::string_view key, uint64_t hash) const {
  const auto written = stripe.written.find(hash);
  const uint64_t since = written == stripe.written.end() ? 0 : written->second;
  return std::any_of(voids_.begin(), voids_.end(), [&](const Void& v) {
    return v.sequence > since && v.Matches(key);
  });
}

bool Keyspace::SweepVoids(int64_t now_ms) {
  if (!any_void_.load(std::memory_order_relaxed)) return false;
  constexpr size_t kBuckets = 256;
  const size_t index = void_cursor_ % kStripes;
  uint64_t inner = void_cursor_ / kStripes;
  {
    Stripe& stripe = stripes_[index];
    SpinLock lock(stripe.mu);
    // A pass takes everything that is void by now, and retires the voids that were there when it
    // began: a void that came in the middle gets a pass of its own.
    if (void_cursor_ == 0) void_pass_ = void_sequence_;
    if (inner == 0) {
      // Writes from before the oldest void are as good as none.
      const uint64_t oldest = voids_.front().sequence;
      std::erase_if(stripe.written, [=](const auto& write) { return write.second < oldest; });
    }
    std::vector<std::string> names;
    size_t buckets = kBuckets;
    do {
      inner = stripe.table.Scan(inner, [&](Entry* entry) {
        stripe.mu.AssertHeld();
        if (entry->expired(now_ms) || Voided(stripe, entry->key(), HashKey(entry->key()))) {
          names.emplace_back(entry->key());
        }
      });
    } while (inner != 0 && --buckets > 0);
    RemoveNamed(stripe, names, [](const Entry&, uint64_t) { return true; });
  }
  const bool pass_done = inner == 0 && index + 1 == kStripes;
  void_cursor_ = pass_done ? 0 : inner != 0 ? inner * kStripes + index : index + 1;
  if (!pass_done) return true;
  LockAll();
  std::erase_if(voids_, [this](const Void& v) { return v.sequence <= void_pass_; });
  const bool more = !voids_.empty();
  if (!more) {
    any_void_.store(false, std::memory_order_relaxed);
    for (size_t i = 0; i < kStripes; ++i) {
      stripes_[i].mu.AssertHeld();
      stripes_[i].written.clear();
    }
  }
  UnlockAll();
  return more;
}

}  // namespace moonpool::storage
