#include "storage/ssd_tier.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "storage/clock.h"
#include "storage/extent_allocator.h"
#include "storage/heap.h"
#include "storage/thread_priority.h"

namespace moonpool::storage {

namespace {

// How long a disk that failed is left alone: doubled each time.
constexpr int64_t kFirstPauseMs = 100;
constexpr int kMaxDoublings = 6;
// How long the writer waits for work before it looks after garbage.
constexpr std::chrono::milliseconds kIdle{50};
// Values written between two looks at the garbage.
constexpr int kWritesPerCollection = 64;
constexpr int kEvictionsPerSlice = 256;
// Two reads with so many times what memory holds between them are one each: had the first kept the
// value, it would hardly be there for the second.
constexpr uint64_t kLately = 2;

uint64_t MicrosecondsSince(std::chrono::steady_clock::time_point start) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                   std::chrono::steady_clock::now() - start)
                                   .count());
}

uint32_t ChunksOf(const SsdPlace& place) {
  return static_cast<uint32_t>((place.length + place.chunk_bytes() - 1) / place.chunk_bytes());
}

}  // namespace

// One value on its way up.
struct SsdTier::Job {
  uint64_t hash = 0;
  SsdPlace place;
  std::chrono::steady_clock::time_point start;
  WriteHandle target;
  std::atomic<uint32_t> chunks_left{0};
  std::atomic<bool> lost{false};
  std::atomic<LoadError> error{LoadError::kNone};
  // Under the tier's mutex:
  Why why = Why::kAhead;
  bool begun = false;
  std::vector<OnLoaded> calls;
};

SsdTier::SsdTier(const SsdTierOptions& options, Keyspace& keyspace, Reserve reserve,
                 std::function<void(uint64_t)> freed)
    : options_(options),
      keyspace_(keyspace),
      reserve_(std::move(reserve)),
      freed_(std::move(freed)),
      capacity_(options.capacity_bytes),
      seen_(new std::atomic<uint64_t>[kSeen]()) {}

Result<std::unique_ptr<SsdTier>> SsdTier::Open(const SsdTierOptions& options, Keyspace& keyspace,
                                               Reserve reserve,
                                               std::function<void(uint64_t)> freed,
                                               int64_t now_ms) {
  std::unique_ptr<SsdTier> tier(
      new SsdTier(options, keyspace, std::move(reserve), std::move(freed)));
  if (auto recovered = tier->Recover(now_ms); !recovered) {
    keyspace.AttachLog(nullptr);
    return tl::unexpected<Error>(std::move(recovered.error()));
  }
  SsdTier* const self = tier.get();
  const auto start = [&](const char* name, void (SsdTier::*work)()) {
    tier->threads_.emplace_back([self, work] {
      GiveWay(self->options_.store.niceness);
      (self->*work)();
    });
    pthread_setname_np(tier->threads_.back().native_handle(), name);
  };
  start("ssd-writer", &SsdTier::Write);
  start("ssd-heal", &SsdTier::Heal);
  for (int i = 0; i < options.readers; ++i) start("ssd-reader", &SsdTier::Read);
  return tier;
}

SsdTier::~SsdTier() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  down_changed_.NotifyAll();
  up_changed_.NotifyAll();
  stopped_.NotifyAll();
  // A database that cannot recover must not keep the server from stopping.
  if (store_ != nullptr && !store_->Health()) store_->GiveUpResuming();
  for (std::thread& thread : threads_) thread.join();
  for (auto& [id, job] : jobs_) {
    for (OnLoaded& call : job->calls) call({ValueRef(), LoadError::kDisk});
  }
  keyspace_.AttachLog(nullptr);
}

// --- failures --------------------------------------------------------------------------------

void SsdTier::Failed(const Error& error) {
  const int failures = failures_.fetch_add(1, std::memory_order_relaxed);
  const int64_t pause = kFirstPauseMs << std::min(failures, kMaxDoublings);
  failing_until_ms_.store(MonotonicMs() + pause, std::memory_order_relaxed);
  MutexLock lock(mu_);
  last_error_ = error.message;
  if (options_.store.note && failures == 0) options_.store.note("SSD tier: " + error.message);
}

