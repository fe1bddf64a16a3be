// Who waits for memory that eviction will free, first come, first served.
//
// Threads: any; mu_ is a leaf, released before anybody is called.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>

#include "protocol/mutex.h"

namespace moonpool::storage {

// How long `bytes` of memory are waited for, when a usual value is waited for so long: what must go
// to the SSD for a large one takes its time.
constexpr int64_t MemoryWaitMs(int64_t usual_ms, uint64_t bytes) {
  constexpr uint64_t kUsualBytes = 64 << 20;
  return usual_ms * static_cast<int64_t>(1 + bytes / kUsualBytes);
}

class MemoryQueue {
 public:
  // Calls, on another thread or at once, when it is worth to try again: memory for those in front
  // and for `bytes` came free, or `until_ms` (Unix) has passed.  `again`: it tried in vain, and
  // keeps its place at the head.
  void Wait(uint64_t bytes, int64_t until_ms, bool again, std::function<void()> call);
  // Memory came free.  The first gets its turn once as much came as it wants, or a good part of that.
  void Freed(uint64_t bytes);
  // Now and then: calls the first, in case memory came free unseen, and those whose time is over.
  void Tick(int64_t now_ms);

  bool empty() const { return size_.load(std::memory_order_relaxed) == 0; }
  size_t size() const { return size_.load(std::memory_order_relaxed); }

 private:
  struct Waiting {
    uint64_t bytes;
    int64_t until_ms;
    std::function<void()> call;
  };

  Mutex mu_;
  std::deque<Waiting> waiting_ GUARDED_BY(mu_);
  uint64_t came_ GUARDED_BY(mu_) = 0;  // bytes, for the first
  std::atomic<size_t> size_{0};
};

}  // namespace moonpool::storage
