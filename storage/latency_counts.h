// Latencies counted in buckets an eighth of a power of two wide.  Threads: any.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace moonpool::storage {

class LatencyCounts {
 public:
  void Add(uint64_t us) { counts_[BucketOf(us)].fetch_add(1, std::memory_order_relaxed); }
  // The latency that a share of all (0 to 1) does not exceed, 0 when there are none.
  uint64_t Percentile(double share) const {
    uint64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    const auto wanted = static_cast<uint64_t>(share * static_cast<double>(total));
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i].load(std::memory_order_relaxed);
      if (total > 0 && seen > wanted) return UpperBound(i);
    }
    return total > 0 ? UpperBound(counts_.size() - 1) : 0;
  }

 private:
  static constexpr size_t kSteps = 8;  // of a power of two
  static size_t BucketOf(uint64_t us) {
    if (us < kSteps) return us;
    const auto exponent = static_cast<size_t>(std::bit_width(us)) - 4;
    const size_t bucket = exponent * kSteps + (us >> exponent);
    return bucket < kBuckets ? bucket : kBuckets - 1;
  }
  static uint64_t UpperBound(size_t bucket) {
    if (bucket < 2 * kSteps) return bucket;
    const size_t exponent = bucket / kSteps - 1;
    return ((bucket % kSteps + kSteps + 1) << exponent) - 1;
  }
  static constexpr size_t kBuckets = 36 * kSteps;
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
};

}  // namespace moonpool::storage
