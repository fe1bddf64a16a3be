#include "storage/ssd_log.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "storage/thread_priority.h"

namespace moonpool::storage {

namespace {

// How long a disk that refused a change is left alone.
constexpr std::chrono::milliseconds kRetry{100};

thread_local uint64_t thread_sequence = 0;

}  // namespace

SsdLog::SsdLog(SsdStore& store) : store_(store), thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), "ssd-log");
}

SsdLog::~SsdLog() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

uint64_t SsdLog::Changed() {
  thread_sequence = ++sequence_;
  changed_.NotifyOne();
  return sequence_;
}

void SsdLog::Count(const SsdPlace& place, int sign) {
  const auto direction = static_cast<uint64_t>(static_cast<int64_t>(sign));
  live_bytes_.fetch_add(direction * place.length, std::memory_order_relaxed);
  live_versions_.fetch_add(direction, std::memory_order_relaxed);
}

void SsdLog::Add(const SsdPlace& place, std::string_view key, int64_t expiry_ms) {
  Count(place, 1);
  Update(place, key, expiry_ms);
}

uint64_t SsdLog::Update(const SsdPlace& place, std::string_view key, int64_t expiry_ms) {
  SsdRecord record;
  record.id = place.id;
  record.key = key;
  record.length = place.length;
  record.expiry_ms = expiry_ms;
  record.chunk_bytes = place.chunk_bytes();
  MutexLock lock(mu_);
  newest_id_ = std::max(newest_id_, place.id);
  queued_.Put(record);
  return Changed();
}

uint64_t SsdLog::Erase(const SsdPlace& place) {
  Count(place, -1);
  MutexLock lock(mu_);
  queued_.Erase(place.id, place.length, place.chunk_bytes());
  return Changed();
}

uint64_t SsdLog::EraseAll() {
  live_bytes_.store(0, std::memory_order_relaxed);
  live_versions_.store(0, std::memory_order_relaxed);
  MutexLock lock(mu_);
  // Ids given out since belong to versions that no entry refers to, or will refer to later.
  queued_.EraseBelow(newest_id_ + 1);
  return Changed();
}

void SsdLog::PutVoid(uint64_t sequence, const std::string& text, bool is_glob) {
  MutexLock lock(mu_);
  queued_.PutVoid({sequence, newest_id_ + 1, text, is_glob});
  Changed();
}

void SsdLog::EraseVoid(uint64_t sequence) {
  MutexLock lock(mu_);
  queued_.EraseVoid(sequence);
  Changed();
}

void SsdLog::AddRecovered(const SsdPlace& place) {
  Count(place, 1);
  MutexLock lock(mu_);
  newest_id_ = std::max(newest_id_, place.id);
}

uint64_t SsdLog::TakeThreadSequence() {
  return std::exchange(thread_sequence, 0);
}

void SsdLog::AddToThreadSequence(uint64_t sequence) {
  thread_sequence = std::max(thread_sequence, sequence);
}

void SsdLog::WhenDurable(uint64_t sequence, std::function<void()> call) {
  {
    MutexLock lock(mu_);
    if (!Durable(sequence)) {
      waiting_.emplace_back(sequence, std::move(call));
      return;
    }
  }
  call();
}

bool SsdLog::Sync(int64_t wait_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
  MutexLock lock(mu_);
  const uint64_t sequence = sequence_;
  while (!Durable(sequence)) {
    const auto left = end - std::chrono::steady_clock::now();
    if (left.count() <= 0) return false;
    written_.WaitFor(mu_, std::chrono::duration_cast<std::chrono::milliseconds>(left) +
                              std::chrono::milliseconds(1));
  }
  return !failing();
}

void SsdLog::Pause() {
  MutexLock lock(mu_);
  const auto end = std::chrono::steady_clock::now() + kRetry;
  while (!stop_ && std::chrono::steady_clock::now() < end) changed_.WaitFor(mu_, kRetry);
}

bool SsdLog::Write(std::deque<SsdChange>& changes) {
  for (; !changes.empty(); changes.pop_front()) {
    if (store_.Apply(changes.front())) continue;
    failing_.store(true, std::memory_order_relaxed);
    if (!distrusted_) distrusted_ = static_cast<bool>(store_.Distrust());
    return false;
  }
  if (failing_.load(std::memory_order_relaxed)) {
    store_.Trust();
    distrusted_ = false;
    failing_.store(false, std::memory_order_relaxed);
  }
  return true;
}

void SsdLog::Run() {
  AnswerQuickly();
  std::deque<SsdChange> writing;  // more than one only while they cannot be written
  for (;;) {
    uint64_t sequence;
    bool last;
    {
      MutexLock lock(mu_);
      while (!stop_ && queued_.empty() && writing.empty()) changed_.Wait(mu_);
      if (queued_.empty() && writing.empty()) return;
      if (!queued_.empty()) std::swap(writing.emplace_back(), queued_);
      sequence = sequence_;
      last = stop_;
    }
    const bool written = Write(writing);
    if (written || distrusted_ || last) Written(sequence);
    if (written) continue;
    if (last) return;
    Pause();
    static_cast<void>(store_.Resume());
  }
}

void SsdLog::Written(uint64_t sequence) {
  std::vector<std::function<void()>> due;
  {
    MutexLock lock(mu_);
    durable_.store(sequence, std::memory_order_release);
    const auto first_due =
        std::stable_partition(waiting_.begin(), waiting_.end(),
                              [sequence](const auto& waiting) { return waiting.first > sequence; });
    for (auto it = first_due; it != waiting_.end(); ++it) due.push_back(std::move(it->second));
    waiting_.erase(first_due, waiting_.end());
  }
  written_.NotifyAll();
  for (auto& call : due) call();
}

}  // namespace moonpool::storage
