// The keys of one tenant: lock-striped tables of entries.
//
// Commands lock the stripes of their keys (KeyLock for one key, KeysLock for several), then read
// and change entries through Key cursors.  The lock makes the command atomic; it is held across
// no system call, no allocation of an extent, and no callback.
//
// Lock order: change_mu_; stripes by ascending index; then, as leaves, BulkPolicy, ExtentPool and
// set_mu_.
//
// Time comes from the caller (`now_ms`, Unix milliseconds, one reading per batch of commands). An
// entry whose expiry has passed is removed by whoever meets it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/spin_mutex.h"
#include "storage/access_clock.h"
#include "storage/bulk_policy.h"
#include "storage/bulk_value.h"
#include "storage/hash.h"
#include "storage/memory_budget.h"
#include "storage/partitions.h"
#include "storage/ssd_log.h"
#include "storage/table.h"

namespace moonpool::storage {

// A pin keeps a key from eviction: a soft one as long as there is anything else to evict.
struct Pin {
  int64_t until_ms = 0;  // 0: until KV.UNPIN or until the key goes
  bool hard = false;
  uint64_t bytes = 0;  // of the value, for the sum of what is pinned hard; kept by the keyspace
};

struct KeyspaceStats {
  uint64_t expired = 0;
  uint64_t evicted = 0;
  uint64_t memory_only = 0;  // of them, not moved to the SSD because of SetMemoryOnly()
};

class Keyspace {
 public:
  static constexpr size_t kStripes = 256;  // a power of two, at most 256 (8 bits of the hash)

  Keyspace(MemoryBudget* budget, BulkPolicy* bulk_policy, MaxmemoryPolicy policy);
  ~Keyspace();

 private:
  struct alignas(64) Stripe {
    SpinMutex mu;
    Table table GUARDED_BY(mu);
    uint64_t expiring GUARDED_BY(mu) = 0;      // entries with an expiry
    int64_t inline_bytes GUARDED_BY(mu) = 0;   // heap blocks of entries, tables
    int64_t unreported GUARDED_BY(mu) = 0;     // part of it the budget does not know yet
    uint64_t expire_cursor GUARDED_BY(mu) = 0;
    std::unordered_map<std::string, Pin> pins GUARDED_BY(mu);
    uint64_t bulk_entries GUARDED_BY(mu) = 0;
    uint64_t ssd_entries GUARDED_BY(mu) = 0;   // those with their value on the SSD alone
    // The newest change of the SSD's log that took a version away from one of its keys.
    uint64_t taken_away GUARDED_BY(mu) = 0;
    // While there are voids: hashes of keys written since, with the newest void at that time.
    std::unordered_map<uint64_t, uint64_t> written GUARDED_BY(mu);
  };

 public:
  // A cursor on one key while its stripe is locked.
  class Key {
   public:
    std::string_view name() const { return name_; }
    // The slot of the key's partition.
    uint8_t partition() const { return keyspace_->PartitionOf(name_); }
    uint64_t hash() const { return hash_; }

    // The entry, or null when there is none (any more).
    Entry* Find();
    // Find() for a command that reads the value: counts as a use.  For a bulk value the eviction
    // policy is told through Keyspace::Touch, after the lock is released.
    Entry* Read();

    // Stores an inline value.  Both Set calls drop the old value and, unless `keep_expiry`, its
    // expiry.
    Entry* Set(std::string_view value, bool keep_expiry = false);
    // The same with room for `bytes` bytes the caller fills in.
    Entry* SetUninitialized(size_t bytes, bool keep_expiry);
    Entry* SetBulk(ValueRef value, bool keep_expiry = false);
    // False when there was nothing.
    bool Erase();
    // Erases the entry of a bulk value and hands the value out.
    // REQUIRES: Find() just returned an entry that is bulk.
    ValueRef TakeBulk();
    // Takes over another key's value on the SSD, which stays alive there; that key is gone.
    // REQUIRES: from.Find() just returned an entry that is on the SSD.
    Entry* TakeOnSsd(Key& from, int64_t expiry_ms);

    // REQUIRES: Find() just returned an entry.  Return it, perhaps moved.
    Entry* SetExpiry(int64_t at_ms);
    Entry* ClearExpiry();

    void SetPin(Pin pin);
    bool ClearPin();
    std::optional<Pin> GetPin() const;

