#include "client/copier.h"

#include <sched.h>

#include <algorithm>

#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

// Below this a helper would arrive when everything is done.
constexpr size_t kWorthHelp = 1 << 20;
// What a thread takes at a time.
constexpr size_t kChunk = 128 * 1024;

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

void Copier::Copy(std::span<const Piece> pieces) {
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  Job job;
  bool helped = false;
  if (helpers_wanted_ > 0 && bytes >= kWorthHelp) {
    for (Piece piece : pieces) {
      while (piece.bytes > 0) {
        const size_t part = std::min(piece.bytes, kChunk);
        job.chunks.push_back({piece.to, piece.from, part});
        piece.to = static_cast<char*>(piece.to) + part;
        piece.from = static_cast<const char*>(piece.from) + part;
        piece.bytes -= part;
      }
    }
    MutexLock lock(mu_);
    while (static_cast<int>(helpers_.size()) < helpers_wanted_) {
      helpers_.emplace_back([this] { Help(); });
    }
    if (job_ == nullptr) {
      job_ = &job;
      ++job_number_;
      helped = true;
    }
  }
  if (!helped) {
    for (const Piece& piece : pieces) protocol::RacyCopy(piece.to, piece.from, piece.bytes);
    return;
  }
  job_added_.NotifyAll();
  job.Work();
  {
    MutexLock lock(mu_);
    job_ = nullptr;
  }
  // No helper comes any more; those that are here have less than a chunk each left.
  while (job.helpers.load(std::memory_order_acquire) > 0) sched_yield();
}

void Copier::Job::Work() {
  for (;;) {
    const size_t index = next.fetch_add(1, std::memory_order_relaxed);
    if (index >= chunks.size()) return;
    protocol::RacyCopy(chunks[index].to, chunks[index].from, chunks[index].bytes);
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
