#include "storage/gpu_tier.h"

#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "storage/upkeep.h"
#include "tests/protocol/random.h"
#include "tests/storage/partition_counts.h"
#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using protocol::Tier;
using test::Random;

class GpuTierTest : public testing::Test {
 protected:
  GpuTierTest() {
    t_.ssd = false;
    t_.tenant_options.quota_bytes = 32 * kMiB;
  }

  GpuTierStats stats() { return t_.tenant->gpu()->stats(); }
  FakeDevice& gpu(size_t i = 0) { return *t_.gpus[i]; }
  uint64_t gpu_bytes(size_t i = 0) { return t_.tenant->gpu_budget(i).used_bytes(); }
  void Put(const std::string& name, uint64_t key, uint64_t version, uint64_t length = kLength,
           DeviceSet devices = kAllDevices) {
    t_.Set(name, key, version, length, {Tier::kGpu, devices});
  }
  void PutAll(uint64_t from, uint64_t to) {
    for (uint64_t key = from; key < to; ++key) {
      Put(Numbered(key), key, 1);
      Rest();
    }
  }
  // Until eviction and moves are done.
  void Rest() {
    while (t_.tenant->Maintain(UnixNowMs())) {
    }
    t_.Settle();
  }
  std::map<std::string, int> Places(uint64_t keys) {
    std::map<std::string, int> places;
    for (uint64_t key = 0; key < keys; ++key) ++places[t_.TierOf(Numbered(key))];
    return places;
  }
  uint64_t Generation(uint32_t slot) {
    return t_.tenant->pool().generations().counter(slot).load();
  }
  void Promote(const std::string& name, DeviceSet devices = kAllDevices) {
    t_.tenant->gpu()->Promote(t_.Hold(name), devices);
    Rest();
  }

  TieredTenant t_;
};

TEST_F(GpuTierTest, WhatAClientWritesThereStaysThereAndIsReadByACopy) {
  t_.UseGpu(32 * kMiB);
  t_.Open();
  Put("key", 7, 1);
  ASSERT_EQ(t_.TierOf("key"), "gpu");
  EXPECT_EQ(t_.Hold("key")->device(), &gpu());
  EXPECT_EQ(gpu_bytes(), ExtentAllocator::RoundUp(kLength));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(t_.Get("key", 7).version, 1u);
  EXPECT_EQ(t_.TierOf("key"), "gpu");
  EXPECT_EQ(stats().fetches, 3u);
  EXPECT_EQ(stats().fetched_bytes, 3 * kLength);
  EXPECT_GT(t_.tenant->gpu_hits(), 2u);
  EXPECT_TRUE(Eventually([&] { return t_.tenant->budget().extent_bytes() == 0; }))
      << "the copies are the readers' alone";
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
  EXPECT_TRUE(t_.Erase("key"));
  EXPECT_EQ(gpu_bytes(), 0u);
}

TEST_F(GpuTierTest, TheServerWritesInDram) {
  t_.UseGpu(32 * kMiB);
  t_.Open();
  const auto handle = t_.tenant->Reserve(kLength, UnixNowMs(), Tier::kGpu);
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->extent().region->tier(), Tier::kDram);
}

TEST_F(GpuTierTest, ValuesMoveThereAndAreTheSame) {
  t_.UseGpu(32 * kMiB);
  t_.Open();
  t_.Set("key", 7, 1);
  const uint32_t slot = t_.Hold("key")->extent().slot;
  const uint64_t generation = t_.Hold("key")->extent().generation;
  Promote("key");
  EXPECT_EQ(t_.TierOf("key"), "gpu");
  EXPECT_EQ(t_.tenant->budget().extent_bytes(), 0u);
  EXPECT_NE(Generation(slot), generation) << "the extent in DRAM may be written anew";
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
  EXPECT_EQ(stats().promotions, 1u);
  EXPECT_EQ(stats().promoted_bytes, kLength);
  Promote("key");
  EXPECT_EQ(stats().promotions, 1u) << "it was there already";
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, WhoChangesAValueGetsItInDram) {
  t_.UseGpu(32 * kMiB);
  t_.Open();
  Put("key", 7, 1);
  const ValueRef there = t_.Hold("key");
  const ValueRef here = t_.Fetch(there, true);
  ASSERT_TRUE(here);
  EXPECT_EQ(t_.TierOf("key"), "dram");
  EXPECT_EQ(t_.Hold("key").get(), here.get());
  EXPECT_EQ(CheckStamped(here->data(), here->length(), 7), "");
}

