#include "storage/gpu_tier.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "storage/clock.h"
#include "storage/extent_allocator.h"

namespace moonpool::storage {

namespace {

using Clock = std::chrono::steady_clock;

// Both directions of a link, and a second device, have something to do at the same time.
constexpr int kThreads = 2;

// How long values do not move to or from a device on which a copy failed, at first and at most.
constexpr int64_t kFailingPauseMs = 50;
constexpr int64_t kLongestFailingPauseMs = 10'000;

uint64_t MicrosecondsSince(Clock::time_point start) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count());
}

void Count(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

}  // namespace

GpuTier::GpuTier(const GpuTierOptions& options, Keyspace& keyspace, BulkPolicy& policy, Hooks hooks)
    : options_(options), keyspace_(keyspace), policy_(policy), hooks_(std::move(hooks)) {
  for (int i = 0; i < kThreads; ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), "gpu-mover");
  }
}

GpuTier::~GpuTier() { Stop(); }

void GpuTier::Stop() {
  std::deque<Down> down_left;
  std::deque<Up> up_left;
  std::deque<std::shared_ptr<Job>> jobs_left;
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  {
    MutexLock lock(mu_);
    down_left.swap(down_);
    up_left.swap(up_);
    jobs_left.swap(jobs_);
    waiting_.clear();
  }
  for (Down& down : down_left) {
    down.value->EndDemotion();
    keyspace_.AbandonDemotion(*down.value);
    keyspace_.partitions().AddLeaving(
        protocol::Tier::kGpu, down.leaves,
        -static_cast<int64_t>(ExtentAllocator::RoundUp(down.value->length())));
  }
  for (const std::shared_ptr<Job>& job : jobs_left) {
    for (OnFetched& call : job->calls) call(ValueRef());
  }
}

// --- queues ------------------------------------------------------------------------------------

GpuTier::Taken GpuTier::Demote(ValueRef value) {
  if (Failing(value->device_number())) return Taken::kFull;
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  std::atomic<uint64_t>& leaving = leaving_bytes_[value->device_number()];
  // One value always fits, however large.
  const uint64_t queued = leaving.load(std::memory_order_relaxed);
  if (queued > 0 && queued + bytes > options_.queue_bytes) return Taken::kFull;
  if (!value->BeginDemotion()) return Taken::kOtherwise;
  Count(leaving, bytes);
  const uint8_t partition = value->partition();
  keyspace_.partitions().AddLeaving(protocol::Tier::kGpu, partition, static_cast<int64_t>(bytes));
  {
    MutexLock lock(mu_);
    down_.push_back({std::move(value), partition});
  }
  changed_.NotifyOne();
  return Taken::kYes;
}

void GpuTier::Promote(ValueRef value, DeviceSet devices) {
  if (value->tier() == protocol::Tier::kGpu && (devices >> value->device_number() & 1) != 0) return;
  if (!Holds(value->length())) return;
  if (Working(devices) == 0) return Count(counters_.refused);
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  const uint64_t queued = coming_bytes_.load(std::memory_order_relaxed);
  if (queued > 0 && queued + bytes > options_.queue_bytes) return Count(counters_.refused);
  Count(coming_bytes_, bytes);
  {
    MutexLock lock(mu_);
    up_.push_back({std::move(value), devices});
  }
  changed_.NotifyOne();
}

void GpuTier::Fetch(ValueRef value, bool move, OnFetched call) {
  {
    MutexLock lock(mu_);
    std::shared_ptr<Job>& job = waiting_[value.get()];
    const bool first = job == nullptr;
    if (first) {
      job = std::make_shared<Job>();
      job->value = std::move(value);
      job->start = Clock::now();
      jobs_.push_back(job);
    }
    job->move |= move;
    job->calls.push_back(std::move(call));
    if (!first) return;
  }
  changed_.NotifyOne();
}

