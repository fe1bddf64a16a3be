#include "tools/bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moonpool::bench {

size_t Histogram::BucketOf(uint64_t ns) {
  constexpr uint64_t kParts = 1ull << kPartBits;
  if (ns < kParts) return ns;
  const int shift = std::bit_width(ns) - 1 - kPartBits;
  return (static_cast<size_t>(shift) << kPartBits) + static_cast<size_t>(ns >> shift);
}

uint64_t Histogram::MiddleOf(size_t bucket) {
  constexpr size_t kParts = size_t{1} << kPartBits;
  if (bucket < 2 * kParts) return bucket;
  const size_t shift = (bucket >> kPartBits) - 1;
  const uint64_t least = (bucket - (shift << kPartBits)) << shift;
  return least + (1ull << shift) / 2;
}

void Histogram::Record(uint64_t ns) {
  const size_t bucket = BucketOf(ns);
  if (bucket >= buckets_.size()) buckets_.resize(bucket + 1);
  ++buckets_[bucket];
  ++count_;
  sum_ns_ += ns;
  max_ns_ = std::max(max_ns_, ns);
}

void Histogram::Merge(const Histogram& other) {
  if (other.buckets_.size() > buckets_.size()) buckets_.resize(other.buckets_.size());
  for (size_t i = 0; i < other.buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  sum_ns_ += other.sum_ns_;
  max_ns_ = std::max(max_ns_, other.max_ns_);
}

void Histogram::Clear() { *this = Histogram(); }

double Histogram::mean_ns() const {
  return count_ == 0 ? 0 : static_cast<double>(sum_ns_) / static_cast<double>(count_);
}

uint64_t Histogram::PercentileNs(double percent) const {
  if (count_ == 0) return 0;
  const auto rank = static_cast<uint64_t>(
      std::ceil(std::clamp(percent, 0.0, 100.0) / 100 * static_cast<double>(count_)));
  uint64_t seen = 0;
  for (size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen >= std::max<uint64_t>(rank, 1)) return std::min(MiddleOf(bucket), max_ns_);
  }
  return max_ns_;
}

}  // namespace moonpool::bench