TEST_F(GpuTierTest, ManyReadersShareOneCopy) {
  t_.UseGpu(32 * kMiB);
  t_.Open();
  Put("key", 7, 1);
  Put("other", 8, 1);
  const uint64_t before = gpu().copies();
  gpu().Stop(true);
  std::atomic<int> served{0};
  const auto fetch = [&](const std::string& name) {
    t_.tenant->gpu()->Fetch(t_.Hold(name), false, [&](const ValueRef& value) {
      if (value) ++served;
    });
  };
  // Both threads have something to do.
  fetch("other");
  EXPECT_TRUE(Eventually([&] { return gpu().copies() == before + 1; }));
  fetch("other");
  EXPECT_TRUE(Eventually([&] { return gpu().copies() == before + 2; }));
  for (int i = 0; i < 10; ++i) fetch("key");
  gpu().Stop(false);
  EXPECT_TRUE(Eventually([&] { return served == 12; }));
  EXPECT_EQ(gpu().copies(), before + 3);
}

TEST_F(GpuTierTest, WhatItHasNoRoomForMovesToDram) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 150);  // 30 of 16 + 32 MB
  const auto places = Places(150);
  EXPECT_EQ(places.count(""), 0u);
  EXPECT_GT(places.at("gpu"), 60);
  EXPECT_GT(places.at("dram"), 60);
  EXPECT_LE(gpu_bytes(), 16 * kMiB * 95 / 100);
  EXPECT_GT(stats().demotions, 50u);
  EXPECT_EQ(stats().demoted_bytes, stats().demotions * kLength);
  for (uint64_t key = 0; key < 150; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, TheLeastRecentlyReadLeavesFirst) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 70);
  ASSERT_EQ(Places(70)["gpu"], 70);
  for (uint64_t key = 0; key < 20; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  PutAll(70, 110);
  for (uint64_t key = 0; key < 20; ++key) EXPECT_EQ(t_.TierOf(Numbered(key)), "gpu") << key;
  for (uint64_t key = 20; key < 40; ++key) EXPECT_EQ(t_.TierOf(Numbered(key)), "dram") << key;
}

TEST_F(GpuTierTest, AndOnToTheSsdAndBack) {
  t_.ssd = true;
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 500);  // 100 MB
  const auto places = Places(500);
  EXPECT_EQ(places.count(""), 0u);
  EXPECT_GT(places.at("gpu"), 60);
  EXPECT_GT(places.at("dram"), 100);
  EXPECT_GT(places.at("ssd"), 200);
  EXPECT_EQ(t_.TierOf(Numbered(0)), "ssd");
  for (uint64_t key = 0; key < 500; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  Rest();
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, AStopSavesWhatIsThere) {
  t_.ssd = true;
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 60);
  ASSERT_EQ(Places(60)["gpu"], 60);
  t_.StopAndOpen();
  EXPECT_EQ(Places(60)["ssd"], 60);
  for (uint64_t key = 0; key < 60; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
}