   private:
    friend class Keyspace;
    friend class KeyLock;
    friend class KeysLock;
    Key() = default;
    Key(Keyspace* keyspace, Stripe* stripe, std::string_view name, uint64_t hash, int64_t now_ms)
        : keyspace_(keyspace), stripe_(stripe), name_(name), hash_(hash), now_ms_(now_ms) {}

    Entry* Put(size_t value_bytes, uint8_t kind, bool keep_expiry);
    // A change of this key comes after what others took away from it: should a crash undo that, the
    // change would seem to be undone as well.  Its reply waits for both.
    void ComesAfter() const;
    void LogExpiry(const Entry& entry) const;
    Entry* SetFlags(Entry* entry, uint8_t flags);

    Keyspace* keyspace_ = nullptr;
    Stripe* stripe_ = nullptr;
    std::string_view name_;
    uint64_t hash_ = 0;
    int64_t now_ms_ = 0;
    Table::Slot slot_;
  };

  // --- whole-keyspace operations; any thread ---------------------------------------------------
  uint64_t Size() const;
  // Bytes that it and its values may take.
  uint64_t memory_limit() const { return budget_->limit(); }
  // Bytes of values pinned hard.
  uint64_t hard_pinned_bytes() const {
    return hard_pinned_bytes_.load(std::memory_order_relaxed);
  }
  // Entries with an expiry.
  uint64_t ExpiringSize() const;
  // Removes everything at once (all stripes are locked together).  The entries themselves are
  // freed when the result is destroyed, on whatever thread suits.
  class Cleared;
  struct DestroyCleared {
    void operator()(Cleared* cleared) const;
  };
  std::unique_ptr<Cleared, DestroyCleared> Clear();
  // SCAN: appends the names of live keys to `keys` until about `count` were seen; returns the
  // next cursor, 0 at the end.  Every value is a string, so there is no type to filter by.
  uint64_t Scan(uint64_t cursor, size_t count, int64_t now_ms, std::vector<std::string>* keys);
  std::optional<std::string> RandomKey(int64_t now_ms);

  // Removes expired entries, and pins whose time has passed, in about `buckets` buckets; returns how
  // many entries went.
  size_t ExpireSome(size_t buckets, int64_t now_ms);
  // Evicts the worst of a few sampled inline entries; returns the heap bytes freed, 0 when none
  // was found.  Soft pins hold unless `ignore_soft_pins`.  With `movable` a victim that is worth a
  // place on the SSD stays, and is told there (with 0 bytes).
  struct Movable {
    std::string key;
    uint64_t length = 0;  // 0: none
  };
  size_t EvictInline(int64_t now_ms, bool ignore_soft_pins, Movable* movable = nullptr) {
    return EvictSampled(now_ms, ignore_soft_pins, false, movable);
  }
  // The inline value of `key` goes on in `target`, if it has that length.  Null: not any more.
  ValueRef MoveToPool(std::string_view key, WriteHandle target, int64_t now_ms);
  // Inline values of fewer bytes are not worth a place on the SSD.  Before other threads begin.
  void SetLeastOnSsd(uint64_t bytes) { least_on_ssd_ = bytes; }
  // The same for entries with their value on the SSD, which take little memory and lose much.
  size_t EvictOnSsdForHeap(int64_t now_ms) { return EvictSampled(now_ms, true, true, nullptr); }
  // Where the value of an entry is to be afterwards that is evicted: nowhere, unless it is on the
  // SSD as well; on the SSD; in another tier of memory.
  enum class Next { kDropped, kSsd, kMemory };
  // Evicts the entry that refers to `value`, if nothing has to be moved for it.
  enum class Eviction {
    kFreed,
    kKept,   // pinned, or not there any more
    kMoves,  // it may go, and the caller is to move it: it is not there yet
  };
  Eviction EvictBulk(const BulkValue& value, int64_t now_ms, bool ignore_soft_pins, Next next);
  // Lets the entry that refers to `value` refer to `moved` (the same bytes elsewhere).  In another
  // tier it begins anew in the policy.
  bool MoveBulk(const BulkValue& value, ValueRef moved);
  // The bytes of `value` are gone, with the device that had them: its entry goes, or goes on with the
  // SSD.  False: there was none.
  bool DropLost(const BulkValue& value);

