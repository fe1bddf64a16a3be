// The changes of what is alive on the SSD, on their way to the store's index: in the order in which
// they happened, many at a time.
//
// A change is acknowledged to a client only when it is in the index's log (design, invariant 8: an
// older version may never come back).  Changes are made with a stripe locked, where nothing may
// wait; so they are queued, and the reply waits instead: TakeThreadSequence() tells what a thread
// changed since it last asked, WhenDurable() calls when that is on disk.
//
// While the index cannot be written the store is marked as not to be trusted: after a crash it
// starts empty, so that changes are as good as durable and clients need not wait for the disk. What
// is queued is tried again until all of it is written; then the store is trusted again.
//
// Threads: any; mu_ is a leaf.  The store must outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "storage/entry.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

class SsdLog {
 public:
  explicit SsdLog(SsdStore& store);
  // Writes what is queued.
  ~SsdLog();

  // A version whose payload has just been written.  `expiry_ms` 0: never.
  void Add(const SsdPlace& place, std::string_view key, int64_t expiry_ms);
  // A version has another key or expiry.  Here and below: the sequence of the change.
  uint64_t Update(const SsdPlace& place, std::string_view key, int64_t expiry_ms);
  uint64_t Erase(const SsdPlace& place);
  // Every version so far.  The caller holds all stripes.
  uint64_t EraseAll();
  // Versions so far whose key matches.  The caller holds all stripes.
  void PutVoid(uint64_t sequence, const std::string& text, bool is_glob);
  void EraseVoid(uint64_t sequence);

  // Bytes of the versions that are alive.
  uint64_t live_bytes() const { return live_bytes_.load(std::memory_order_relaxed); }
  uint64_t live_versions() const { return live_versions_.load(std::memory_order_relaxed); }
  // At the start: versions that were found.
  void AddRecovered(const SsdPlace& place);

  // The newest change made by this thread, or added, since the last call; 0: none.
  static uint64_t TakeThreadSequence();
  // What the thread does comes after that change, whoever made it.
  static void AddToThreadSequence(uint64_t sequence);
  bool Durable(uint64_t sequence) const {
    return sequence <= durable_.load(std::memory_order_acquire);
  }
  // Calls when it is durable: at once, or on the log's thread.  A log that is destroyed calls.
  void WhenDurable(uint64_t sequence, std::function<void()> call);
  // Waits until everything queued so far is in the index; false after `wait_ms`, or when it cannot
  // be written.
  bool Sync(int64_t wait_ms);
  // The index cannot be written at the moment.
  bool failing() const { return failing_.load(std::memory_order_relaxed); }

 private:
  uint64_t Changed() REQUIRES(mu_);
  void Count(const SsdPlace& place, int sign);
  void Run();
  // Takes out what it could write; false when that is not all.
  bool Write(std::deque<SsdChange>& changes);
  void Written(uint64_t sequence);
  // Lets the disk recover, unless the log is to stop.
  void Pause();

  SsdStore& store_;
  std::atomic<uint64_t> durable_{0};
  std::atomic<bool> failing_{false};
  bool distrusted_ = false;  // the log's thread's
  std::atomic<uint64_t> live_bytes_{0};
  std::atomic<uint64_t> live_versions_{0};
  Mutex mu_;
  CondVar changed_;
  CondVar written_;
  bool stop_ GUARDED_BY(mu_) = false;
  SsdChange queued_ GUARDED_BY(mu_);
  uint64_t sequence_ GUARDED_BY(mu_) = 0;  // of the newest change queued
  uint64_t newest_id_ GUARDED_BY(mu_) = 0;
  std::vector<std::pair<uint64_t, std::function<void()>>> waiting_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moonpool::storage