TEST_F(GpuTierTest, WithTwoDevicesTheEmptierIsTakenOrTheOneThatIsNamed) {
  t_.UseGpu(16 * kMiB, 2);
  t_.Open();
  for (uint64_t key = 0; key < 40; ++key) Put(Numbered(key), key, 1);
  EXPECT_EQ(gpu_bytes(0), gpu_bytes(1));
  for (uint64_t key = 40; key < 50; ++key) {
    Put(Numbered(key), key, 1, kLength, 2);
    EXPECT_EQ(t_.Hold(Numbered(key))->device(), &gpu(1));
  }
  // From one to the other.
  Promote(Numbered(45), 1);
  EXPECT_EQ(t_.Hold(Numbered(45))->device(), &gpu(0));
  for (uint64_t key = 0; key < 50; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, OneThatIsFullDoesNotEmptyTheOther) {
  t_.UseGpu(16 * kMiB, 2);
  t_.Open();
  for (uint64_t key = 0; key < 50; ++key) Put(Numbered(key), key, 1, kLength, 1);
  for (uint64_t key = 50; key < 150; ++key) {
    Put(Numbered(key), key, 1, kLength, 2);
    Rest();
  }
  for (uint64_t key = 0; key < 50; ++key) EXPECT_EQ(t_.TierOf(Numbered(key)), "gpu") << key;
}

TEST_F(GpuTierTest, APreferenceGivesWayToDramWhereThereIsNoRoom) {
  t_.UseGpu(8 * kMiB);
  t_.tenant_options.policy = MaxmemoryPolicy::kNoEviction;
  t_.Open();
  for (uint64_t key = 0; key < 100; ++key) Put(Numbered(key), key, 1);
  const auto places = Places(100);
  EXPECT_GT(places.at("gpu"), 30);
  EXPECT_GT(places.at("dram"), 50);
  // One that could never be there, and a tier that is not there at all.
  t_.Set("large", 1, 1, 2'000'000 * 8, Tier::kDram);
  Promote("large");
  EXPECT_EQ(t_.TierOf("large"), "dram");
}

TEST_F(GpuTierTest, ADeviceWithoutMemoryIsNoError) {
  t_.UseGpu(32 * kMiB);
  gpu().set_capacity(0);
  t_.Open();
  Put("key", 7, 1);
  EXPECT_EQ(t_.TierOf("key"), "dram");
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
  gpu().set_capacity(1 << 30);
  EXPECT_TRUE(Eventually([&] {
    Put("later", 8, 1);
    return t_.TierOf("later") == "gpu";
  }));
}

TEST_F(GpuTierTest, WhatOneDeviceRefusesAnotherTakes) {
  t_.UseGpu(16 * kMiB, 2);
  gpu(0).set_capacity(0);
  t_.Open();
  Put("key", 7, 1);
  ASSERT_EQ(t_.TierOf("key"), "gpu");
  EXPECT_EQ(t_.Hold("key")->device(), &gpu(1));
}

TEST_F(GpuTierTest, NothingIsEvictedWhileAnotherDeviceHasRoom) {
  t_.UseGpu(16 * kMiB, 2);
  gpu(0).set_capacity(4 * kMiB);
  t_.Open();
  for (uint64_t key = 0; key < 40; ++key) Put(Numbered(key), key, 1);
  for (uint64_t key = 0; key < 40; ++key) EXPECT_EQ(t_.TierOf(Numbered(key)), "gpu") << key;
  EXPECT_EQ(stats().demotions, 0u);
}

// Victims that are dropped make room at once.
TEST_F(GpuTierTest, NoMoreIsDroppedThanIsNeeded) {
  t_.tenant_options.quota_bytes = 8 * kMiB;  // DRAM takes none of these
  t_.UseGpu(64 * kMiB);
  t_.Open();
  constexpr uint64_t kLarge = 10'000'000;
  for (uint64_t key = 0; key < 7; ++key) Put(Numbered(key), key, 1, kLarge);
  const auto places = Places(7);
  EXPECT_EQ(places.at("gpu"), 6);
  EXPECT_EQ(places.at(""), 1);
  EXPECT_EQ(t_.TierOf(Numbered(6)), "gpu");
}

TEST_F(GpuTierTest, RegionsAreSizedByTheDevicesMemory) {
  t_.UseGpu(256 * kMiB);
  t_.Open();
  Put("key", 7, 1);
  EXPECT_EQ(t_.tenant->gpu_budget(0).region_bytes(), 16 * kMiB);
}

TEST_F(GpuTierTest, AValueThatNoRegionCouldHoldEvictsNothing) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  for (uint64_t key = 0; key < 72; ++key) Put(Numbered(key), key, 1);
  ASSERT_EQ(Places(72)["gpu"], 72);
  ASSERT_EQ(t_.tenant->gpu_budget(0).region_bytes(), 16 * kMiB);
  for (int i = 0; i < 20; ++i) {
    const auto handle = t_.Reserve(2'500'000, Tier::kGpu);
    ASSERT_TRUE(handle);
    EXPECT_EQ(handle->extent().region->tier(), Tier::kDram);
  }
  t_.Settle();
  EXPECT_EQ(Places(72)["gpu"], 72);
}

// Its watermarks are of what there is.
TEST_F(GpuTierTest, ADeviceThatGivesLessIsSmaller) {
  t_.UseGpu(32 * kMiB);
  gpu().set_capacity(8 * kMiB);
  t_.Open();
  PutAll(0, 60);
  EXPECT_EQ(t_.tenant->gpu_capacity(0), 8 * kMiB);
  EXPECT_LE(gpu_bytes(), 8 * kMiB * 95 / 100);
  EXPECT_GT(stats().demotions, 10u);
  // Until it gives more.
  gpu().set_capacity(1 << 30);
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.tenant->gpu_capacity(0) == 32 * kMiB;
  }));
}

