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

EvictionPolicy& BulkPolicy::PolicyOf(const BulkValue& value) {
  EvictionPolicy* const policy = queues_[value.partition()].policy.get();
  MOONPOOL_CHECK(policy != nullptr);
  return *policy;
}

void BulkPolicy::Empty(Queue& queue) {
  while (PolicyItem* item = queue.policy != nullptr ? queue.policy->Any() : nullptr) {
    item->in_policy = false;
    queue.policy->Remove(item, false);
  }
  queue.learns = false;
}

void BulkPolicy::Change(MaxmemoryPolicy policy, uint8_t partition) {
  std::unique_ptr<EvictionPolicy> next = MakeEvictionPolicy(policy);
  MutexLock lock(mu_);
  Empty(queues_[partition]);
  queues_[partition].policy = std::move(next);
  SeeWhoLearns();
}

void BulkPolicy::SeeWhoLearns() {
  bool any = false;
  for (const Queue& queue : queues_) any |= queue.learns;
  wants_batches_.store(any, std::memory_order_relaxed);
}

void BulkPolicy::SetAdmission(uint8_t partition, Admission admission) {
  MutexLock lock(mu_);
  queues_[partition].admission = admission;
}

void BulkPolicy::Close(uint8_t partition) {
  MutexLock lock(mu_);
  // Those that FLUSHALL took out of the keyspace may still be here.
  Empty(queues_[partition]);
  queues_[partition] = Queue();
  SeeWhoLearns();
}

void BulkPolicy::Assign(BulkValue* value, uint8_t partition) {
  MutexLock lock(mu_);
  if (value->in_policy) {
    value->in_policy = false;
    PolicyOf(*value).Remove(value, false);
  }
  value->set_partition(partition);
}

void BulkPolicy::Link(BulkValue* value, int64_t expiry_ms, uint16_t group, bool cold) {
  MutexLock lock(mu_);
  if (value->in_policy) return;
  value->in_policy = true;
  value->key_hash = value->owner_hash();
  value->rank = static_cast<uint64_t>(expiry_ms);
  value->group = group;
  EvictionPolicy& policy = PolicyOf(*value);
  cold ? policy.InsertCold(value) : policy.Insert(value);
  Queue& queue = queues_[value->partition()];
  if (!queue.learns && policy.WantsBatches()) {
    queue.learns = true;
    wants_batches_.store(true, std::memory_order_relaxed);
  }
}

void BulkPolicy::Unlink(BulkValue* value, bool evicted) {
  if (evicted && value->TakeArrival() == BulkValue::Arrival::kAhead) read_ahead_.Wasted();
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  value->in_policy = false;
  PolicyOf(*value).Remove(value, evicted);
}

void BulkPolicy::Replace(BulkValue* value, BulkValue* replacement) {
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  value->in_policy = false;
  replacement->in_policy = true;
  PolicyOf(*value).Replace(value, replacement);
}

size_t BulkPolicy::Touch(std::span<BulkValue* const> values, bool counts) {
  size_t ahead = 0;
  {
    MutexLock lock(mu_);
    for (BulkValue* value : values) {
      using Arrival = BulkValue::Arrival;
      const Arrival arrival = value->TakeArrival();
      ahead += arrival == Arrival::kAhead ? 1 : 0;
      const Admission admission = queues_[value->partition()].admission;
      // What is never let in stays as cold as it came.
      if (arrival != Arrival::kNone && admission == Admission::kNever) {
        value->set_arrival(Arrival::kCold);
      }
      // The read that a value came up for is not yet a reason to keep it, unless any read is.
      const bool keeps = arrival == Arrival::kNone ||
                         (arrival == Arrival::kAhead && admission == Admission::kAlways);
      if (counts && keeps && value->in_policy) PolicyOf(*value).Access(value);
    }
  }
  for (size_t i = 0; i < ahead; ++i) read_ahead_.Useful();
  return ahead;
}

bool BulkPolicy::NoteBatch(std::span<const uint64_t> key_hashes, BatchKind kind,
                           std::span<const uint8_t> partitions) {
  if (!wants_batches() || key_hashes.size() < 2) return true;
  if (kind != BatchKind::kWrite && !LearnsNow(key_hashes.size())) return false;
  const auto note = [&](uint8_t partition, std::span<const uint64_t> hashes) {
    mu_.AssertHeld();
    // The set of partitions may have changed since the keys were looked up.
    EvictionPolicy* const policy = queues_[partition].policy.get();
    if (policy != nullptr && hashes.size() > 1) policy->Batch(hashes, kind);
  };
  const auto differs = [&](uint8_t partition) { return partition != partitions.front(); };
  MutexLock lock(mu_);
  if (std::none_of(partitions.begin(), partitions.end(), differs)) {
    note(partitions.empty() ? 0 : partitions.front(), key_hashes);
    return true;
  }
  std::array<std::vector<uint64_t>, Partitions::kSlots> by_partition;
  for (size_t i = 0; i < key_hashes.size(); ++i) {
    by_partition[partitions[i]].push_back(key_hashes[i]);
  }
  for (size_t i = 0; i < by_partition.size(); ++i) {
    note(static_cast<uint8_t>(i), by_partition[i]);
  }
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

size_t BulkPolicy::Successors(uint64_t key_hash, std::span<uint64_t> out, uint8_t partition) {
  MutexLock lock(mu_);
  const EvictionPolicy* const policy = queues_[partition].policy.get();
  return policy == nullptr ? 0 : policy->Successors(key_hash, out);
}

ValueRef BulkPolicy::Victim(uint8_t partition) {
  MutexLock lock(mu_);
  EvictionPolicy* const policy = queues_[partition].policy.get();
  PolicyItem* item = policy == nullptr ? nullptr : policy->Victim();
  // While it is linked, its entry's reference keeps it alive.
  return item == nullptr ? ValueRef() : ValueRef::Share(static_cast<BulkValue*>(item));
}

void BulkPolicy::Spare(const ValueRef& value) {
  MutexLock lock(mu_);
  if (value->in_policy) PolicyOf(*value).Spare(value.get());
}

}  // namespace moonpool::storage
