// Counts of durations, exact to 0.8 %, for percentiles.
//
// Log-linear buckets: each power of two is cut into 128 equal parts (the idea of HdrHistogram).
// Threads: one at a time; merge the histograms of several threads afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moonpool::bench {

class Histogram {
 public:
  void Record(uint64_t ns);
  void Merge(const Histogram& other);
  void Clear();

  uint64_t count() const { return count_; }
  uint64_t max_ns() const { return max_ns_; }
  double mean_ns() const;
  // The duration that `percent` of the records do not exceed; 0 when there are none.
  uint64_t PercentileNs(double percent) const;
  double PercentileUs(double percent) const {
    return static_cast<double>(PercentileNs(percent)) / 1e3;
  }

 private:
  static constexpr int kPartBits = 7;

  static size_t BucketOf(uint64_t ns);
  static uint64_t MiddleOf(size_t bucket);

  std::vector<uint64_t> buckets_;
  uint64_t count_ = 0;
  uint64_t sum_ns_ = 0;
  uint64_t max_ns_ = 0;
};

}  // namespace moonpool::bench