// Who wants host memory does not wait for a driver.
TEST_F(GpuTierTest, DramGrowsWhileADeviceDoes) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  gpu().HoldAllocations(true);
  t_.tenant->Maintain(UnixNowMs());
  EXPECT_TRUE(Eventually([&] { return gpu().allocations() > 0; }));
  for (uint64_t key = 0; key < 60; ++key) t_.Set(Numbered(key), key, 1);
  EXPECT_TRUE(t_.tenant->pool().CouldHold(kLength));
  Rest();
  gpu().HoldAllocations(false);
}

// Nobody waits within a driver but the device's own thread.
TEST_F(GpuTierTest, ADeviceThatMakesNoRegionStopsNothingElse) {
  t_.UseGpu(16 * kMiB, 2);
  t_.Open();
  gpu(0).HoldAllocations(true);
  DeviceSet growing = 0;
  const auto reserve = [&](DeviceSet devices, DeviceSet* on) {
    return t_.tenant->ReserveInArena(TieredTenant::kGpuWriter, kLength, UnixNowMs(),
                                     {Tier::kGpu, devices}, on);
  };
  auto there = reserve(1, &growing);
  ASSERT_FALSE(there);
  EXPECT_EQ(there.error().code, ErrorCode::kBusy);
  EXPECT_EQ(growing, 1u);
  EXPECT_TRUE(Eventually([&] { return gpu(0).allocations() == 1; }));
  Rest();
  // The other device, DRAM, and who does not want to wait.
  Put("other", 1, 1, kLength, 2);
  EXPECT_EQ(t_.Hold("other")->device(), &gpu(1));
  growing = 0;
  auto any = reserve(3, &growing);
  ASSERT_TRUE(any);
  EXPECT_EQ(growing, 0u) << "the other has room, though it is fuller";
  EXPECT_EQ(any->extent().region->device(), &gpu(1));
  auto dram = reserve(1, nullptr);
  ASSERT_TRUE(dram);
  EXPECT_EQ(dram->extent().region->tier(), Tier::kDram);
  // Moves to it are put off, and others overtake them.
  for (uint64_t key = 0; key < 5; ++key) {
    t_.Set(Numbered(key), key, 1);
    t_.tenant->gpu()->Promote(t_.Hold(Numbered(key)), 1);
  }
  EXPECT_TRUE(Eventually([&] { return t_.tenant->pool().growth()->waiting() == 5; }));
  EXPECT_EQ(stats().queued_values, 5u);
  t_.Set("moves", 7, 1);
  t_.tenant->gpu()->Promote(t_.Hold("moves"), 2);
  EXPECT_TRUE(Eventually([&] { return t_.TierOf("moves") == "gpu"; }));
  EXPECT_EQ(gpu(0).allocations(), 1u);
  gpu(0).HoldAllocations(false);
  Rest();
  for (uint64_t key = 0; key < 5; ++key) {
    EXPECT_EQ(t_.TierOf(Numbered(key)), "gpu") << key;
    EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  }
  EXPECT_TRUE(reserve(1, nullptr)->extent().region->device() == &gpu(0));
}

TEST_F(GpuTierTest, ADeviceThatIsWaitedForInVainIsWaitedForNoMore) {
  t_.UseGpu(16 * kMiB);
  t_.tenant_options.gpu.wait_ms = 20;
  t_.Open();
  gpu().HoldAllocations(true);
  t_.Set("key", 7, 1);
  Promote("key");
  EXPECT_EQ(stats().refused, 1u);
  EXPECT_EQ(t_.TierOf("key"), "dram");
  EXPECT_EQ(t_.tenant->pool().growth()->state(0), DeviceGrowth::State::kSilent);
  DeviceSet growing = 0;
  auto handle = t_.tenant->ReserveInArena(TieredTenant::kGpuWriter, kLength, UnixNowMs(),
                                          Tier::kGpu, &growing);
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->extent().region->tier(), Tier::kDram);
  EXPECT_EQ(growing, 0u);
  gpu().HoldAllocations(false);
  EXPECT_TRUE(Eventually([&] {
    Promote("key");
    return t_.TierOf("key") == "gpu";
  }));
}

