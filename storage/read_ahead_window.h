// How many keys of a chain are brought up from the SSD before they are asked for: twice as many
// while most of them are read afterwards, half as many when most are not, never none, so that it is
// noticed when reading ahead becomes worth it again.
//
// Threads: any; mu_ is a leaf.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "protocol/mutex.h"

namespace moonpool::storage {

class ReadAheadWindow {
 public:
  static constexpr size_t kMost = 1024;

  // At most `keys`, which is at most kMost; 0: never.
  void set_limit(size_t keys) { limit_.store(std::min(keys, kMost), std::memory_order_relaxed); }
  size_t size() const {
    return std::min(size_.load(std::memory_order_relaxed), limit_.load(std::memory_order_relaxed));
  }

  // A value that was read ahead was asked for; went again unread.
  void Useful() { Count(&useful_); }
  void Wasted() { Count(&wasted_); }
  uint64_t useful() const { return useful_.load(std::memory_order_relaxed); }
  uint64_t wasted() const { return wasted_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kEpoch = 32;  // values between two adjustments

  void Count(std::atomic<uint64_t>* counter) {
    counter->fetch_add(1, std::memory_order_relaxed);
    MutexLock lock(mu_);
    const uint64_t useful = this->useful() - useful_then_;
    const uint64_t wasted = this->wasted() - wasted_then_;
    if (useful + wasted < kEpoch) return;
    useful_then_ += useful;
    wasted_then_ += wasted;
    const size_t size = size_.load(std::memory_order_relaxed);
    if (useful > 3 * wasted) size_.store(std::min(size * 2, kMost), std::memory_order_relaxed);
    if (wasted > useful) size_.store(std::max<size_t>(size / 2, 1), std::memory_order_relaxed);
  }

  std::atomic<size_t> limit_{64};
  std::atomic<size_t> size_{8};
  std::atomic<uint64_t> useful_{0};
  std::atomic<uint64_t> wasted_{0};
  Mutex mu_;
  uint64_t useful_then_ GUARDED_BY(mu_) = 0;
  uint64_t wasted_then_ GUARDED_BY(mu_) = 0;
};

}  // namespace moonpool::storage
