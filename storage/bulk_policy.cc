#include "storage/bulk_policy.h"

#include <algorithm>
#include <chrono>

namespace moonpool::storage {

namespace {

// A pause that long makes up for as much learning at once.
constexpr int64_t kBurstNs = 250'000'000;

constexpr uint8_t kReadsToPromote = 2;

bool InCxl(const BulkValue& value) {
  return value.tier() == protocol::Tier::kCxl;
}

bool SamePlace(const BulkValue& a, const BulkValue& b) {
  return a.tier() == b.tier() && a.device() == b.device();
}

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

BulkPolicy::Queue& BulkPolicy::QueueOf(const BulkValue& value) {
  Queue& queue = queues_[value.partition()];
  MOONPOOL_CHECK(queue.policy != nullptr);
  return queue;
}

ItemList* BulkPolicy::OutsideQueue(Queue& queue, const BulkValue& value) {
  switch (value.tier()) {
    case protocol::Tier::kDram:
      return nullptr;
    case protocol::Tier::kCxl:
      return value.wanted ? &queue.wanted : &queue.cxl;
    case protocol::Tier::kGpu:
      return &queue.gpu[value.device_number()];
  }
  __builtin_unreachable();
}

void BulkPolicy::Enter(Queue& queue, BulkValue* value, bool cold) {
  value->in_policy = true;
  if (ItemList* const outside = OutsideQueue(queue, *value)) {
    value->cxl_reads = 0;
    outside->PushFront(value);
    return;
  }
  value->cold = cold;
  queue.bytes += value->policy_bytes;
  if (cold) {
    queue.cold.PushFront(value);
    queue.cold_bytes += value->policy_bytes;
  } else {
    queue.policy->Insert(value);
  }
}

void BulkPolicy::Leave(BulkValue* value, bool evicted) {
  Queue& queue = QueueOf(*value);
  value->in_policy = false;
  if (OutsideQueue(queue, *value) != nullptr) {
    ItemList::Unlink(value);
    if (std::exchange(value->wanted, false)) wanted_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  queue.bytes -= value->policy_bytes;
  if (value->cold) {
    ItemList::Unlink(value);
    queue.cold_bytes -= value->policy_bytes;
  } else {
    queue.policy->Remove(value, evicted);
  }
}

void BulkPolicy::Empty(Queue& queue) {
  if (queue.policy == nullptr) return;
  const auto any = [&] {
    PolicyItem* item = nullptr;
    for (ItemList* list : {&queue.cold, &queue.cxl, &queue.wanted}) {
      if (item == nullptr) item = list->back();
    }
    for (ItemList& list : queue.gpu) {
      if (item == nullptr) item = list.back();
    }
    return static_cast<BulkValue*>(item != nullptr ? item : queue.policy->Any());
  };
  while (BulkValue* value = any()) Leave(value, false);
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
  Queue& queue = queues_[partition];
  Empty(queue);
  queue.policy.reset();
  queue.admission = Admission::kSecondRead;
  SeeWhoLearns();
}

void BulkPolicy::Assign(BulkValue* value, uint8_t partition) {
  MutexLock lock(mu_);
  if (value->in_policy) Leave(value, false);
  value->set_partition(partition);
}

void BulkPolicy::Link(BulkValue* value, int64_t expiry_ms, uint16_t group, bool cold) {
  MutexLock lock(mu_);
  if (value->in_policy) return;
  value->key_hash = value->owner_hash();
  value->rank = static_cast<uint64_t>(expiry_ms);
  value->group = group;
  Queue& queue = QueueOf(*value);
  Enter(queue, value, cold);
  if (!queue.learns && queue.policy->WantsBatches()) {
    queue.learns = true;
    wants_batches_.store(true, std::memory_order_relaxed);
  }
}

void BulkPolicy::Unlink(BulkValue* value, bool evicted) {
  if (evicted && value->TakeArrival() == BulkValue::Arrival::kAhead) read_ahead_.Wasted();
  MutexLock lock(mu_);
  if (value->in_policy) Leave(value, evicted);
}

void BulkPolicy::Replace(BulkValue* value, BulkValue* replacement) {
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  // In another tier it is to be linked anew.
  if (!SamePlace(*value, *replacement)) return Leave(value, false);
  if (InCxl(*value)) {
    replacement->cxl_reads = value->cxl_reads;
    replacement->wanted = std::exchange(value->wanted, false);
  }
  value->in_policy = false;
  replacement->in_policy = true;
  replacement->cold = value->cold;
  Queue& queue = QueueOf(*value);
  value->cold || OutsideQueue(queue, *value) != nullptr
      ? ItemList::Replace(value, replacement)
      : queue.policy->Replace(value, replacement);
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
      if (InCxl(*value)) {
        TouchInCxl(value, counts && keeps, admission);
        continue;
      }
      if (value->device() != nullptr) {
        gpu_hits_.fetch_add(1, std::memory_order_relaxed);
        if (!counts || !value->in_policy) continue;
        ItemList::Unlink(value);
        OutsideQueue(QueueOf(*value), *value)->PushFront(value);
        continue;
      }
      if (!counts || !keeps || !value->in_policy) continue;
      if (!value->cold) {
        QueueOf(*value).policy->Access(value);
        continue;
      }
      Leave(value, false);
      Enter(QueueOf(*value), value, false);
    }
  }
  for (size_t i = 0; i < ahead; ++i) read_ahead_.Useful();
  return ahead;
}

void BulkPolicy::TouchInCxl(BulkValue* value, bool keeps, Admission admission) {
  cxl_hits_.fetch_add(1, std::memory_order_relaxed);
  if (!keeps || !value->in_policy || value->wanted) return;
  Queue& queue = QueueOf(*value);
  if (value->cxl_reads < kReadsToPromote) ++value->cxl_reads;
  value->wanted = admission == Admission::kAlways ||
                  (admission == Admission::kSecondRead && value->cxl_reads == kReadsToPromote);
  if (value->wanted) wanted_.fetch_add(1, std::memory_order_relaxed);
  ItemList::Unlink(value);
  (value->wanted ? queue.wanted : queue.cxl).PushFront(value);
}

ValueRef BulkPolicy::TakeWanted() {
  MutexLock lock(mu_);
  for (Queue& queue : queues_) {
    PolicyItem* const item = queue.wanted.back();
    if (item == nullptr) continue;
    auto* const value = static_cast<BulkValue*>(item);
    ItemList::Unlink(value);
    value->wanted = false;
    wanted_.fetch_sub(1, std::memory_order_relaxed);
    queue.cxl.PushFront(value);
    return ValueRef::Share(value);
  }
  return {};
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

bool BulkPolicy::ColdFirst(uint8_t partition, bool load) {
  const double share = cold_share_.load(std::memory_order_relaxed) * (load ? 0.5 : 1);
  MutexLock lock(mu_);
  const Queue& queue = queues_[partition];
  return static_cast<double>(queue.cold_bytes) > share * static_cast<double>(queue.bytes);
}

ValueRef BulkPolicy::Victim(uint8_t partition, Among among, size_t device) {
  MutexLock lock(mu_);
  Queue& queue = queues_[partition];
  if (queue.policy == nullptr) return {};
  const auto in_cxl = [&] {
    PolicyItem* const item = queue.cxl.back();
    return item != nullptr ? item : queue.wanted.back();
  };
  PolicyItem* const item = among == Among::kCold  ? queue.cold.back()
                           : among == Among::kCxl ? in_cxl()
                           : among == Among::kGpu ? queue.gpu[device].back()
                                                  : queue.policy->Victim();
  // While it is linked, its entry's reference keeps it alive.
  return item == nullptr ? ValueRef() : ValueRef::Share(static_cast<BulkValue*>(item));
}

void BulkPolicy::Spare(const ValueRef& value) {
  MutexLock lock(mu_);
  if (!value->in_policy) return;
  Queue& queue = QueueOf(*value);
  ItemList* const outside = OutsideQueue(queue, *value);
  if (value->cold || outside != nullptr) {
    ItemList::Unlink(value.get());
    (outside != nullptr ? *outside : queue.cold).PushFront(value.get());
  } else {
    queue.policy->Spare(value.get());
  }
}

}  // namespace moonpool::storage