TEST_F(GpuTierTest, AnEndWhileADeviceMakesARegionWaitsForThatLast) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  gpu().HoldAllocations(true);
  t_.Set("key", 7, 1);
  t_.tenant->gpu()->Promote(t_.Hold("key"), kAllDevices);
  EXPECT_TRUE(Eventually([&] { return t_.tenant->pool().growth()->waiting() == 1; }));
  t_.tenant->CloseMoves();
  EXPECT_EQ(t_.TierOf("key"), "dram");
  std::atomic<bool> ended{false};
  std::thread end([&] {
    t_.tenant.reset();
    ended = true;
  });
  EXPECT_FALSE(ended);
  gpu().HoldAllocations(false);
  end.join();
}

TEST_F(GpuTierTest, ItIsQuietWhenNothingChangesOnDevicesEither) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  EXPECT_TRUE(Eventually([&] {
    Rest();
    return t_.tenant->Quiet();
  }));
  Put("key", 1, 1);
  EXPECT_FALSE(t_.tenant->Quiet());
  EXPECT_TRUE(t_.tenant->Quiet());
  gpu().Stop(true);
  t_.Set("other", 2, 1);
  EXPECT_FALSE(t_.tenant->Quiet());
  t_.tenant->gpu()->Promote(t_.Hold("other"), kAllDevices);
  EXPECT_TRUE(Eventually([&] { return gpu().copies() == 2; }));
  t_.tenant->Quiet();
  EXPECT_FALSE(t_.tenant->Quiet()) << "a move is under way";
  gpu().Stop(false);
  Rest();
}

TEST_F(GpuTierTest, LeasesGetShorterWhereADeviceIsFull) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  using Pressure = Tenant::Pressure;
  Put("key", 1, 1);
  t_.Set("dram", 1, 1);
  EXPECT_EQ(t_.tenant->LeasePressure(*t_.Hold("key")), Pressure::kNone);
  // DRAM's pressure is none of a device's.
  std::vector<WriteHandle> taken;
  for (int i = 0; i < 100; ++i) {
    auto handle = t_.tenant->Reserve(kLength, UnixNowMs());
    ASSERT_TRUE(handle);
    taken.push_back(std::move(*handle));
  }
  EXPECT_NE(t_.tenant->LeasePressure(), Pressure::kNone);
  EXPECT_EQ(t_.tenant->LeasePressure(*t_.Hold("key")), Pressure::kNone);
  taken.clear();
  for (uint64_t key = 0; key < 79; ++key) Put(Numbered(key), key, 1);
  EXPECT_EQ(t_.tenant->LeasePressure(*t_.Hold("key")), Pressure::kShortLeases);
  EXPECT_EQ(t_.tenant->LeasePressure(*t_.Hold("dram")), Pressure::kNone);
}

TEST_F(GpuTierTest, WhereCopiesFailNothingIsMovedForAWhile) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 30);
  gpu().FailNext(1'000'000);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(Eventually([&] {
    t_.tenant->gpu()->Demote(t_.Hold(Numbered(5)));
    t_.Settle();
    return stats().failed == 5;
  }));
  // Each up to a millisecond shorter, as the tier's clock has only whole ones.
  constexpr std::chrono::milliseconds kPauses{50 + 100 + 200 + 400 - 4};
  EXPECT_GE(std::chrono::steady_clock::now() - start, kPauses);
  EXPECT_EQ(Places(30)["gpu"], 30);
  t_.Set("key", 7, 1);
  EXPECT_TRUE(Eventually([&] {
    Promote("key");
    return stats().failed == 6;
  }));
  EXPECT_EQ(t_.TierOf("key"), "dram");
  // When they work again, they are used again.
  gpu().FailNext(0);
  EXPECT_TRUE(Eventually([&] {
    Promote("key");
    return t_.TierOf("key") == "gpu";
  }));
}

TEST_F(GpuTierTest, LargerPiecesThanAskedForAreCounted) {
  t_.gpus.push_back(std::make_unique<FakeDevice>(0, 32 * kMiB));
  t_.tenant_options.gpu.devices = {t_.gpus[0].get()};
  t_.tenant_options.gpu.memory_bytes = 64 * kMiB;
  t_.Open();
  Put("key", 7, 1);
  EXPECT_EQ(t_.tenant->gpu_budget(0).region_bytes() % (32 * kMiB), 0u);
  EXPECT_EQ(t_.tenant->gpu_budget(0).region_bytes(), gpu().allocated());
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
}

// --- invariants --------------------------------------------------------------------------------

