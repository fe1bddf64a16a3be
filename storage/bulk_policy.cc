#include "storage/bulk_policy.h"

namespace moonpool::storage {

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

size_t BulkPolicy::Touch(std::span<BulkValue* const> values) {
  size_t ahead = 0;
  {
    MutexLock lock(mu_);
    for (BulkValue* value : values) {
      const BulkValue::Arrival arrival = value->TakeArrival();
      ahead += arrival == BulkValue::Arrival::kAhead ? 1 : 0;
      // The read that a value came up for is not yet a reason to keep it.
      if (arrival == BulkValue::Arrival::kNone && value->in_policy) policy_->Access(value);
    }
  }
  for (size_t i = 0; i < ahead; ++i) read_ahead_.Useful();
  return ahead;
}

void BulkPolicy::NoteBatch(std::span<const uint64_t> key_hashes, BatchKind kind) {
  if (!wants_batches() || key_hashes.size() < 2) return;
  MutexLock lock(mu_);
  policy_->Batch(key_hashes, kind);
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
