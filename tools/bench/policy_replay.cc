#include "tools/bench/policy_replay.h"

#include <limits>
#include <queue>
#include <span>
#include <unordered_map>
#include <utility>

#include "tools/bench/clock.h"

namespace moonpool::bench {

namespace {

// One eviction in so many is timed.
constexpr uint64_t kTimedEvery = 16;

uint64_t Mix(uint64_t x) {  // splitmix64, by S. Vigna
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Counts the hits of one request after the other.
class Counter {
 public:
  explicit Counter(HitFigures* figures) : figures_(*figures) {}
  void Begin() { unbroken_ = true; }
  void Count(bool hit) {
    ++figures_.accesses;
    unbroken_ = unbroken_ && hit;
    figures_.block_hits += hit;
    figures_.prefix_hits += unbroken_;
  }

 private:
  HitFigures& figures_;
  bool unbroken_ = true;
};

}  // namespace

BlockTrace::BlockTrace(const Trace& trace) {
  std::unordered_map<uint64_t, uint32_t> numbers;
  for (const TraceRequest& request : trace) {
    for (const uint64_t id : request.blocks) {
      const auto [place, is_new] = numbers.emplace(id, static_cast<uint32_t>(numbers.size()));
      if (is_new) hashes.push_back(Mix(id));
      blocks.push_back(place->second);
    }
    ends.push_back(blocks.size());
  }
}

HitFigures RunPolicy(const BlockTrace& trace, storage::EvictionPolicy& policy, size_t capacity,
                     uint64_t block_bytes) {
  HitFigures figures;
  Counter counter(&figures);
  std::vector<storage::PolicyItem> items(trace.distinct());
  size_t cached = 0;
  uint64_t timed = 0, timed_ns = 0;
  const auto evict = [&] {
    const bool time = figures.evictions++ % kTimedEvery == 0;
    const uint64_t start = time ? NowNs() : 0;
    storage::PolicyItem* victim = policy.Victim();
    policy.Remove(victim, true);
    victim->in_policy = false;
    --cached;
    if (!time) return;
    timed_ns += NowNs() - start;
    ++timed;
  };
  std::vector<uint64_t> hashes, missed_hashes;
  std::vector<uint32_t> missed;
  const bool batches = policy.WantsBatches();
  const uint64_t start = NowNs();
  size_t first = 0;
  for (const size_t end : trace.ends) {
    const std::span request(trace.blocks.data() + first, end - first);
    first = end;
    if (batches) {
      hashes.clear();
      for (const uint32_t block : request) hashes.push_back(trace.hashes[block]);
      policy.Batch(hashes, storage::BatchKind::kRead);
    }
    counter.Begin();
    missed.clear();
    for (const uint32_t block : request) {
      const bool hit = items[block].in_policy;
      counter.Count(hit);
      if (hit) {
        policy.Access(&items[block]);
      } else {
        missed.push_back(block);
      }
    }
    if (batches) {
      missed_hashes.clear();
      for (const uint32_t block : missed) missed_hashes.push_back(trace.hashes[block]);
      policy.Batch(missed_hashes, storage::BatchKind::kWrite);
    }
    for (const uint32_t block : missed) {
      storage::PolicyItem& item = items[block];
      if (item.in_policy) continue;  // named twice
      while (cached >= capacity) evict();
      item.key_hash = trace.hashes[block];
      item.policy_bytes = block_bytes;
      item.in_policy = true;
      policy.Insert(&item);
      ++cached;
    }
  }
  if (figures.accesses > 0) {
    figures.ns_per_access =
        static_cast<double>(NowNs() - start) / static_cast<double>(figures.accesses);
  }
  if (timed > 0) {
    figures.ns_per_eviction = static_cast<double>(timed_ns) / static_cast<double>(timed);
  }
  return figures;
}

HitFigures RunBelady(const BlockTrace& trace, size_t capacity) {
  constexpr size_t kNever = std::numeric_limits<size_t>::max();
  std::vector<size_t> next_use(trace.blocks.size());
  std::vector<size_t> upcoming(trace.distinct(), kNever);
  for (size_t i = trace.blocks.size(); i-- > 0;) {
    next_use[i] = std::exchange(upcoming[trace.blocks[i]], i);
  }
  HitFigures figures;
  Counter counter(&figures);
  // By next use, the last on top; those of blocks that were used meanwhile are stale.
  std::priority_queue<std::pair<size_t, uint32_t>> queue;
  std::vector<size_t> cached_until(trace.distinct(), 0);  // the next use; 0: not cached
  size_t cached = 0, request = 0;
  for (size_t i = 0; i < trace.blocks.size(); ++i) {
    while (i == (request == 0 ? 0 : trace.ends[request - 1]) && request < trace.ends.size()) {
      counter.Begin();
      ++request;
    }
    const uint32_t block = trace.blocks[i];
    const bool hit = cached_until[block] != 0;
    counter.Count(hit);
    cached += hit ? 0 : 1;
    cached_until[block] = next_use[i];
    queue.emplace(next_use[i], block);
    while (cached > capacity) {
      const auto [until, victim] = queue.top();
      queue.pop();
      if (cached_until[victim] != until) continue;
      cached_until[victim] = 0;
      --cached;
      ++figures.evictions;
    }
  }
  return figures;
}

}  // namespace moonpool::bench
