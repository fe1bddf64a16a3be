#include "client/copier.h"

#include <sched.h>

#include <algorithm>
#include <bit>
#include <chrono>

#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

// Below this a helper would arrive when everything is done.
constexpr size_t kWorthHelp = 1 << 20;
// From here on a copy goes past the caches: three quarters of the 32 MiB that cores of today's servers
// share (what the system says is often the sum of all such caches).
constexpr size_t kStreamed = 24 << 20;
// What a thread takes at a time.
constexpr size_t kChunk = 128 * 1024;
// Rates are means over about so many copies; the slower way is tried so often.
constexpr uint32_t kMemory = 4;
constexpr uint32_t kProbeEvery = 32;
// At first both take turns: the first copies of each are slow, memory is cold and threads start.
constexpr uint32_t kTrials = 8;
// Help takes another core's time: it must be faster by a quarter.
constexpr uint32_t kMargin = 4;

void CopyPiece(void* to, const void* from, size_t bytes, bool streamed) {
  if (streamed) return protocol::RacyCopyStreaming(to, from, bytes);
  protocol::RacyCopy(to, from, bytes);
}

}  // namespace

Copier::~Copier() {
  std::vector<std::thread> helpers;
  {
    MutexLock lock(mu_);
    stop_ = true;
    helpers.swap(helpers_);
  }
  job_added_.NotifyAll();
  for (std::thread& helper : helpers) helper.join();
}

void Copier::Copy(std::span<const Piece> pieces, uint64_t of_bytes) {
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  const bool streamed = std::max<uint64_t>(bytes, of_bytes) >= kStreamed;
  const auto alone = [pieces, streamed] {
    for (const Piece& piece : pieces) CopyPiece(piece.to, piece.from, piece.bytes, streamed);
  };
  if (helpers_wanted_ <= 0 || bytes < kWorthHelp) return alone();
  const auto size_class = static_cast<size_t>(std::bit_width(bytes / kWorthHelp) - 1) / 2;
  Rates& rates = rates_[std::min(size_class, kSizeClasses - 1)];
  const auto start = std::chrono::steady_clock::now();
  const bool helped = WantsHelp(rates) && CopyWithHelp(pieces, streamed);
  if (!helped) alone();
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  std::atomic<uint32_t>& rate = helped ? rates.helped : rates.alone;
  const uint32_t before = rate.load(std::memory_order_relaxed);
  const auto now = static_cast<uint32_t>(
      std::min<uint64_t>(bytes / static_cast<uint64_t>(took.count() + 1), UINT32_MAX / 8));
  rate.store(before == 0 ? now : (before * (kMemory - 1) + now) / kMemory,
             std::memory_order_relaxed);
}

bool Copier::WantsHelp(Rates& rates) const {
  const uint32_t helped = rates.helped.load(std::memory_order_relaxed);
  const uint32_t alone = rates.alone.load(std::memory_order_relaxed);
  const uint32_t copies = rates.copies.fetch_add(1, std::memory_order_relaxed);
  if (copies < kTrials) return copies % 2 == 1;
  const bool probe = copies % kProbeEvery == 0;
  return (helped >= alone + alone / kMargin) != probe;
}

bool Copier::CopyWithHelp(std::span<const Piece> pieces, bool streamed) {
  Job job;
  job.streamed = streamed;
  for (Piece piece : pieces) {
    while (piece.bytes > 0) {
      const size_t part = std::min(piece.bytes, kChunk);
      job.chunks.push_back({piece.to, piece.from, part});
      piece.to = static_cast<char*>(piece.to) + part;
      piece.from = static_cast<const char*>(piece.from) + part;
      piece.bytes -= part;
    }
  }
  {
    MutexLock lock(mu_);
    if (job_ != nullptr) return false;
    while (static_cast<int>(helpers_.size()) < helpers_wanted_) {
      helpers_.emplace_back([this] { Help(); });
    }
    job_ = &job;
    ++job_number_;
  }
  job_added_.NotifyAll();
  job.Work();
  {
    MutexLock lock(mu_);
    job_ = nullptr;
  }
  // No helper comes any more; those that are here have less than a chunk each left.
  while (job.helpers.load(std::memory_order_acquire) > 0) sched_yield();
  return true;
}

void Copier::Job::Work() {
  for (;;) {
    const size_t index = next.fetch_add(1, std::memory_order_relaxed);
    if (index >= chunks.size()) return;
    CopyPiece(chunks[index].to, chunks[index].from, chunks[index].bytes, streamed);
  }
}

void Copier::Help() {
  uint64_t last = 0;
  for (;;) {
    Job* job;
    {
      MutexLock lock(mu_);
      while (!stop_ && (job_ == nullptr || job_number_ == last)) job_added_.Wait(mu_);
      if (stop_) return;
      job = job_;
      last = job_number_;
      job->helpers.fetch_add(1, std::memory_order_relaxed);
    }
    job->Work();
    job->helpers.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace moonpool::client
