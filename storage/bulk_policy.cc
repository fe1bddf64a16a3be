#include "storage/bulk_policy.h"

#include <algorithm>
#include <chrono>

namespace moonpool::storage {

namespace {

// A pause that long makes up for as much learning at once.
constexpr int64_t kBurstNs = 250'000'000;

}  // namespace

std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(MaxmemoryPolicy policy) {
  switch (policy) {
    case MaxmemoryPolicy::kAllKeysLfu:
    case MaxmemoryPolicy::kVolatileLfu:
      return MakeLfuPolicy();
    case MaxmemoryPolicy::kAllKeysS3Fifo:
      return MakeS3FifoPolicy();
    case MaxmemoryPolicy::kAllKeysPrefix:
      return MakePrefixPolicy();
    case MaxmemoryPolicy::kAllKeysRandom:
    case MaxmemoryPolicy::kVolatileRandom:
      return MakeRandomPolicy();
    case MaxmemoryPolicy::kVolatileTtl:
      return MakeTtlPolicy();
    case MaxmemoryPolicy::kNoEviction:
    case MaxmemoryPolicy::kAllKeysLru:
    case MaxmemoryPolicy::kVolatileLru:
      return MakeLruPolicy();
  }
  __builtin_unreachable();
}

void BulkPolicy::Change(MaxmemoryPolicy policy) {
  std::unique_ptr<EvictionPolicy> next = MakeEvictionPolicy(policy);
  MutexLock lock(mu_);
  while (PolicyItem* item = policy_->Any()) {
    item->in_policy = false;
    policy_->Remove(item, false);
  }
  policy_ = std::move(next);
  wants_batches_.store(false, std::memory_order_relaxed);
}

void BulkPolicy::Link(BulkValue* value, int64_t expiry_ms, uint16_t group, bool cold) {
  MutexLock lock(mu_);
  if (value->in_policy) return;
  value->in_policy = true;
  value->key_hash = value->owner_hash();
  value->rank = static_cast<uint64_t>(expiry_ms);
  value->group = group;
  cold ? policy_->InsertCold(value) : policy_->Insert(value);
  if (!wants_batches() && policy_->WantsBatches()) {
    wants_batches_.store(true, std::memory_order_relaxed);
  }
}

void BulkPolicy::Unlink(BulkValue* value, bool evicted) {
  if (evicted && value->TakeArrival() == BulkValue::Arrival::kAhead) read_ahead_.Wasted();
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  value->in_policy = false;
  policy_->Remove(value, evicted);
}

void BulkPolicy::Replace(BulkValue* value, BulkValue* replacement) {
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  value->in_policy = false;
  replacement->in_policy = true;
  policy_->Replace(value, replacement);
}

size_t BulkPolicy::Touch(std::span<BulkValue* const> values, bool counts) {
  size_t ahead = 0;
  {
    MutexLock lock(mu_);
    for (BulkValue* value : values) {
      const BulkValue::Arrival arrival = value->TakeArrival();
      ahead += arrival == BulkValue::Arrival::kAhead ? 1 : 0;
      // The read that a value came up for is not yet a reason to keep it.
      if (counts && arrival == BulkValue::Arrival::kNone && value->in_policy) {
        policy_->Access(value);
      }
    }
  }
  for (size_t i = 0; i < ahead; ++i) read_ahead_.Useful();
  return ahead;
}

bool BulkPolicy::NoteBatch(std::span<const uint64_t> key_hashes, BatchKind kind) {
  if (!wants_batches() || key_hashes.size() < 2) return true;
  if (kind != BatchKind::kWrite && !LearnsNow(key_hashes.size())) return false;
  MutexLock lock(mu_);
  policy_->Batch(key_hashes, kind);
  return true;
}

void BulkPolicy::set_learn_rate(uint64_t keys_s) {
  learn_ns_.store(keys_s == 0 ? 0 : std::max<int64_t>(1, 1'000'000'000 / static_cast<int64_t>(keys_s)),
                  std::memory_order_relaxed);
}

// A leaky bucket.  Threads that race here learn from one command more.
bool BulkPolicy::LearnsNow(size_t keys) {
  const int64_t ns = learn_ns_.load(std::memory_order_relaxed);
  if (ns == 0) return true;
  const int64_t now = std::chrono::steady_clock::now().time_since_epoch().count();
  const int64_t until = learned_until_.load(std::memory_order_relaxed);
  if (until > now) return false;
  learned_until_.store(std::max(until, now - kBurstNs) + ns * static_cast<int64_t>(keys),
                       std::memory_order_relaxed);
  return true;
}

size_t BulkPolicy::Successors(uint64_t key_hash, std::span<uint64_t> out) {
  MutexLock lock(mu_);
  return policy_->Successors(key_hash, out);
}

ValueRef BulkPolicy::Victim() {
  MutexLock lock(mu_);
  PolicyItem* item = policy_->Victim();
  // While it is linked, its entry's reference keeps it alive.
  return item == nullptr ? ValueRef() : ValueRef::Share(static_cast<BulkValue*>(item));
}

void BulkPolicy::Spare(const ValueRef& value) {
  MutexLock lock(mu_);
  if (value->in_policy) policy_->Spare(value.get());
}

}  // namespace moonpool::storage
