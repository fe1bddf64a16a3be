#include "client/pace.h"

#include <gtest/gtest.h>

#include <functional>

namespace moonpool::client {
namespace {

constexpr uint64_t kBytes = 8 << 20;

// Runs batches; `rate` tells what a transport delivers, in bytes per ns.  How many went over tcp.
size_t Batches(Pace& pace, size_t batches, const std::function<double(Transport)>& rate,
           uint64_t bytes = kBytes) {
  size_t tcp = 0;
  for (size_t i = 0; i < batches; ++i) {
    const Transport chosen = pace.Choose(bytes);
    tcp += chosen == Transport::kTcp ? 1 : 0;
    pace.Took(chosen, bytes, bytes,
              std::chrono::nanoseconds(static_cast<int64_t>(static_cast<double>(bytes) / rate(chosen))));
  }
  return tcp;
}
std::function<double(Transport)> Rates(double rdma, double tcp) {
  return [=](Transport transport) { return transport == Transport::kRdma ? rdma : tcp; };
}

TEST(Pace, RdmaIsTakenFirstAndTheOtherSeldomTried) {
  Pace pace;
  EXPECT_EQ(pace.Choose(kBytes), Transport::kRdma);
  const size_t tcp = Batches(pace, 10'000, Rates(10, 5));
  EXPECT_GE(tcp, 10'000 / Pace::kTryEvery - 1);
  EXPECT_LE(tcp, 10'000 / Pace::kTryEvery + 1);
  EXPECT_EQ(pace.preferred(), Transport::kRdma);
}

TEST(Pace, OneThatIsMuchSlowerIsTriedLessOften) {
  Pace pace;
  EXPECT_LE(Batches(pace, 10'000, Rates(10, 0.5)), 2 + 10'000 / Pace::kTrySlowEvery);
}

TEST(Pace, ASlowPathIsLeftAndTakenAgainWhenItIsFast) {
  Pace pace;
  Batches(pace, 1000, Rates(10, 2));
  ASSERT_EQ(pace.preferred(), Transport::kRdma);
  // Silently slow: it fails nowhere.
  Batches(pace, 4 * Pace::kTrySlowEvery, Rates(1, 2));
  ASSERT_EQ(pace.preferred(), Transport::kTcp);
  EXPECT_GE(Batches(pace, 1000, Rates(1, 2)), 1000 - 1000 / Pace::kTryEvery - 1);
  Batches(pace, 4 * Pace::kTrySlowEvery, Rates(10, 2));
  EXPECT_EQ(pace.preferred(), Transport::kRdma);
}

TEST(Pace, NearlyEqualOnesDoNotAlternate) {
  Pace pace;
  size_t changes = 0;
  Transport before = pace.preferred();
  uint32_t noise = 1;
  for (int i = 0; i < 20'000; ++i) {
    noise = noise * 1664525 + 1013904223;
    const double factor = 0.9 + 0.2 * (noise >> 8) / (1 << 24);
    Batches(pace, 1, Rates(5 * factor, 5.2 * factor));
    changes += pace.preferred() != before ? 1 : 0;
    before = pace.preferred();
  }
  EXPECT_EQ(changes, 0u);
}

TEST(Pace, OneFastBatchChangesNothing) {
  Pace pace;
  Batches(pace, 100, Rates(5, 4));
  for (int i = 0; i < 20; ++i) {
    pace.Took(Transport::kTcp, kBytes, kBytes, std::chrono::nanoseconds(1000));
    pace.Took(Transport::kTcp, kBytes, kBytes, std::chrono::nanoseconds(kBytes / 4));
  }
  EXPECT_EQ(pace.preferred(), Transport::kRdma);
}

TEST(Pace, SizesAreJudgedApart) {
  Pace pace;
  for (int i = 0; i < 1000; ++i) {
    Batches(pace, 1, Rates(0.1, 1), 70'000);
    Batches(pace, 1, Rates(10, 1), 64 << 20);
  }
  Batches(pace, 1, Rates(0.1, 1), 70'000);
  EXPECT_EQ(pace.preferred(), Transport::kTcp);
  Batches(pace, 1, Rates(10, 1), 64 << 20);
  EXPECT_EQ(pace.preferred(), Transport::kRdma);
}

TEST(Pace, WhatMovedNothingTellsNothing) {
  Pace pace;
  Batches(pace, 100, Rates(5, 4));
  for (int i = 0; i < 10; ++i) pace.Took(Transport::kTcp, kBytes, 0, std::chrono::nanoseconds(1));
  EXPECT_EQ(pace.preferred(), Transport::kRdma);
}

}  // namespace
}  // namespace moonpool::client