  // --- the SSD tier (keyspace_ssd.cc) ----------------------------------------------------------
  // From now on changes of what is on the SSD are told to `log`, which must outlive the keyspace's
  // use; null: there is no SSD tier.  Before anything else.
  // `stored`, if given, is called with every large value that is stored, its stripe locked.
  void AttachLog(SsdLog* log, std::function<void(BulkValue*)> stored = nullptr) {
    log_ = log;
    stored_ = std::move(stored);
  }
  // Keys that match one of these globs never go to the SSD: they are dropped instead.
  void SetMemoryOnly(std::vector<std::string> globs);
  // At the start: a version found on the SSD.  Returns the place as the entry has it.
  SsdPlace Restore(std::string_view key, int64_t expiry_ms, SsdPlace place);
  // The bytes of `value` are at `place` now: the entry that refers to it goes on without the memory,
  // or, with `keep`, with both.  False when there is no such entry any more, or it has a place
  // already: this one is free.
  bool FinishDemotion(BulkValue& value, SsdPlace place, int64_t now_ms, bool keep);
  // They could not be written: the value is evictable again.
  void AbandonDemotion(BulkValue& value);
  // The bytes at `place` are in memory: the entry that refers to them gets them.  False: gone.
  bool FinishLoad(uint64_t hash, const SsdPlace& place, ValueRef value, BulkValue::Arrival arrival);
  // The bytes at `place` cannot be read any more: the entry goes.  False: it had gone.
  bool DropLost(uint64_t hash, const SsdPlace& place);
  // Drops the worst of a few sampled values on the SSD, of the partition that is furthest above its share
  // if any of that is met; returns its length, 0 when none was found.
  uint64_t EvictOnSsd(int64_t now_ms);
  // Values on the SSD alone.
  uint64_t OnSsdSize() const;
  // For a clean stop, stripe by stripe (0 .. kStripes-1): large values that are in memory, with how
  // recently (or often) they were used, larger is hotter; small ones.
  struct InMemory {
    ValueRef value;
    uint64_t heat;
  };
  std::vector<InMemory> BulkValuesOf(size_t stripe, int64_t now_ms);
  struct Small {
    std::string key;
    int64_t expiry_ms;
    std::string value;
  };
  std::vector<Small> SmallValuesOf(size_t stripe, int64_t now_ms);
  // Where the value is, if it is on the SSD too.
  SsdPlace PlaceOf(const BulkValue& value);
  // Where the value of a key with that hash is, if it is on the SSD alone.
  SsdPlace PlaceOf(uint64_t hash);

  // KV.DROP: keys that match are gone when this returns, though their memory comes back as
  // SweepVoids() goes on; keys written later are not touched.  False: too many are being swept.
  bool VoidPrefix(std::string prefix) { return AddVoid(std::move(prefix), false); }
  bool VoidPattern(std::string glob) { return AddVoid(std::move(glob), true); }
  // Frees some of what was voided; true when there is more.  One thread at a time.
  bool SweepVoids(int64_t now_ms);

  // Of the default partition and of those that say none.  What small values remember of their use
  // follows it in all partitions.
  void SetPolicy(MaxmemoryPolicy policy);
  MaxmemoryPolicy policy() const { return partitions_.policy(0); }

  // --- partitions (keyspace_partitions.cc) -------------------------------------------------------
  // In place of those before.  Values and their counts move over a few at a time, while commands go on;
  // done when it returns.
  void SetPartitions(std::vector<PartitionOptions> partitions);
  const Partitions& partitions() const { return partitions_; }
  Partitions& partitions() { return partitions_; }
  // Null: there are none.
  std::shared_ptr<const PartitionSet> partition_set() const;
  struct PartitionReport {
    PartitionOptions options;  // the default partition's: its name, and the shares that are left
    MaxmemoryPolicy policy;
    Partitions::Counts counts;
  };
  // The default partition first; it alone when there are no others.
  std::vector<PartitionReport> PartitionReports() const;
  // A read of the key's value, or in vain.  `entry`: what was found, null: nothing.  With its stripe
  // locked.
  void CountRead(const Key& key, const Entry* entry) {
    if (partitions_.any()) partitions_.CountRead(entry == nullptr ? key.partition() : SlotOf(*entry),
                                                 entry != nullptr);
  }
  // A read of a value that the caller holds.
  void CountHit(const BulkValue& value) {
    if (partitions_.any()) partitions_.CountRead(value.partition(), true);
  }
  void set_lfu_options(const LfuOptions& options);
  LfuOptions lfu_options() const;
  void set_learn_rate(uint64_t keys_s) { bulk_policy_->set_learn_rate(keys_s); }
  void set_samples(uint32_t samples) { samples_.store(samples, std::memory_order_relaxed); }