TEST_F(GpuTierTest, HeldBytesStayWhatTheyAre) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  Put("held", 5, 1);
  const ValueRef held = t_.Hold("held");
  ASSERT_NE(held->device(), nullptr);
  PutAll(0, 100);
  t_.Erase("held");
  PutAll(0, 100);
  EXPECT_EQ(Generation(held->extent().slot), held->extent().generation);
  const ValueRef fetched = t_.Fetch(held);
  ASSERT_TRUE(fetched);
  EXPECT_EQ(CheckStamped(fetched->data(), fetched->length(), 5), "");
}

TEST_F(GpuTierTest, TheGenerationChangesBeforeAnExtentIsWrittenAnew) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  Put("key", 5, 1);
  const Extent before = t_.Hold("key")->extent();
  Put("key", 5, 2);
  EXPECT_NE(Generation(before.slot), before.generation);
  // One that moved away.
  const Extent second = t_.Hold("key")->extent();
  PutAll(0, 100);
  ASSERT_EQ(t_.TierOf("key"), "dram");
  EXPECT_NE(Generation(second.slot), second.generation);
}

// What a client reserved and did not commit, a copy of its may be on the way to.
TEST_F(GpuTierTest, AReservationGivenUpIsNotReusedBeforeItsWriterIsGone) {
  t_.UseGpu(8 * kMiB);
  t_.tenant_options.policy = MaxmemoryPolicy::kNoEviction;
  t_.Open();
  ExtentPool& pool = t_.tenant->pool();
  auto given_up = t_.Reserve(kLength, Tier::kGpu);
  ASSERT_TRUE(given_up);
  const Extent extent = given_up->extent();
  ASSERT_NE(extent.region->device(), nullptr);
  EXPECT_FALSE(pool.HasLateWrites(TieredTenant::kGpuWriter));
  given_up->Abort();
  EXPECT_TRUE(pool.HasLateWrites(TieredTenant::kGpuWriter));
  EXPECT_EQ(pool.late_bytes(), ExtentAllocator::RoundUp(kLength));
  EXPECT_EQ(gpu_bytes(), pool.late_bytes());
  t_.tenant->Maintain(UnixNowMs());
  pool.WriterGone(TieredTenant::kGpuWriter + 1);
  const auto overlaps = [&](const Extent& other) {
    return other.region == extent.region && other.offset < extent.offset + extent.length &&
           extent.offset < other.offset + other.length;
  };
  std::vector<WriteHandle> taken;
  for (;;) {
    auto handle = t_.Reserve(kLength, Tier::kGpu);
    ASSERT_TRUE(handle);
    if (handle->extent().region->device() == nullptr) break;
    EXPECT_FALSE(overlaps(handle->extent()));
    taken.push_back(std::move(*handle));
  }
  EXPECT_EQ(Generation(extent.slot), extent.generation);
  // Then it is, as another version.
  pool.WriterGone(TieredTenant::kGpuWriter);
  EXPECT_FALSE(pool.HasLateWrites(TieredTenant::kGpuWriter));
  EXPECT_EQ(pool.late_bytes(), 0u);
  EXPECT_NE(Generation(extent.slot), extent.generation);
  auto again = t_.Reserve(kLength, Tier::kGpu);
  ASSERT_TRUE(again);
  EXPECT_TRUE(overlaps(again->extent()));
  // At once, of a writer that is done with this one.
  for (WriteHandle& handle : taken) handle.WriterDone();
  taken.clear();
  again->WriterDone();
  again->Abort();
  EXPECT_EQ(pool.late_bytes(), 0u);
  EXPECT_EQ(gpu_bytes(), 0u);
}

// Moves of the server's own are over when it gives up their extents.
TEST_F(GpuTierTest, WhatTheServerGaveUpIsFreeAtOnce) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  t_.Set("key", 7, 1);
  gpu().FailNext(1);
  Promote("key");
  EXPECT_EQ(stats().failed, 1u);
  EXPECT_EQ(gpu_bytes(), 0u);
}

TEST_F(GpuTierTest, AnEndWaitsForNoWriter) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  auto handle = t_.Reserve(kLength, Tier::kGpu);
  ASSERT_TRUE(handle);
  ASSERT_NE(handle->extent().region->device(), nullptr);
  handle->Abort();
  t_.tenant.reset();
  EXPECT_EQ(gpu().allocated(), 0u);
}

