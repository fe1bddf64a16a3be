// The bulk values of one tenant in the order in which they would be evicted.
//
// Threads: any; mu_ is a leaf lock.  Owns the policy, not the values: a value is linked while an
// entry of the keyspace refers to it (under volatile-*: one with an expiry), and unlinked before
// that entry lets go of it.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>

#include "protocol/mutex.h"
#include "storage/bulk_value.h"
#include "storage/eviction_policy.h"
#include "storage/read_ahead_window.h"

namespace moonpool::storage {

enum class MaxmemoryPolicy {
  kNoEviction,
  kAllKeysLru,
  kAllKeysLfu,
  kAllKeysS3Fifo,
  kAllKeysPrefix,
  kAllKeysRandom,
  kVolatileLru,
  kVolatileLfu,
  kVolatileRandom,
  kVolatileTtl,
};

constexpr bool VolatileOnly(MaxmemoryPolicy policy) {
  return policy >= MaxmemoryPolicy::kVolatileLru;
}

// The policy for bulk values, empty.
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(MaxmemoryPolicy policy);

class BulkPolicy {
 public:
  explicit BulkPolicy(MaxmemoryPolicy policy) : policy_(MakeEvictionPolicy(policy)) {}

  // Starts over with an empty policy; the keyspace links its values again (Keyspace::Relink).
  void Change(MaxmemoryPolicy policy);

  // `expiry_ms`: when the value's key expires, for the policies that look at it; 0: never.
  // Nothing when it is linked already.
  // `group`: hash of the key's namespace.  `cold`: the next to go unless it is asked for again.
  void Link(BulkValue* value, int64_t expiry_ms, uint16_t group = 0, bool cold = false);
  void Unlink(BulkValue* value, bool evicted);  // nothing when it is not linked
  void Replace(BulkValue* value, BulkValue* replacement);
  // Values just read, in order.  The caller holds a reference to each; one that was unlinked
  // meanwhile is passed over.  Returns how many of them had been read ahead.  `counts`: what
  // NoteBatch() said of the command they were read by.
  size_t Touch(std::span<BulkValue* const> values, bool counts = true);
  // The keys of one command in their order, before its Link() and Touch().  Costs nothing while
  // the policy does not care or nothing was ever linked, or with a single key; whoever
  // would gather the hashes for this alone asks first.  False: there are more batches than the
  // policy is to learn from, and reading the values of this one is no use to it either.
  bool wants_batches() const { return wants_batches_.load(std::memory_order_relaxed); }
  bool NoteBatch(std::span<const uint64_t> key_hashes, BatchKind kind);
  // How many keys a second a policy learns from at most, when they are only read; 0: any number.
  // Of more it takes a sample of the commands, so that learning costs no more than so much.
  void set_learn_rate(uint64_t keys_s);
  // See EvictionPolicy::Successors.
  size_t Successors(uint64_t key_hash, std::span<uint64_t> out);
  ReadAheadWindow& read_ahead() { return read_ahead_; }

  // The next victim, pinned; empty when there is none.  It stays linked.
  ValueRef Victim();
  void Spare(const ValueRef& value);

 private:
  bool LearnsNow(size_t keys);

  ReadAheadWindow read_ahead_;
  Mutex mu_;
  std::unique_ptr<EvictionPolicy> policy_ PT_GUARDED_BY(mu_);
  // What wants_batches() says: the policy does, and something was ever linked.
  std::atomic<bool> wants_batches_{false};
  std::atomic<int64_t> learn_ns_{0};        // a key's share of the time; 0: no limit
  std::atomic<int64_t> learned_until_{0};   // steady clock: what was learned from took until then
};

}  // namespace moonpool::storage
