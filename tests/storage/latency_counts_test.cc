#include "storage/latency_counts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/protocol/random.h"

namespace moonpool::storage {
namespace {

TEST(LatencyCountsTest, NothingCounted) {
  EXPECT_EQ(LatencyCounts().Percentile(0.5), 0u);
}

TEST(LatencyCountsTest, ShortOnesAreExact) {
  LatencyCounts counts;
  for (uint64_t us = 0; us < 10; ++us) counts.Add(us);
  for (uint64_t us = 0; us < 10; ++us) {
    EXPECT_EQ(counts.Percentile((static_cast<double>(us) + 0.5) / 10), us);
  }
}

TEST(LatencyCountsTest, AnEighthAboveTheExactPercentileAtMost) {
  test::Random random;
  SCOPED_TRACE(random.Replay());
  for (const double longest : {20.0, 1000.0, 1e6, 1e10}) {
    LatencyCounts counts;
    std::vector<uint64_t> exact;
    for (int i = 0; i < 10'000; ++i) {
      exact.push_back(static_cast<uint64_t>(std::pow(longest, random.Uniform())));
      counts.Add(exact.back());
    }
    std::sort(exact.begin(), exact.end());
    for (const double share : {0.0, 0.01, 0.5, 0.9, 0.99, 0.9999}) {
      const uint64_t wanted = exact[static_cast<size_t>(share * 10'000)];
      EXPECT_GE(counts.Percentile(share), wanted);
      EXPECT_LE(counts.Percentile(share), wanted + wanted / 8);
    }
    EXPECT_GE(counts.Percentile(1), exact.back());
  }
}

TEST(LatencyCountsTest, TheLongestThereIs) {
  LatencyCounts counts;
  counts.Add(UINT64_MAX);
  EXPECT_GT(counts.Percentile(0.5), uint64_t{1} << 36);
}

}  // namespace
}  // namespace moonpool::storage
