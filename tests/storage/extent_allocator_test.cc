#include "storage/extent_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <map>
#include <random>
#include <utility>
#include <vector>

namespace moonpool::storage {
namespace {

constexpr uint64_t kPage = ExtentAllocator::kAlignment;
constexpr uint64_t kMiB = 1ull << 20;
constexpr uint64_t kGiB = 1ull << 30;

using Rng = std::mt19937_64;  // with arithmetic of our own: std distributions differ per library

double Uniform(Rng& rng) {
  return static_cast<double>(rng() >> 11) * 0x1.0p-53;
}

TEST(ExtentAllocatorTest, RoundsUpToWholePages) {
  EXPECT_EQ(ExtentAllocator::RoundUp(1), kPage);
  EXPECT_EQ(ExtentAllocator::RoundUp(kPage), kPage);
  EXPECT_EQ(ExtentAllocator::RoundUp(kPage + 1), 2 * kPage);

  ExtentAllocator allocator(kMiB);
  const auto offset = allocator.Allocate(1);
  ASSERT_TRUE(offset);
  EXPECT_EQ(*offset % kPage, 0u);
  EXPECT_EQ(allocator.free_bytes(), kMiB - kPage);
  allocator.Free(*offset, kPage);  // the same run, named by its rounded size
  EXPECT_EQ(allocator.free_bytes(), kMiB);
}

TEST(ExtentAllocatorTest, OneRunMayTakeTheWholeRegion) {
  // Around the last bin, in which lengths are mixed, and for the smallest region.
  for (const uint64_t region : {kPage, 64 * kMiB - kPage, 64 * kMiB, 64 * kMiB + kPage, kGiB}) {
    ExtentAllocator allocator(region);
    EXPECT_EQ(allocator.region_bytes(), region);
    EXPECT_EQ(allocator.largest_free_bytes(), region);
    EXPECT_FALSE(allocator.Allocate(region + 1));
    EXPECT_EQ(allocator.Allocate(region), 0u);
    EXPECT_EQ(allocator.free_bytes(), 0u);
    EXPECT_EQ(allocator.largest_free_bytes(), 0u);
    EXPECT_FALSE(allocator.Allocate(1));
    allocator.Free(0, region);
    EXPECT_EQ(allocator.largest_free_bytes(), region);
  }
}

TEST(ExtentAllocatorTest, SizesNearTheTopOfTheTypeDoNotOverflow) {
  ExtentAllocator allocator(kMiB);
  EXPECT_FALSE(allocator.Allocate(UINT64_MAX));
  EXPECT_FALSE(allocator.Allocate(UINT64_MAX - kPage));
  EXPECT_EQ(allocator.free_bytes(), kMiB);
}

TEST(ExtentAllocatorTest, AFreshRegionFillsFromTheStart) {
  ExtentAllocator allocator(kMiB);  // the pool faults memory in from the start, just ahead
  EXPECT_EQ(allocator.Allocate(3 * kPage), 0u);
  EXPECT_EQ(allocator.Allocate(kPage), 3 * kPage);
}

TEST(ExtentAllocatorTest, TakesTheHoleThatFitsBest) {
  ExtentAllocator allocator(32 * kPage);
  std::vector<uint64_t> holes;
  for (const uint64_t pages : {9, 4, 6, 5}) {
    holes.push_back(*allocator.Allocate(pages * kPage));
    ASSERT_TRUE(allocator.Allocate(kPage));  // keeps the holes apart
  }
  ASSERT_TRUE(allocator.Allocate(allocator.largest_free_bytes()));
  allocator.Free(holes[0], 9 * kPage);
  allocator.Free(holes[1], 4 * kPage);
  allocator.Free(holes[2], 6 * kPage);
  allocator.Free(holes[3], 5 * kPage);

  EXPECT_EQ(allocator.Allocate(5 * kPage), holes[3]);
  EXPECT_EQ(allocator.Allocate(5 * kPage), holes[2]);
  EXPECT_EQ(allocator.Allocate(5 * kPage), holes[0]);
  EXPECT_FALSE(allocator.Allocate(5 * kPage));
  EXPECT_EQ(allocator.free_bytes(), 9 * kPage);
  EXPECT_EQ(allocator.largest_free_bytes(), 4 * kPage);
}

TEST(ExtentAllocatorTest, CoalescesWithBothNeighbours) {
  // Every order of freeing three adjacent runs ends in one hole.
  std::vector<int> order = {0, 1, 2};
  do {
    ExtentAllocator allocator(6 * kPage);
    const uint64_t sizes[] = {kPage, 2 * kPage, 3 * kPage};
    uint64_t offsets[3];
    for (int i = 0; i < 3; ++i) offsets[i] = *allocator.Allocate(sizes[i]);
    for (const int i : order) allocator.Free(offsets[i], sizes[i]);
    EXPECT_EQ(allocator.Allocate(6 * kPage), 0u);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(ExtentAllocatorDeathTest, WrongUseAborts) {
  EXPECT_DEATH(ExtentAllocator(0), "CHECK failed");
  EXPECT_DEATH(ExtentAllocator(kPage + 1), "CHECK failed");

  ExtentAllocator allocator(64 * kPage);
  EXPECT_DEATH((void)allocator.Allocate(0), "CHECK failed");
  const uint64_t a = *allocator.Allocate(10 * kPage);
  const uint64_t b = *allocator.Allocate(8 * kPage);
  const uint64_t c = *allocator.Allocate(10 * kPage);
  EXPECT_DEATH(allocator.Free(a, 0), "CHECK failed");
  EXPECT_DEATH(allocator.Free(a + 1, 10 * kPage), "CHECK failed");
  EXPECT_DEATH(allocator.Free(a, 9 * kPage), "CHECK failed");
  EXPECT_DEATH(allocator.Free(a, 11 * kPage), "CHECK failed");
  EXPECT_DEATH(allocator.Free(a, 18 * kPage), "CHECK failed");              // two runs at once
  EXPECT_DEATH(allocator.Free(a + 9 * kPage, 10 * kPage), "CHECK failed");  // a's end to c's start
  EXPECT_DEATH(allocator.Free(a + kPage, kPage), "CHECK failed");
  EXPECT_DEATH(allocator.Free(64 * kPage, kPage), "CHECK failed");
  EXPECT_DEATH(allocator.Free(c, UINT64_MAX), "CHECK failed");

  allocator.Free(b, 8 * kPage);
  EXPECT_DEATH(allocator.Free(b, 8 * kPage), "CHECK failed");
  allocator.Free(a, 10 * kPage);
  allocator.Free(c, 10 * kPage);
  for (const uint64_t offset : {a, c}) {
    EXPECT_DEATH(allocator.Free(offset, 10 * kPage), "CHECK failed");  // now inside a larger hole
  }
}

// --- model ---------------------------------------------------------------------------------------

// What must be true of any best-fit allocator, computed the slow way from the live runs.
class Model {
 public:
  explicit Model(uint64_t region_bytes) : region_bytes_(region_bytes) {}

  // Length of the gap that contains `offset`; 0 if none does.
  uint64_t GapAt(uint64_t offset) const {
    uint64_t length = 0;
    ForEachGap([&](uint64_t start, uint64_t end) {
      if (start <= offset && offset < end) length = end - start;
    });
    return length;
  }
  // The shortest gap of at least `bytes`; 0 if there is none.
  uint64_t BestGap(uint64_t bytes) const {
    uint64_t best = 0;
    ForEachGap([&](uint64_t start, uint64_t end) {
      if (end - start >= bytes && (best == 0 || end - start < best)) best = end - start;
    });
    return best;
  }
  uint64_t LargestGap() const {
    uint64_t largest = 0;
    ForEachGap([&](uint64_t start, uint64_t end) { largest = std::max(largest, end - start); });
    return largest;
  }
  // False when the run touches another one or leaves the region.
  bool Add(uint64_t offset, uint64_t bytes) {
    const auto next = live_.lower_bound(offset);
    if (offset + bytes > (next == live_.end() ? region_bytes_ : next->first)) return false;
    if (next != live_.begin() && std::prev(next)->first + std::prev(next)->second > offset) {
      return false;
    }
    live_.emplace_hint(next, offset, bytes);
    live_bytes_ += bytes;
    return true;
  }
  std::pair<uint64_t, uint64_t> TakeRandom(Rng& rng) {
    auto it = live_.lower_bound(rng() % region_bytes_);
    if (it == live_.end()) it = live_.begin();
    const auto run = *it;
    live_bytes_ -= run.second;
    live_.erase(it);
    return run;
  }
  bool empty() const { return live_.empty(); }
  uint64_t free_bytes() const { return region_bytes_ - live_bytes_; }

 private:
  template <typename Visit>
  void ForEachGap(Visit visit) const {
    uint64_t start = 0;
    for (const auto& [offset, bytes] : live_) {
      if (offset > start) visit(start, offset);
      start = offset + bytes;
    }
    if (start < region_bytes_) visit(start, region_bytes_);
  }

  uint64_t region_bytes_;
  uint64_t live_bytes_ = 0;
  std::map<uint64_t, uint64_t> live_;  // offset -> rounded bytes
};

// Random sizes up to `most_bytes`, small ones as likely as large ones, against the model.
void RunModelTest(uint64_t region_bytes, uint64_t most_bytes, int steps) {
  const uint32_t flag = GTEST_FLAG_GET(random_seed);
  const uint32_t seed = flag != 0 ? flag : std::random_device()() % 99999 + 1;
  SCOPED_TRACE(testing::Message() << "replay with --gtest_random_seed=" << seed);
  std::printf("seed %u\n", seed);
  Rng rng(seed);
  ExtentAllocator allocator(region_bytes);
  Model model(region_bytes);

  for (int step = 0; step < steps; ++step) {
    // The share of allocations drifts, so that the region is full at times and empty at others.
    const bool allocate = Uniform(rng) < ((step / 512) % 2 == 0 ? 0.65 : 0.4);
    if (allocate || model.empty()) {
      const uint64_t limit = std::max(most_bytes >> (rng() % 16), kPage);
      const uint64_t bytes = 1 + rng() % limit;
      const uint64_t rounded = ExtentAllocator::RoundUp(bytes);
      const uint64_t best_gap = model.BestGap(rounded);
      const auto offset = allocator.Allocate(bytes);
      ASSERT_EQ(offset.has_value(), best_gap > 0) << bytes;
      if (!offset) continue;
      ASSERT_EQ(*offset % kPage, 0u);
      // Lengths from 64 MiB are kept in one list: short of it, any of them may be cut.
      if (best_gap < 64 * kMiB || rounded > 64 * kMiB) {
        ASSERT_EQ(model.GapAt(*offset), best_gap);
      }
      ASSERT_TRUE(model.Add(*offset, rounded)) << *offset << " + " << rounded;
    } else {
      const auto [offset, bytes] = model.TakeRandom(rng);
      allocator.Free(offset, bytes - rng() % kPage);  // any size that rounds to the same
    }
    ASSERT_EQ(allocator.free_bytes(), model.free_bytes());
    ASSERT_EQ(allocator.largest_free_bytes(), model.LargestGap());
  }
  while (!model.empty()) {
    const auto [offset, bytes] = model.TakeRandom(rng);
    allocator.Free(offset, bytes);
  }
  EXPECT_EQ(allocator.free_bytes(), region_bytes);
  EXPECT_EQ(allocator.largest_free_bytes(), region_bytes);
  EXPECT_EQ(allocator.Allocate(region_bytes), 0u);
}

TEST(ExtentAllocatorModelTest, ManySmallRuns) {
  RunModelTest(4 * kMiB, 64 * 1024, 20000);
}
TEST(ExtentAllocatorModelTest, RunsAsLargeAsTheRegion) {
  RunModelTest(8 * kMiB, 8 * kMiB, 20000);
}
TEST(ExtentAllocatorModelTest, RunsOfTheLastBin) {
  RunModelTest(4 * kGiB, 400 * kMiB, 20000);
}

// --- fragmentation -------------------------------------------------------------------------------
// How full a region is, in bytes of values, when the first allocation fails after long churn.  The
// seeds are fixed, so the figures are too; the bounds leave some room for another order of equals.

using SizeMix = uint64_t (*)(Rng&);

uint64_t KvMix(Rng& rng) {
  const double u = Uniform(rng);
  return u < 0.7 ? 4096 : u < 0.9 ? 256 * 1024 : 3250586;
}
uint64_t UniformTo8MiB(Rng& rng) {
  return 4096 + rng() % (8 * kMiB - 4096);
}
uint64_t ThreeSizes(Rng& rng) {
  const double u = Uniform(rng);
  return u < 0.4 ? 128 * 1024 : u < 0.8 ? 2 * kMiB : 18035507;
}
uint64_t PowersOfTwo(Rng& rng) {
  return 4096ull << (rng() % 12);
}
uint64_t UniformTo64MiB(Rng& rng) {
  return 1024 + rng() % (64 * kMiB - 1024);
}

class Churn {
 public:
  Churn(uint64_t region_bytes, SizeMix mix, uint64_t seed)
      : allocator_(region_bytes), mix_(mix), rng_(seed) {}

  double utilisation() const {
    return static_cast<double>(live_bytes_) / static_cast<double>(allocator_.region_bytes());
  }
  bool TryPut(uint64_t bytes) {
    const auto offset = allocator_.Allocate(bytes);
    if (!offset) return false;
    live_.push_back({*offset, bytes});
    live_bytes_ += bytes;
    return true;
  }
  void DropRandom() {
    std::swap(live_[rng_() % live_.size()], live_.back());
    allocator_.Free(live_.back().offset, live_.back().bytes);
    live_bytes_ -= live_.back().bytes;
    live_.pop_back();
  }
  double FillToFirstFailure() {
    while (TryPut(mix_(rng_))) {
    }
    return utilisation();
  }
  // Puts `times` the region's bytes while random values make way: no more than `occupancy` is live.
  void Replace(double occupancy, double times) {
    const double region = static_cast<double>(allocator_.region_bytes());
    for (double put = 0; put < times * region;) {
      const uint64_t bytes = mix_(rng_);
      while (static_cast<double>(live_bytes_ + bytes) > occupancy * region) DropRandom();
      while (!TryPut(bytes)) DropRandom();
      put += static_cast<double>(bytes);
    }
  }

  // Mean over 50 rounds of: fill to the first failure, drop a random tenth of the bytes.
  double RefillRounds() {
    double sum = 0;
    for (int round = 0; round < 60; ++round) {
      const double full = FillToFirstFailure();
      if (round >= 10) sum += full;
      while (utilisation() > 0.9 * full) DropRandom();
    }
    return sum / 50;
  }
  // Mean over 8 times of: long random replacement at `occupancy`, then fill to the first failure.
  double SteadyState(double occupancy) {
    double sum = 0;
    for (int i = 0; i < 8; ++i) {
      Replace(occupancy, 3);
      sum += FillToFirstFailure();
    }
    return sum / 8;
  }
  // Mean fill of a region that is always full: an allocation that fails drops random values until
  // it fits.  Measured after each, like Mooncake's allocator_bench.cpp, which gets 0.849 for random
  // sizes to 64 MiB in 2 GiB.
  double AlwaysFull(int puts) {
    FillToFirstFailure();
    double sum = 0;
    for (int i = 0; i < puts; ++i) {
      const uint64_t bytes = mix_(rng_);
      while (!TryPut(bytes)) DropRandom();
      sum += utilisation();
    }
    return sum / puts;
  }

 private:
  struct Value {
    uint64_t offset;
    uint64_t bytes;
  };
  ExtentAllocator allocator_;
  SizeMix mix_;
  Rng rng_;
  std::vector<Value> live_;
  uint64_t live_bytes_ = 0;
};

void ExpectAtLeast(const char* what, double utilisation, double bound) {
  std::printf("%-32s %.3f (at least %.2f)\n", what, utilisation, bound);
  EXPECT_GE(utilisation, bound) << what;
}

TEST(ExtentAllocatorFragmentationTest, KvMixStaysAbove97Percent) {
  ExpectAtLeast("1 GiB, refill rounds", Churn(kGiB, KvMix, 1).RefillRounds(), 0.97);
  ExpectAtLeast("1 GiB, steady at 90 %", Churn(kGiB, KvMix, 2).SteadyState(0.90), 0.97);
  ExpectAtLeast("1 GiB, steady at 95 %", Churn(kGiB, KvMix, 3).SteadyState(0.95), 0.97);
  ExpectAtLeast("4 GiB, refill rounds", Churn(4 * kGiB, KvMix, 4).RefillRounds(), 0.98);
  ExpectAtLeast("4 GiB, steady at 95 %", Churn(4 * kGiB, KvMix, 5).SteadyState(0.95), 0.98);
}

TEST(ExtentAllocatorFragmentationTest, OtherMixesStayWellUsed) {
  ExpectAtLeast("1 GiB, uniform to 8 MiB", Churn(kGiB, UniformTo8MiB, 6).RefillRounds(), 0.91);
  ExpectAtLeast("4 GiB, uniform to 8 MiB", Churn(4 * kGiB, UniformTo8MiB, 7).RefillRounds(), 0.95);
  ExpectAtLeast("1 GiB, powers of two", Churn(kGiB, PowersOfTwo, 8).RefillRounds(), 0.93);
  ExpectAtLeast("1 GiB, 128 K + 2 M + 17.2 M", Churn(kGiB, ThreeSizes, 9).RefillRounds(), 0.92);
  ExpectAtLeast("2 GiB, uniform to 64 MiB", Churn(2 * kGiB, UniformTo64MiB, 10).AlwaysFull(50000),
                0.86);
}

}  // namespace
}  // namespace moonpool::storage
