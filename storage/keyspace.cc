#include "storage/keyspace.h"

#include <algorithm>

#include "storage/fast_random.h"

namespace moonpool::storage {

namespace {

// A scan step visits at most this many buckets per wanted entry (Redis's rule).
constexpr size_t kScanBucketsPerEntry = 10;

}  // namespace

Keyspace::Keyspace(MemoryBudget* budget, BulkPolicy* bulk_policy, MaxmemoryPolicy policy)
    : budget_(budget),
      bulk_policy_(bulk_policy),
      partitions_(policy),
      stripes_(new Stripe[kStripes]) {
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

LfuOptions Keyspace::lfu_options() const {
  return {lfu_log_factor_.load(std::memory_order_relaxed),
          lfu_decay_minutes_.load(std::memory_order_relaxed)};
}

void Keyspace::set_lfu_options(const LfuOptions& options) {
  lfu_log_factor_.store(options.log_factor, std::memory_order_relaxed);
  lfu_decay_minutes_.store(options.decay_minutes, std::memory_order_relaxed);
}

void Keyspace::PrefetchEntry(uint64_t hash) const {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  stripe.table.PrefetchEntry(hash);
}

void Keyspace::PrefetchBulk(uint64_t hash) const {
  Stripe& stripe = StripeOf(hash);
  SpinLock lock(stripe.mu);
  const Table::Slot slot = stripe.table.FindIf(hash, [](const Entry&) { return true; });
  if (!slot || !slot.entry()->has(Entry::kBulk)) return;
  const auto* value = reinterpret_cast<const char*>(slot.entry()->bulk());
  for (size_t line = 0; line < sizeof(BulkValue); line += 64) __builtin_prefetch(value + line, 1);
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
  explicit Cleared(Keyspace* keyspace)
      : keyspace_(keyspace),
        budget_(keyspace->budget_),
        policy_(keyspace->bulk_policy_),
        tables_(new Table[kStripes]) {}
  ~Cleared() {
    for (size_t i = 0; i < kStripes; ++i) {
      uint64_t cursor = 0;
      do {
        cursor = tables_[i].Scan(cursor, [this](Entry* entry) {
          if (!entry->has(Entry::kBulk)) return;
          // A scan may meet an entry twice only when the table changes, which it does not.
          policy_->Unlink(entry->bulk(), false);
          keyspace_->LetGo(entry->bulk());
        });
      } while (cursor != 0);
    }
    budget_->AddInline(-bytes_);
  }

 private:
  friend class Keyspace;
  Keyspace* const keyspace_;
  MemoryBudget* const budget_;
  BulkPolicy* const policy_;
  std::unique_ptr<Table[]> tables_;
  int64_t bytes_ = 0;
};

void Keyspace::DestroyCleared::operator()(Cleared* cleared) const { delete cleared; }

std::unique_ptr<Keyspace::Cleared, Keyspace::DestroyCleared> Keyspace::Clear() {
  std::unique_ptr<Cleared, DestroyCleared> cleared(new Cleared(this));
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
    stripe.ssd_entries = 0;
    stripe.pins.clear();
  }
  if (log_ != nullptr) {
    const uint64_t sequence = log_->EraseAll();
    for (size_t i = 0; i < kStripes; ++i) {
      stripes_[i].mu.AssertHeld();
      stripes_[i].taken_away = sequence;
    }
  }
  partitions_.ClearSsd();
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
      if (FastRandom() % ++seen == 0) found = std::string(entry->key());
    });
  };
  for (int i = 0; i < kRandomTries && !found; ++i) {
    const uint64_t random = FastRandom();
    Stripe& stripe = StripeOf(random);
    SpinLock lock(stripe.mu);
    if (stripe.table.size() > 0) look(stripe, random);
  }
  uint64_t cursor = 0;
  while (!found) {
    std::vector<std::string> keys;
    cursor = Scan(cursor, 16, now_ms, &keys);
    if (!keys.empty()) return keys[FastRandom() % keys.size()];
    if (cursor == 0) break;
  }
  return found;
}

void Keyspace::ResetStats() {
  expired_.store(0, std::memory_order_relaxed);
  evicted_.store(0, std::memory_order_relaxed);
  memory_only_dropped_.store(0, std::memory_order_relaxed);
  partitions_.ResetStats();
}

}  // namespace moonpool::storage