// A session asks its own tenant's pool alone, and no region is of two.
TEST_F(GpuTierTest, RegionsAreOfOneTenant) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  auto other = Tenant::Create(t_.tenant_options);
  ASSERT_TRUE(other) << other.error().message;
  Put("key", 5, 1);
  Result<WriteHandle> theirs;
  DeviceSet growing = 0;
  EXPECT_TRUE(Eventually([&] {
    theirs = (*other)->ReserveInArena(TieredTenant::kGpuWriter, kLength, UnixNowMs(), Tier::kGpu,
                                      &growing);
    return theirs.has_value();
  }));
  const uint32_t mine = t_.Hold("key")->extent().region->id();
  const uint32_t their_id = theirs->extent().region->id();
  EXPECT_NE(mine, their_id);
  EXPECT_NE(t_.tenant->pool().FindRegion(mine), nullptr);
  EXPECT_EQ((*other)->pool().FindRegion(mine), nullptr);
  EXPECT_EQ(t_.tenant->pool().FindRegion(their_id), nullptr);
  theirs->Abort();
}

// --- failures ----------------------------------------------------------------------------------

TEST_F(GpuTierTest, AFailedCopyLosesNothing) {
  t_.UseGpu(8 * kMiB);
  t_.Open();
  Put("key", 5, 1);
  gpu().FailNext(1);
  EXPECT_FALSE(t_.Fetch(t_.Hold("key")));
  EXPECT_EQ(t_.Get("key", 5).version, 1u);
  gpu().FailNext(4);
  for (uint64_t key = 0; key < 100; ++key) t_.Set(Numbered(key), key, 1);
  EXPECT_TRUE(Eventually([&] {
    for (uint64_t key = 0; key < 100; ++key) Promote(Numbered(key));
    return stats().failed == 5 && stats().promotions > 0;
  }));
  for (uint64_t key = 0; key < 100; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  EXPECT_EQ(stats().lost, 0u);
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, ALostDeviceCostsItsKeysAndNothingElse) {
  t_.UseGpu(16 * kMiB, 2);
  std::vector<std::string> notes;
  t_.tenant_options.gpu.note = [&](const std::string& line) { notes.push_back(line); };
  t_.Open();
  for (uint64_t key = 0; key < 30; ++key) Put(Numbered(key), key, 1, kLength, 1 + key % 2);
  for (uint64_t key = 30; key < 40; ++key) t_.Set(Numbered(key), key, 1);
  Put("reserved", 1, 1, kLength, 1);
  ValueRef held = t_.Hold(Numbered(0));
  auto reserved = t_.Reserve(kLength, {Tier::kGpu, 1});
  gpu(0).Die();
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.TierOf(Numbered(0)).empty();
  }));
  for (uint64_t key = 0; key < 40; ++key) {
    const bool lost = key < 30 && key % 2 == 0;
    EXPECT_EQ(t_.Get(Numbered(key), key).version.has_value(), !lost) << key;
  }
  EXPECT_EQ(stats().lost, 16u);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_NE(notes[0].find(gpu(0).name()), std::string::npos);
  // What was being written goes the same way; what is new goes elsewhere.
  ASSERT_TRUE(reserved);
  {
    ValueRef late = std::move(*reserved).Publish();
    KeyLock lock(t_.tenant->keyspace(), "late", UnixNowMs());
    lock.key.SetBulk(std::move(late));
  }
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.TierOf("late").empty();
  }));
  Put("new", 9, 1, kLength, 1);
  EXPECT_EQ(t_.TierOf("new"), "dram");
  Put("other", 9, 1);
  EXPECT_EQ(t_.Hold("other")->device(), &gpu(1));
  // Its memory goes when nobody refers to it.
  EXPECT_GT(gpu(0).allocated(), 0u);
  held.Reset();
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return gpu(0).allocated() == 0;
  }));
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(GpuTierTest, WhoReadsFromALostDeviceMisses) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  Put("key", 5, 1);
  gpu().Stop(true);
  std::atomic<int> answers{0};
  t_.tenant->gpu()->Fetch(t_.Hold("key"), false, [&](const ValueRef& value) {
    EXPECT_FALSE(value);
    ++answers;
  });
  gpu().Lose();
  EXPECT_TRUE(Eventually([&] { return answers == 1; }));
  EXPECT_EQ(t_.TierOf("key"), "");
  EXPECT_EQ(stats().lost, 1u);
}