void GpuTier::Run() {
  for (bool down_last = false;;) {
    std::shared_ptr<Job> job;
    Down down;
    Up up;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && down_.empty() && up_.empty() && !stop_) changed_.Wait(mu_);
      if (stop_) return;
      // Readers first; one for one of the others, so that neither keeps the other waiting.
      const bool go_down = !down_.empty() && (up_.empty() || !down_last);
      if (!jobs_.empty()) {
        job = std::move(jobs_.front());
        jobs_.pop_front();
        waiting_.erase(job->value.get());
      } else if (go_down) {
        down = std::move(down_.front());
        down_.pop_front();
      } else {
        up = std::move(up_.front());
        up_.pop_front();
      }
      if (job == nullptr) down_last = go_down;
    }
    if (job != nullptr) {
      Carry(*job);
    } else if (down.value) {
      MoveDown(down);
    } else {
      MoveUp(up);
    }
  }
}

// --- moves -------------------------------------------------------------------------------------

Status GpuTier::CopyBytes(const WriteHandle& to, const BulkValue& from) {
  const Extent& target = to.extent();
  const Extent& source = from.extent();
  DeviceMemory* const there = target.region->device();
  DeviceMemory* const here = source.region->device();
  Status copied;
  if (there != nullptr && here != nullptr && there != here) {
    // Two devices meet in host memory.
    const std::unique_ptr<char[]> between(new char[source.length]);
    copied = CopyOn(source.region->device_number(), between.get(), source.address(), source.length);
    if (copied) {
      copied =
          CopyOn(target.region->device_number(), target.address(), between.get(), source.length);
    }
  } else {
    const Region& on = there != nullptr ? *target.region : *source.region;
    copied = CopyOn(on.device_number(), target.address(), source.address(), source.length);
  }
  if (copied) return copied;
  Count(counters_.failed);
  if (here != nullptr && here->lost() && keyspace_.DropLost(from)) CountLost();
  return copied;
}

Status GpuTier::CopyOn(size_t device, char* to, const char* from, uint64_t bytes) {
  Status copied = options_.devices[device]->Copy(to, from, bytes);
  if (copied) {
    failing_pause_ms_[device].store(0, std::memory_order_relaxed);
    failing_until_ms_[device].store(0, std::memory_order_relaxed);
  } else if (!Failing(device)) {
    // Who is at it at the same time fails within this pause.
    const int64_t before = failing_pause_ms_[device].load(std::memory_order_relaxed);
    const int64_t pause = std::clamp(2 * before, kFailingPauseMs, kLongestFailingPauseMs);
    failing_pause_ms_[device].store(pause, std::memory_order_relaxed);
    failing_until_ms_[device].store(MonotonicMs() + pause, std::memory_order_relaxed);
  }
  return copied;
}

bool GpuTier::Failing(size_t device) const {
  const int64_t until_ms = failing_until_ms_[device].load(std::memory_order_relaxed);
  return until_ms != 0 && MonotonicMs() < until_ms;
}

DeviceSet GpuTier::Working(DeviceSet devices) const {
  for (size_t i = 0; i < options_.devices.size(); ++i) {
    if (Failing(i)) devices &= static_cast<DeviceSet>(~(DeviceSet{1} << i));
  }
  return devices;
}

void GpuTier::MoveDown(Down& down) {
  ValueRef value = std::move(down.value);
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  const size_t device = value->device_number();
  auto target = hooks_.reserve_dram(value->length(), options_.wait_ms, true);
  value->EndDemotion();
  const auto start = Clock::now();
  if (!target) {
    Count(counters_.refused);
    hooks_.refused(value);
  } else if (!CopyBytes(*target, *value)) {
    keyspace_.AbandonDemotion(*value);
  } else if (keyspace_.MoveBulk(*value, std::move(*target).Publish(value->crc()))) {
    demote_us_.Add(MicrosecondsSince(start));
    Count(counters_.demotions);
    Count(counters_.demoted_bytes, value->length());
  } else {
    Count(counters_.abandoned);
  }
  value.Reset();
  keyspace_.partitions().AddLeaving(protocol::Tier::kGpu, down.leaves,
                                    -static_cast<int64_t>(bytes));
  leaving_bytes_[device].fetch_sub(bytes, std::memory_order_relaxed);
}