  // Returns how many of them had been read ahead.
  size_t Touch(std::span<BulkValue* const> values, bool counts = true) {
    return bulk_policy_->Touch(values, counts);
  }
  // The keys of one command in their order, but for those of inline values; before Touch() and
  // before anything is stored.  Gather them only if somebody wants them.
  bool wants_batches() const { return bulk_policy_->wants_batches(); }
  // `partitions`: as BulkPolicy::NoteBatch wants them (see key_partitions.h).
  bool NoteBatch(std::span<const uint64_t> hashes, BatchKind kind,
                 std::span<const uint8_t> partitions = {}) {
    return bulk_policy_->NoteBatch(hashes, kind, partitions);
  }
  KeyspaceStats stats() const {
    return {expired_.load(std::memory_order_relaxed), evicted_.load(std::memory_order_relaxed),
            memory_only_dropped_.load(std::memory_order_relaxed)};
  }
  void ResetStats();

  // Hints: the first is free of locks, the second takes the stripe's lock for a moment.
  void PrefetchBucket(uint64_t hash) const NO_THREAD_SAFETY_ANALYSIS {
    StripeOf(hash).table.PrefetchBucket(hash);
  }
  void PrefetchEntry(uint64_t hash) const;
  void PrefetchBulk(uint64_t hash) const;  // once its entry is there

 private:
  friend class KeyLock;
  friend class KeysLock;

  // What a KV.DROP made void.
  struct Void {
    uint64_t sequence = 0;
    std::string text;
    bool is_glob = false;
    bool Matches(std::string_view key) const;
  };
  static constexpr size_t kMaxVoids = 64;

  static size_t StripeIndex(uint64_t hash) { return hash >> 56 & (kStripes - 1); }
  Stripe& StripeOf(uint64_t hash) const { return stripes_[StripeIndex(hash)]; }
  void LockAll() NO_THREAD_SAFETY_ANALYSIS;
  void UnlockAll() NO_THREAD_SAFETY_ANALYSIS;

  Table::Slot FindLive(Stripe& stripe, std::string_view key, uint64_t hash, int64_t now_ms)
      REQUIRES(stripe.mu);
  // Takes the entry out and lets go of its value.
  void Remove(Stripe& stripe, uint64_t hash, Table::Slot slot, bool evicted) REQUIRES(stripe.mu);
  void LetGo(BulkValue* value);
  // The value an entry refers to goes for good: out of the policy, from the SSD.
  void DropBulk(Stripe& stripe, const Entry& entry, bool evicted) REQUIRES(stripe.mu);
  size_t EvictSampled(int64_t now_ms, bool ignore_soft_pins, bool on_ssd, Movable* movable);
  // Of values whose partition is at least so far above its share.
  uint64_t EvictOnSsd(int64_t now_ms, const Partitions::Pressures& pressures, double least_pressure);
  // The entry with room for `value_bytes` of another kind, in place where its block fits.
  Entry* Resize(Stripe& stripe, Table::Slot slot, size_t value_bytes, uint8_t flags)
      REQUIRES(stripe.mu);
  Table::Slot FindOwner(Stripe& stripe, const BulkValue& value) REQUIRES(stripe.mu);
  Table::Slot FindPlace(Stripe& stripe, uint64_t hash, const SsdPlace& place) REQUIRES(stripe.mu);
  void KeepOnSsd(Stripe& stripe, Table::Slot slot, const SsdPlace& place) REQUIRES(stripe.mu);
  void LinkBulk(const Entry& entry, bool cold = false);
  void DropPin(Stripe& stripe, std::string_view key) REQUIRES(stripe.mu);
  // Returns how many pins it had to look at.
  size_t DropPassedPins(Stripe& stripe, int64_t now_ms) REQUIRES(stripe.mu);
  // The value of a pinned key has another size now.
  void ResizePin(Stripe& stripe, const Entry& entry) REQUIRES(stripe.mu);
  void Account(Stripe& stripe, int64_t bytes) REQUIRES(stripe.mu);
  void RecordUse(Entry& entry, int64_t now_ms) const;
  bool Evictable(const Stripe& stripe, const Entry& entry, int64_t now_ms,
                 bool ignore_soft_pins) const REQUIRES(stripe.mu);
  // Removes those entries of a list of names that are still what `doomed` says they are.
  template <typename Doomed>
  size_t RemoveNamed(Stripe& stripe, const std::vector<std::string>& names, Doomed&& doomed)
      REQUIRES(stripe.mu);

