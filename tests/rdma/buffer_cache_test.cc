#include "rdma/buffer_cache.h"

#include <gtest/gtest.h>

#include "tests/rdma/fake_verbs.h"

namespace moonpool::rdma {
namespace {

using test::FakeFabric;

class BufferCacheTest : public testing::Test {
 protected:
  static constexpr uint64_t kChunk = 64 << 10;

  BufferCacheTest() : fabric_(FakeFabric::Moves::kAtOnce), memory_(16 * kChunk) {
    fabric_.AddDevice("a", "nic0", "10.0.0.1");
    fabric_.AddDevice("a", "nic1", "10.0.1.1");
    verbs_ = fabric_.Host("a");
    domains_ = std::move(*Domains::Create(*verbs_->Devices()));
  }
  std::unique_ptr<BufferCache> Cache(uint64_t max_bytes) {
    return std::make_unique<BufferCache>(*domains_, max_bytes, kChunk);
  }
  struct Described {
    std::vector<LocalPiece> pieces;
    BufferCache::Pins pins;
  };
  static Described Describe(BufferCache& cache, char* data, uint64_t bytes) {
    Described result;
    cache.Describe(data, bytes, &result.pieces, &result.pins);
    uint64_t total = 0;
    for (const LocalPiece& piece : result.pieces) {
      EXPECT_EQ(piece.data, data + total);
      total += piece.length;
    }
    EXPECT_EQ(total, bytes);
    return result;
  }
  static uint64_t Registered(const Described& described) {
    uint64_t bytes = 0;
    for (const LocalPiece& piece : described.pieces) {
      if (piece.keys != nullptr) bytes += piece.length;
    }
    return bytes;
  }

  FakeFabric fabric_;
  std::unique_ptr<Verbs> verbs_;
  std::unique_ptr<Domains> domains_;
  std::vector<char> memory_;
};

TEST_F(BufferCacheTest, RegistersWhatIsUsedOfWhatWasDeclared) {
  auto cache = Cache(16 * kChunk);
  char* const data = memory_.data();
  ASSERT_TRUE(cache->Declare(data + kChunk, 4 * kChunk));
  EXPECT_EQ(fabric_.counters().registrations, 0u);
  // Half a chunk before it, two chunks and a half of it.
  const Described described = Describe(*cache, data + kChunk / 2, 3 * kChunk);
  EXPECT_EQ(Registered(described), 5 * kChunk / 2);
  EXPECT_EQ(described.pieces.front().keys, nullptr);
  EXPECT_EQ(cache->counters().bytes, 3 * kChunk);
  EXPECT_EQ(fabric_.counters().registrations, 6u) << "three chunks on two devices";
  Describe(*cache, data + kChunk, kChunk);
  EXPECT_EQ(cache->counters().hits, 1u);
  EXPECT_EQ(cache->counters().misses, 3u);
}

TEST_F(BufferCacheTest, TheLeastRecentlyUsedGoesFirst) {
  auto cache = Cache(2 * kChunk);
  char* const data = memory_.data();
  ASSERT_TRUE(cache->Declare(data, 3 * kChunk));
  Describe(*cache, data, 1);
  Describe(*cache, data + kChunk, 1);
  Describe(*cache, data, 1);
  Describe(*cache, data + 2 * kChunk, 1);  // in place of the second
  EXPECT_EQ(cache->counters().dropped, 1u);
  const uint64_t misses = cache->counters().misses;
  Describe(*cache, data, 1);
  EXPECT_EQ(cache->counters().misses, misses);
  Describe(*cache, data + kChunk, 1);
  EXPECT_EQ(cache->counters().misses, misses + 1);
  EXPECT_LE(cache->counters().bytes, 2 * kChunk);
}

TEST_F(BufferCacheTest, WhatIsInUseStays) {
  auto cache = Cache(kChunk);
  char* const data = memory_.data();
  ASSERT_TRUE(cache->Declare(data, 2 * kChunk));
  {
    const Described used = Describe(*cache, data, 1);
    EXPECT_EQ(Registered(Describe(*cache, data + kChunk, 1)), 0u) << "there is no room";
    EXPECT_EQ(cache->counters().refused, 1u);
    EXPECT_EQ(fabric_.counters().registrations, 2u);
  }
  EXPECT_EQ(Registered(Describe(*cache, data + kChunk, 1)), 1u);
}

TEST_F(BufferCacheTest, WithdrawnMemoryIsNotRegistered) {
  auto cache = Cache(16 * kChunk);
  char* const data = memory_.data();
  ASSERT_TRUE(cache->Declare(data, 2 * kChunk));
  Describe(*cache, data, 2 * kChunk);
  EXPECT_TRUE(cache->Withdraw(data));
  EXPECT_FALSE(cache->Withdraw(data));
  EXPECT_EQ(fabric_.counters().registrations, 0u);
  EXPECT_EQ(cache->counters().bytes, 0u);
  EXPECT_EQ(Registered(Describe(*cache, data, 2 * kChunk)), 0u);
}

TEST_F(BufferCacheTest, BuffersDoNotOverlap) {
  auto cache = Cache(16 * kChunk);
  char* const data = memory_.data();
  ASSERT_TRUE(cache->Declare(data + kChunk, kChunk));
  EXPECT_FALSE(cache->Declare(data, kChunk + 1));
  EXPECT_FALSE(cache->Declare(data + 2 * kChunk - 1, 10));
  EXPECT_FALSE(cache->Declare(data + kChunk, kChunk));
  EXPECT_TRUE(cache->Declare(data, kChunk));
  EXPECT_TRUE(cache->Declare(data + 2 * kChunk, kChunk));
}

TEST_F(BufferCacheTest, ADeviceThatRefusesIsLeftOut) {
  auto cache = Cache(16 * kChunk);
  ASSERT_TRUE(cache->Declare(memory_.data(), kChunk));
  fabric_.RefuseRegistrations("nic1", true);
  const Described described = Describe(*cache, memory_.data(), 10);
  ASSERT_NE(described.pieces[0].keys, nullptr);
  EXPECT_TRUE(described.pieces[0].keys->on[0].valid);
  EXPECT_FALSE(described.pieces[0].keys->on[1].valid);
}

TEST_F(BufferCacheTest, WithoutAnyDeviceItIsStaged) {
  auto cache = Cache(16 * kChunk);
  ASSERT_TRUE(cache->Declare(memory_.data(), kChunk));
  fabric_.RefuseRegistrations("nic0", true);
  fabric_.RefuseRegistrations("nic1", true);
  EXPECT_EQ(Registered(Describe(*cache, memory_.data(), 10)), 0u);
  EXPECT_EQ(cache->counters().bytes, 0u);
}

TEST_F(BufferCacheTest, RegistrationsAreCutIntoSlices) {
  auto made =
      Registration::Create(*domains_, memory_.data(), 5 * kChunk + 100, kRemoteRead, kChunk);
  ASSERT_TRUE(made);
  EXPECT_EQ((*made)->slices(), 6u);
  EXPECT_EQ(fabric_.counters().registrations, 12u);
  EXPECT_EQ((*made)->At(0).keys, (*made)->At(kChunk - 1).keys);
  EXPECT_NE((*made)->At(0).keys, (*made)->At(kChunk).keys);
  EXPECT_EQ((*made)->At(5 * kChunk + 99).length, 100u);
}

}  // namespace
}  // namespace moonpool::rdma