TEST_F(GpuTierTest, WhatIsOnTheSsdTooOutlivesItsDevice) {
  t_.ssd = true;
  t_.options.write_through = true;
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 30);
  EXPECT_TRUE(Eventually([&] { return t_.stats().demotions == 30; }));
  ASSERT_EQ(Places(30)["gpu"], 30);
  gpu().Lose();
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return Places(30)["ssd"] == 30;
  }));
  for (uint64_t key = 0; key < 30; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
}

TEST_F(GpuTierTest, AnEndLeavesNobodyWaiting) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  Put("a", 1, 1);
  Put("b", 2, 1);
  gpu().Stop(true);
  const uint64_t before = gpu().copies();
  std::atomic<int> answers{0};
  for (const char* name : {"a", "b"}) {
    for (int i = 0; i < 3; ++i) {
      t_.tenant->gpu()->Fetch(t_.Hold(name), false, [&](const ValueRef&) { ++answers; });
      if (i == 0) {
        EXPECT_TRUE(Eventually([&] { return gpu().copies() > before + (*name == 'b' ? 1 : 0); }));
      }
    }
  }
  std::thread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    gpu().Stop(false);
  });
  t_.tenant->CloseMoves();
  release.join();
  EXPECT_EQ(answers, 6);
}

TEST_F(GpuTierTest, AnEndDuringAMove) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  t_.Set("key", 1, 1, 3'000'000);  // longer than usual regions: it would evict for that
  gpu().HoldAllocations(true);
  t_.tenant->gpu()->Promote(t_.Hold("key"), kAllDevices);
  EXPECT_TRUE(Eventually([&] { return gpu().allocations() > 0; }));
  std::thread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    gpu().set_capacity(0);
    gpu().HoldAllocations(false);
  });
  t_.tenant->CloseMoves();
  release.join();
  EXPECT_EQ(t_.TierOf("key"), "dram");
}

TEST_F(GpuTierTest, FlushingFreesIt) {
  t_.UseGpu(16 * kMiB);
  t_.Open();
  PutAll(0, 60);
  t_.tenant->keyspace().Clear();
  EXPECT_EQ(gpu_bytes(), 0u);
  PutAll(0, 60);
  EXPECT_EQ(Places(60)["gpu"], 60);
  // As does a change of partitions, in between.
  t_.tenant->keyspace().SetPartitions(PartitionsOf("k prefix=key:1: dram=0.2"));
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

// Invariant 8 within memory: a value that is overwritten or deleted while it moves stays so.
TEST_F(GpuTierTest, WhatChangesWhileItMovesStaysChanged) {
  Random random;
  SCOPED_TRACE(random.Replay());
  t_.ssd = random.Chance(0.5);
  t_.tenant_options.quota_bytes = 16 * kMiB;
  t_.UseGpu(2 * kMiB, 2);
  t_.upkeep_runs = true;
  t_.Open();
  const Upkeep upkeep({t_.tenant.get()});
  std::atomic<uint64_t> wrong{0}, served{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < 3; ++number) {
    threads.emplace_back([&, number, seed = random.Next()] {
      Random mine(seed);
      std::map<uint64_t, uint64_t> versions;
      uint64_t next = 0;
      for (int step = 0; step < Steps(3000); ++step) {
        const uint64_t key = mine.Below(60);
        const std::string name = std::to_string(number) + Numbered(key);
        const uint64_t what = mine.Below(10);
        if (what < 4) {
          t_.Set(name, key, ++next, mine.Between(3, 20'000) * 8,
                 what < 2 ? Tier::kGpu : Tier::kDram);
          versions[key] = next;
        } else if (what < 5) {
          t_.Erase(name);
          versions.erase(key);
        } else if (what < 6) {
          if (ValueRef value = t_.Hold(name)) {
            t_.tenant->gpu()->Promote(std::move(value), 1 + mine.Below(3));
          }
        } else if (what < 7 && mine.Chance(0.3)) {
          const ValueRef value = t_.Hold(name);
          if (value && value->device() != nullptr) t_.Fetch(value, true);
        } else {
          const auto found = t_.Get(name, key);
          if (!found.version) continue;
          ++served;
          const auto known = versions.find(key);
          if (known == versions.end() || known->second != *found.version) ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(served, 100u);
  EXPECT_GT(stats().demotions, 5u);
  EXPECT_GT(stats().promotions, 5u);
  EXPECT_GT(stats().fetches, 20u);
  EXPECT_EQ(stats().lost, 0u);
  t_.Settle();
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

}  // namespace
}  // namespace moonpool::storage
