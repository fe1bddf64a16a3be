#include "storage/cxl_tier.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "storage/clock.h"
#include "storage/extent_allocator.h"

namespace moonpool::storage {

namespace {

using Clock = std::chrono::steady_clock;

// How often it is tried again while room is on its way to come free.
constexpr std::chrono::milliseconds kRetry{2};

uint64_t MicrosecondsSince(Clock::time_point start) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count());
}

void Count(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

// "0-2,5" of the kernel's lists of nodes.
std::vector<int> ReadNodes(const std::string& path) {
  std::ifstream file(path);
  std::vector<int> nodes;
  for (std::string range; std::getline(file, range, ',');) {
    int first = 0;
    int last = 0;
    char dash = 0;
    std::istringstream words(range);
    if (!(words >> first)) continue;
    if (!(words >> dash >> last) || dash != '-') last = first;
    for (int node = first; node <= last; ++node) nodes.push_back(node);
  }
  return nodes;
}

}  // namespace

Result<int> FindCpulessNode(const std::string& directory) {
  std::vector<int> nodes = ReadNodes(directory + "/has_memory");
  for (const int node : ReadNodes(directory + "/has_cpu")) std::erase(nodes, node);
  if (nodes.size() == 1) return nodes.front();
  if (nodes.empty()) {
    return Fail(ErrorCode::kNotFound,
                "no NUMA node here has memory and no processor; name the node with cxl-node, or "
                "set cxl-memory to 0");
  }
  return Fail(ErrorCode::kInvalidArgument,
              std::to_string(nodes.size()) +
                  " NUMA nodes here have memory and no processor; name one with cxl-node");
}

CxlTier::CxlTier(const CxlTierOptions& options, Keyspace& keyspace, BulkPolicy& policy, Hooks hooks)
    : options_(options),
      keyspace_(keyspace),
      policy_(policy),
      hooks_(std::move(hooks)),
      thread_([this] { Run(); }) {}

CxlTier::~CxlTier() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
  for (Down& down : down_) {
    keyspace_.AbandonDemotion(*down.value);
    down.value->EndDemotion();
  }
}

CxlTier::Taken CxlTier::Demote(ValueRef value) {
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  // One value always fits, however large.
  const uint64_t queued = queued_bytes();
  if (queued > 0 && queued + bytes > options_.queue_bytes) return Taken::kFull;
  if (!value->BeginDemotion()) return Taken::kOtherwise;
  Count(queued_bytes_, bytes);
  const uint8_t partition = value->partition();
  keyspace_.partitions().AddLeaving(protocol::Tier::kDram, partition, static_cast<int64_t>(bytes));
  {
    MutexLock lock(mu_);
    down_.push_back({std::move(value), partition});
  }
  changed_.NotifyOne();
  return Taken::kYes;
}

void CxlTier::Wake() {
  {
    MutexLock lock(mu_);
    if (std::exchange(wake_, true)) return;
  }
  changed_.NotifyOne();
}

void CxlTier::Run() {
  for (;;) {
    Down down;
    {
      MutexLock lock(mu_);
      while (down_.empty() && !wake_ && !stop_) changed_.Wait(mu_);
      if (stop_) return;
      wake_ = false;
      if (!down_.empty()) {
        down = std::move(down_.front());
        down_.pop_front();
      }
    }
    if (down.value) MoveDown(down);
    // One for one, so that neither direction keeps the other waiting.
    if (MoveUp()) Wake();
  }
}

Result<WriteHandle> CxlTier::ReserveAndWait(uint64_t length) {
  const int64_t until_ms = MonotonicMs() + options_.wait_ms;
  for (;;) {
    auto handle = hooks_.reserve(length);
    if (handle || handle.error().code != ErrorCode::kBusy || MonotonicMs() >= until_ms) {
      return handle;
    }
    MutexLock lock(mu_);
    if (stop_) return handle;
    changed_.WaitFor(mu_, kRetry);
  }
}

bool CxlTier::Move(const ValueRef& value, WriteHandle target) {
  std::memcpy(target.data(), value->data(), value->length());
  return keyspace_.MoveBulk(*value, std::move(target).Publish(value->crc()));
}

void CxlTier::MoveDown(Down& down) {
  ValueRef value = std::move(down.value);
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  auto target = ReserveAndWait(value->length());
  value->EndDemotion();
  bool freed = true;
  if (!target) {
    Count(counters_.refused);
    hooks_.refused(value);
    freed = false;
  } else {
    const auto start = Clock::now();
    if (Move(value, std::move(*target))) {
      demote_us_.Add(MicrosecondsSince(start));
      Count(counters_.demotions);
      Count(counters_.demoted_bytes, value->length());
    } else {
      Count(counters_.abandoned);
    }
  }
  value.Reset();
  keyspace_.partitions().AddLeaving(protocol::Tier::kDram, down.leaves,
                                    -static_cast<int64_t>(bytes));
  queued_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
  if (freed) hooks_.freed(bytes);
}

bool CxlTier::MoveUp() {
  if (!policy_.any_wanted()) return false;
  const ValueRef value = policy_.TakeWanted();
  if (!value) return false;
  auto target = hooks_.reserve_dram(value->length());
  if (!target) return false;
  const auto start = Clock::now();
  if (Move(value, std::move(*target))) {
    promote_us_.Add(MicrosecondsSince(start));
    Count(counters_.promotions);
    Count(counters_.promoted_bytes, value->length());
  } else {
    Count(counters_.abandoned);
  }
  return true;
}

CxlTierStats CxlTier::stats() const {
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  CxlTierStats stats;
  stats.demotions = read(counters_.demotions);
  stats.demoted_bytes = read(counters_.demoted_bytes);
  stats.promotions = read(counters_.promotions);
  stats.promoted_bytes = read(counters_.promoted_bytes);
  stats.abandoned = read(counters_.abandoned);
  stats.refused = read(counters_.refused);
  stats.queued_bytes = queued_bytes();
  stats.demote_p50_us = demote_us_.Percentile(0.5);
  stats.demote_p99_us = demote_us_.Percentile(0.99);
  stats.promote_p50_us = promote_us_.Percentile(0.5);
  stats.promote_p99_us = promote_us_.Percentile(0.99);
  MutexLock lock(mu_);
  stats.queued_values = down_.size();
  return stats;
}

}  // namespace moonpool::storage