void SsdTier::Heal() {
  for (;;) {
    {
      MutexLock lock(mu_);
      if (!stop_) stopped_.WaitFor(mu_, std::chrono::milliseconds(kFirstPauseMs));
      if (stop_) return;
    }
    if (const Status health = store_->Health(); !health) {
      // What failed in the background, before a writer noticed.
      if (failures_.load(std::memory_order_relaxed) == 0) counters_.write_errors.fetch_add(1);
      Failed(health.error());
      if (store_->Resume()) failures_.store(0, std::memory_order_relaxed);
    }
  }
}

// --- down ------------------------------------------------------------------------------------

SsdTier::Taken SsdTier::Demote(ValueRef value, bool keep) {
  const uint64_t bytes = ExtentAllocator::RoundUp(value->length());
  const bool full = log_->live_bytes() + queued_bytes() + value->length() >
                    capacity_.load(std::memory_order_relaxed);
  if (full || log_->failing() ||
      MonotonicMs() < failing_until_ms_.load(std::memory_order_relaxed)) {
    if (!keep) counters_.drops_refused.fetch_add(1, std::memory_order_relaxed);
    return Taken::kRefused;
  }
  if (Full(value->length()) || !value->BeginDemotion()) return Taken::kFull;
  const protocol::Tier tier = value->tier();
  queued_bytes_[static_cast<size_t>(tier)].fetch_add(bytes, std::memory_order_relaxed);
  const uint8_t partition = value->partition();
  if (!keep) keyspace_.partitions().AddLeaving(tier, partition, static_cast<int64_t>(bytes));
  {
    MutexLock lock(mu_);
    down_.push_back({std::move(value), keep, partition});
  }
  down_changed_.NotifyOne();
  return Taken::kYes;
}

void SsdTier::Write() {
  UseHugePages();  // for RocksDB's write buffers
  int written = 0;
  for (;;) {
    Down down;
    {
      MutexLock lock(mu_);
      if (down_.empty() && !stop_) down_changed_.WaitFor(mu_, kIdle);
      if (stop_) return;
      writing_ = !down_.empty();
      if (writing_) {
        down = std::move(down_.front());
        down_.pop_front();
      }
    }
    const bool idle = !down.value;
    if (!idle) WriteOne(down);
    if (idle || ++written % kWritesPerCollection == 0) store_->CollectGarbage();
    MutexLock lock(mu_);
    writing_ = false;
    if (down_.empty()) idle_.NotifyAll();
  }
}

void SsdTier::WriteOne(Down& down) {
  BulkValue& value = *down.value;
  const protocol::Tier tier = value.tier();
  const uint64_t bytes = ExtentAllocator::RoundUp(value.length());
  const auto start = std::chrono::steady_clock::now();
  const SsdPlace place =
      SsdPlace::At(store_->NextId(), value.length(), options_.store.chunk_bytes);
  const auto compression = keyspace_.partitions().compression(value.partition());
  std::unique_ptr<char[]> copy;
  Status copied;
  if (DeviceMemory* const device = value.device()) {
    copy.reset(new char[value.length()]);
    copied = device->Copy(copy.get(), value.extent().address(), value.length());
  }
  const Status written =
      !copied ? copied
              : store_->WritePayload(
                    place.id, {copy != nullptr ? copy.get() : value.data(), value.length()},
                    compression.value_or(options_.store.compression));
  bool freed = false;
  if (!copied) {
    // Not the disk's fault.  A device that is lost costs its keys elsewhere.
    if (!down.keep) keyspace_.AbandonDemotion(value);
  } else if (!written) {
    counters_.write_errors.fetch_add(1, std::memory_order_relaxed);
    Failed(written.error());
    if (!down.keep) keyspace_.AbandonDemotion(value);
  } else {
    failures_.store(0, std::memory_order_relaxed);
    demote_us_.Add(MicrosecondsSince(start));
    if (keyspace_.FinishDemotion(value, place, UnixMs(), down.keep)) {
      counters_.demotions.fetch_add(1, std::memory_order_relaxed);
      counters_.demoted_bytes.fetch_add(value.length(), std::memory_order_relaxed);
      passed_.fetch_add(value.length(), std::memory_order_relaxed);
      freed = !down.keep;
    } else {
      counters_.abandoned.fetch_add(1, std::memory_order_relaxed);
      store_->DropPayload(place.id, place.length, place.chunk_bytes());
      freed = true;
    }
  }
  value.EndDemotion();
  down.value.Reset();
  if (!down.keep) {
    keyspace_.partitions().AddLeaving(tier, down.leaves, -static_cast<int64_t>(bytes));
  }
  queued_bytes_[static_cast<size_t>(tier)].fetch_sub(bytes, std::memory_order_relaxed);
  if (freed && tier == protocol::Tier::kDram) freed_(bytes);
}