void GpuTier::MoveUp(Up& up) {
  ValueRef value = std::move(up.value);
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  const DeviceSet devices = Working(up.devices);
  Result<WriteHandle> target = Fail(ErrorCode::kUnavailable, "copies to the device fail");
  DeviceSet growing = 0;
  if (devices != 0) target = hooks_.reserve(value->length(), devices, &growing);
  const bool waited = up.since_ms != 0 && UnixMs() >= up.since_ms + options_.wait_ms;
  if (!target && growing != 0 && !waited) {
    up.value = std::move(value);
    return Postpone(up, growing);
  }
  const auto start = Clock::now();
  if (!target) {
    Count(counters_.refused);
  } else if (CopyBytes(*target, *value)) {
    if (keyspace_.MoveBulk(*value, std::move(*target).Publish(value->crc()))) {
      promote_us_.Add(MicrosecondsSince(start));
      Count(counters_.promotions);
      Count(counters_.promoted_bytes, value->length());
    } else {
      Count(counters_.abandoned);
    }
  }
  value.Reset();
  coming_bytes_.fetch_sub(bytes, std::memory_order_relaxed);
}

// Neither thread waits: other devices have work for them.
void GpuTier::Postpone(Up& up, DeviceSet growing) {
  if (up.since_ms == 0) up.since_ms = UnixMs();
  const int64_t since_ms = up.since_ms;
  {
    MutexLock lock(mu_);
    ++postponed_;
  }
  auto later = std::make_shared<Up>(std::move(up));
  hooks_.await(growing, since_ms, since_ms + options_.wait_ms, [this, later] {
    {
      MutexLock lock(mu_);
      --postponed_;
      up_.push_back(std::move(*later));
    }
    changed_.NotifyOne();
  });
}

void GpuTier::Carry(Job& job) {
  ValueRef value = std::move(job.value);
  ValueRef fetched;
  auto target = hooks_.reserve_dram(value->length(), options_.wait_ms, false);
  if (!target) {
    Count(counters_.refused);
  } else if (CopyBytes(*target, *value)) {
    fetched = std::move(*target).Publish(value->crc());
    // Should it be in no entry, those who read it count and go on where its key is.
    fetched->set_owner_hash(value->owner_hash());
    fetched->set_partition(value->partition());
    BulkValue* const read = value.get();
    policy_.Touch(std::span(&read, 1));
    if (job.move) keyspace_.MoveBulk(*value, fetched.Share());
    fetch_us_.Add(MicrosecondsSince(job.start));
    Count(counters_.fetches);
    Count(counters_.fetched_bytes, value->length());
  }
  value.Reset();
  for (OnFetched& call : job.calls) call(fetched);
}

uint64_t GpuTier::queued_bytes() const {
  uint64_t bytes = coming_bytes_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < options_.devices.size(); ++i) bytes += leaving_bytes(i);
  return bytes;
}

GpuTierStats GpuTier::stats() const {
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  GpuTierStats stats;
  stats.promotions = read(counters_.promotions);
  stats.promoted_bytes = read(counters_.promoted_bytes);
  stats.demotions = read(counters_.demotions);
  stats.demoted_bytes = read(counters_.demoted_bytes);
  stats.fetches = read(counters_.fetches);
  stats.fetched_bytes = read(counters_.fetched_bytes);
  stats.abandoned = read(counters_.abandoned);
  stats.refused = read(counters_.refused);
  stats.failed = read(counters_.failed);
  stats.lost = read(counters_.lost);
  stats.queued_bytes = queued_bytes();
  stats.demote_p50_us = demote_us_.Percentile(0.5);
  stats.demote_p99_us = demote_us_.Percentile(0.99);
  stats.promote_p50_us = promote_us_.Percentile(0.5);
  stats.promote_p99_us = promote_us_.Percentile(0.99);
  stats.fetch_p50_us = fetch_us_.Percentile(0.5);
  stats.fetch_p99_us = fetch_us_.Percentile(0.99);
  MutexLock lock(mu_);
  stats.queued_values = down_.size() + up_.size() + postponed_ + jobs_.size();
  return stats;
}

}  // namespace moonpool::storage