  bool MemoryOnly(const Stripe& stripe, std::string_view key) const REQUIRES(stripe.mu);

  // With a stripe locked, any of them.
  uint8_t PartitionOf(std::string_view key) const { return set_ == nullptr ? 0 : set_->Match(key); }
  // Where the entry counts: what its value carries.  With its stripe locked.
  uint8_t SlotOf(const Entry& entry) const;
  // An entry began to refer to a value (1) or ceases to (-1).
  void CountLinked(const BulkValue& value, int sign);
  // A version on the SSD began to be an entry's, or is one no more.
  void CountOnSsd(const SsdPlace& place, int sign);
  // The same for a version that goes for good.
  void EraseOnSsd(Stripe& stripe, const SsdPlace& place) REQUIRES(stripe.mu);
  // The value of the entry, in memory or on the SSD, is of this partition now.
  void MoveToPartition(BulkValue* value, uint8_t slot);
  void MoveToPartition(SsdPlace* place, uint8_t slot);
  // After a change of partitions or policies: every value where it belongs.
  void Relink();
  void RelinkEntry(Entry* entry);  // with its stripe locked
  bool AddVoid(std::string text, bool is_glob);
  bool Voided(const Stripe& stripe, std::string_view key, uint64_t hash) const
      REQUIRES(stripe.mu);

  MemoryBudget* const budget_;
  BulkPolicy* const bulk_policy_;
  SsdLog* log_ = nullptr;
  std::function<void(BulkValue*)> stored_;
  uint64_t least_on_ssd_ = 0;
  std::vector<std::string> memory_only_;  // changed with every stripe locked, so read under any one
  Partitions partitions_;
  Mutex change_mu_;  // one change of partitions or policies at a time
  mutable Mutex set_mu_;
  // Null: there are none.  Changed with every stripe and set_mu_ locked, so read under any one.
  std::shared_ptr<const PartitionSet> set_;
  std::atomic<uint32_t> lfu_log_factor_{10};
  std::atomic<uint32_t> lfu_decay_minutes_{1};
  std::atomic<uint32_t> samples_{5};
  std::atomic<uint64_t> hard_pinned_bytes_{0};
  std::atomic<uint64_t> expired_{0};
  std::atomic<uint64_t> evicted_{0};
  std::atomic<uint64_t> memory_only_dropped_{0};
  std::atomic<uint32_t> expire_stripe_{0};

  std::atomic<bool> any_void_{false};
  std::vector<Void> voids_;  // changed with every stripe locked, so read under any one
  uint64_t void_sequence_ = 0;
  uint64_t void_cursor_ = 0;  // SweepVoids's place, and the newest void its pass will retire
  uint64_t void_pass_ = 0;

  std::unique_ptr<Stripe[]> stripes_;
};

// Locks the stripe of one key.
class KeyLock {
 public:
  KeyLock(Keyspace& keyspace, std::string_view name, uint64_t hash, int64_t now_ms)
      NO_THREAD_SAFETY_ANALYSIS
      : key(&keyspace, &keyspace.StripeOf(hash), name, hash, now_ms) {
    key.stripe_->mu.Lock();
  }
  KeyLock(Keyspace& keyspace, std::string_view name, int64_t now_ms)
      : KeyLock(keyspace, name, HashKey(name), now_ms) {}
  // The lock keeps a view of the name: a temporary string would be gone before it.
  template <typename T> requires std::is_same_v<T, std::string>
  KeyLock(Keyspace&, T&&, int64_t) = delete;
  ~KeyLock() NO_THREAD_SAFETY_ANALYSIS { key.stripe_->mu.Unlock(); }
  KeyLock(const KeyLock&) = delete;
  KeyLock& operator=(const KeyLock&) = delete;

  Keyspace::Key key;
};

// Locks the stripes of several keys together, in order, each once.
class KeysLock {
 public:
  KeysLock(Keyspace& keyspace, std::span<const std::string_view> names, int64_t now_ms)
      NO_THREAD_SAFETY_ANALYSIS;
  ~KeysLock() NO_THREAD_SAFETY_ANALYSIS;
  KeysLock(const KeysLock&) = delete;
  KeysLock& operator=(const KeysLock&) = delete;

  size_t size() const { return keys_.size(); }
  Keyspace::Key& operator[](size_t index) { return keys_[index]; }

 private:
  std::vector<Keyspace::Key> keys_;
  std::vector<Keyspace::Stripe*> stripes_;
};

}  // namespace moonpool::storage