// --- up --------------------------------------------------------------------------------------

bool SsdTier::Seen(uint64_t hash) {
  // 32 bits of the hash, never 0, and megabytes.
  const uint64_t tag = hash >> 32 | 1;
  const uint64_t now = passed_.load(std::memory_order_relaxed) >> kSeenShift;
  const uint64_t before =
      seen_[hash % kSeen].exchange(tag << 32 | (now & UINT32_MAX), std::memory_order_relaxed);
  const uint64_t passed = (now - before) & UINT32_MAX;
  return before >> 32 == tag && passed <= kLately * keyspace_.memory_limit() >> kSeenShift;
}

void SsdTier::Load(uint64_t hash, const SsdPlace& place, Why why, OnLoaded call) {
  {
    MutexLock lock(mu_);
    std::shared_ptr<Job>& job = jobs_[place.id];
    if (job == nullptr) {
      job = std::make_shared<Job>();
      job->hash = hash;
      job->place = place;
      job->start = std::chrono::steady_clock::now();
      job->chunks_left = ChunksOf(place);
      (why == Why::kWanted ? up_ : up_ahead_).push_back({job, 0});
      job->why = why;
      if (why == Why::kAhead) counters_.read_ahead.fetch_add(1, std::memory_order_relaxed);
    }
    if (why == Why::kWanted && job->why != why) {
      job->why = why;
      if (!job->begun) up_.push_back({job, 0});  // before it is its turn over there
    }
    if (call) job->calls.push_back(std::move(call));
  }
  up_changed_.NotifyOne();
}

// Finds memory for the job and lets the other readers in.
void SsdTier::Begin(const std::shared_ptr<Job>& job) {
  bool wanted;
  {
    MutexLock lock(mu_);
    wanted = job->why == Why::kWanted;
  }
  auto target = reserve_(job->place.length, wanted);
  const uint32_t chunks = ChunksOf(job->place);
  if (!target) {
    job->error = LoadError::kNoMemory;
    job->chunks_left = 1;
    return;
  }
  job->target = std::move(*target);
  if (chunks == 1) return;
  {
    MutexLock lock(mu_);
    for (uint32_t chunk = chunks; chunk-- > 1;) up_.push_front({job, chunk});
  }
  up_changed_.NotifyAll();
}

void SsdTier::Read() {
  UseHugePages();
  for (;;) {
    Task task;
    {
      MutexLock lock(mu_);
      while (up_.empty() && up_ahead_.empty() && !stop_) up_changed_.Wait(mu_);
      if (stop_) return;
      std::deque<Task>& queue = up_.empty() ? up_ahead_ : up_;
      task = std::move(queue.front());
      queue.pop_front();
      if (task.chunk == 0 && std::exchange(task.job->begun, true)) continue;
    }
    Job& job = *task.job;
    if (task.chunk == 0) Begin(task.job);
    if (job.error == LoadError::kNone) {
      SsdRecord version;
      version.id = job.place.id;
      version.length = job.place.length;
      version.chunk_bytes = job.place.chunk_bytes();
      // Extents are whole pages.
      const uint64_t offset = uint64_t{task.chunk} * version.chunk_bytes;
      const uint64_t room = std::min<uint64_t>(version.chunk_bytes,
                                               ExtentAllocator::RoundUp(version.length) - offset);
      if (const Status read =
              store_->ReadChunk(version, task.chunk, {job.target.data() + offset, room});
          !read) {
        const ErrorCode code = read.error().code;
        const bool lost = code == ErrorCode::kCorrupt || code == ErrorCode::kNotFound;
        if (lost) job.lost = true;
        job.error = lost ? LoadError::kGone : LoadError::kDisk;
        if (options_.store.note) options_.store.note("SSD tier: " + read.error().message);
        MutexLock lock(mu_);
        last_error_ = read.error().message;
      }
    }
    if (job.chunks_left.fetch_sub(1, std::memory_order_acq_rel) == 1) Finish(job);
  }
}

void SsdTier::Finish(Job& job) {
  Loaded loaded;
  loaded.error = job.error;
  Why why;
  {
    MutexLock lock(mu_);
    why = job.why;
  }
  const Admission admission = keyspace_.partitions().admission(job.place.slot());
  const bool seen = why == Why::kWanted && Seen(job.hash);
  const bool hot = admission != Admission::kNever &&
                   (why == Why::kWarmUp || seen ||
                    (why == Why::kWanted && admission == Admission::kAlways));
  if (loaded.error == LoadError::kNone) {
    load_us_.Add(MicrosecondsSince(job.start));
    counters_.loaded_bytes.fetch_add(job.place.length, std::memory_order_relaxed);
    passed_.fetch_add(job.place.length, std::memory_order_relaxed);
    (hot ? counters_.promotions : counters_.cold_loads).fetch_add(1, std::memory_order_relaxed);
    loaded.value = std::move(job.target).Publish();
    using Arrival = BulkValue::Arrival;
    keyspace_.FinishLoad(job.hash, job.place, loaded.value.Share(),
                         hot                  ? Arrival::kNone
                         : why == Why::kAhead ? Arrival::kAhead
                                              : Arrival::kCold);
  } else if (job.lost) {
    // It may have been erased while it was read: then it is not lost.
    if (keyspace_.DropLost(job.hash, job.place)) {
      counters_.lost.fetch_add(1, std::memory_order_relaxed);
    }
    job.target.Abort();
  } else {
    counters_.read_errors.fetch_add(1, std::memory_order_relaxed);
    job.target.Abort();
  }
  std::vector<OnLoaded> calls;
  {
    MutexLock lock(mu_);
    calls = std::move(job.calls);
    if (job.why == Why::kWanted) counters_.hits.fetch_add(calls.size(), std::memory_order_relaxed);
    jobs_.erase(job.place.id);
  }
  for (OnLoaded& call : calls) call(loaded);
}

// --- background ------------------------------------------------------------------------------

bool SsdTier::Maintain(int64_t now_ms) {
  const auto capacity = static_cast<double>(capacity_.load(std::memory_order_relaxed));
  const auto used = [&] { return static_cast<double>(log_->live_bytes() + queued_bytes()); };
  if (used() > options_.high_watermark * capacity) evicting_ = true;
  const double low = (options_.high_watermark - options_.evict_ratio) * capacity;
  for (int i = 0; evicting_ && i < kEvictionsPerSlice; ++i) {
    if (used() <= low || keyspace_.EvictOnSsd(now_ms) == 0) {
      evicting_ = false;
    } else {
      counters_.drops_full.fetch_add(1, std::memory_order_relaxed);
    }
  }
  SsdLog::TakeThreadSequence();  // nobody waits for these
  return evicting_;
}

SsdTierStats SsdTier::stats() const {
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  SsdTierStats stats;
  stats.keys = keyspace_.OnSsdSize();
  stats.versions = log_->live_versions();
  stats.bytes = log_->live_bytes();
  stats.capacity = capacity_.load(std::memory_order_relaxed);
  stats.hits = read(counters_.hits);
  stats.lost = read(counters_.lost);
  stats.read_errors = read(counters_.read_errors);
  stats.write_errors = read(counters_.write_errors);
  stats.promotions = read(counters_.promotions);
  stats.cold_loads = read(counters_.cold_loads);
  stats.loaded_bytes = read(counters_.loaded_bytes);
  stats.demotions = read(counters_.demotions);
  stats.demoted_bytes = read(counters_.demoted_bytes);
  stats.abandoned = read(counters_.abandoned);
  stats.drops_full = read(counters_.drops_full);
  stats.drops_refused = read(counters_.drops_refused);
  stats.read_ahead = read(counters_.read_ahead);
  stats.queued_bytes = queued_bytes();
  stats.failing = log_->failing() ||
                  MonotonicMs() < failing_until_ms_.load(std::memory_order_relaxed);
  stats.load_p50_us = load_us_.Percentile(0.5);
  stats.load_p99_us = load_us_.Percentile(0.99);
  stats.demote_p50_us = demote_us_.Percentile(0.5);
  stats.demote_p99_us = demote_us_.Percentile(0.99);
  stats.store = store_->stats();
  MutexLock lock(mu_);
  stats.queued_values = down_.size() + (writing_ ? 1 : 0);
  stats.loads_queued = jobs_.size();
  stats.last_error = last_error_;
  return stats;
}

}  // namespace moonpool::storage
