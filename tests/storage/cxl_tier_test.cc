#include "storage/cxl_tier.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "storage/upkeep.h"
#include "tests/protocol/random.h"
#include "tests/storage/arena_client.h"
#include "tests/storage/partition_counts.h"
#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using protocol::Tier;
using test::Random;

class CpulessNodeTest : public testing::Test {
 protected:
  Result<int> Find(const std::string& has_memory, const std::string& has_cpu) {
    std::ofstream(directory_.path() + "/has_memory") << has_memory << "\n";
    std::ofstream(directory_.path() + "/has_cpu") << has_cpu << "\n";
    return FindCpulessNode(directory_.path());
  }

 private:
  const SsdDirectory directory_;
};

TEST_F(CpulessNodeTest, TheOneWithMemoryAndNoProcessor) {
  EXPECT_EQ(Find("0-2", "0,2").value_or(-1), 1);
  EXPECT_EQ(Find("0,4", "0-3").value_or(-1), 4);
  EXPECT_EQ(Find("0-1,16", "0-1").value_or(-1), 16);
}

TEST_F(CpulessNodeTest, NoneOrSeveralIsAnErrorThatSaysWhatToDo) {
  for (const auto& [memory, processors, code] : {std::tuple{"0", "0", ErrorCode::kNotFound},
                                                 {"", "", ErrorCode::kNotFound},
                                                 {"0-3", "0-1", ErrorCode::kInvalidArgument}}) {
    const auto found = Find(memory, processors);
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code, code);
    EXPECT_NE(found.error().message.find("cxl-node"), std::string::npos);
  }
}

class CxlTierTest : public testing::Test {
 protected:
  CxlTierTest() {
    t_.ssd = false;
    t_.tenant_options.quota_bytes = 32 * kMiB;
    t_.UseCxl(64 * kMiB);
  }

  CxlTierStats stats() { return t_.tenant->cxl()->stats(); }
  uint64_t cxl_bytes() { return t_.tenant->cxl_budget().used_bytes(); }
  void SetAll(uint64_t from, uint64_t to) {
    for (uint64_t key = from; key < to; ++key) t_.Set(Numbered(key), key, 1);
    Rest();
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
  // Puts a value there, whatever else there is.
  void PutInCxl(const std::string& name, uint64_t key, uint64_t version) {
    t_.Set(name, key, version, kLength, Tier::kCxl);
    ASSERT_EQ(t_.TierOf(name), "cxl");
  }

  TieredTenant t_;
};

TEST_F(CxlTierTest, WhatDramHasNoRoomForMovesThereAndIsServed) {
  t_.Open();
  SetAll(0, 300);  // 60 of 32 + 64 MB
  const auto places = Places(300);
  EXPECT_EQ(places.count(""), 0u);
  EXPECT_GT(places.at("cxl"), 120);
  EXPECT_GT(places.at("dram"), 100);
  EXPECT_GT(stats().demotions, 120u);
  EXPECT_EQ(stats().demoted_bytes, stats().demotions * kLength);
  for (uint64_t key = 0; key < 300; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  EXPECT_GT(t_.tenant->cxl_hits(), 120u);
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(CxlTierTest, TheOldestIsDroppedWhenBothAreFull) {
  t_.Open();
  SetAll(0, 900);  // 180 MB
  EXPECT_LE(t_.tenant->budget().used_bytes(), 32 * kMiB);
  EXPECT_LE(cxl_bytes(), 64 * kMiB * 95 / 100 + kMiB);
  const auto places = Places(900);
  EXPECT_GT(places.at("cxl"), 250);
  EXPECT_GT(places.at(""), 300);
  for (uint64_t key = 0; key < 100; ++key) EXPECT_EQ(t_.TierOf(Numbered(key)), "");
  for (uint64_t key = 800; key < 900; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
}

TEST_F(CxlTierTest, WithAnSsdTheOldestGoesOnThere) {
  t_.ssd = true;
  t_.Open();
  SetAll(0, 900);
  const auto places = Places(900);
  EXPECT_EQ(places.count(""), 0u);
  EXPECT_GT(places.at("cxl"), 250);
  EXPECT_GT(places.at("ssd"), 300);
  EXPECT_EQ(t_.TierOf(Numbered(0)), "ssd");
  for (uint64_t key = 0; key < 900; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  Rest();
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(CxlTierTest, WhatCameUpForOneReaderGoesBackToTheSsd) {
  t_.ssd = true;
  t_.Open();
  for (uint64_t key = 0; key < 300; ++key) t_.Set(Numbered(key), key, 1);
  for (uint64_t key = 0; key < 300; ++key) t_.MoveDown(Numbered(key));
  Rest();
  const uint64_t before = stats().demotions;
  for (uint64_t key = 0; key < 300; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  Rest();
  EXPECT_LT(stats().demotions - before, 30u);
}

TEST_F(CxlTierTest, AStopSavesWhatIsThere) {
  t_.ssd = true;
  t_.Open();
  SetAll(0, 300);
  ASSERT_GT(Places(300)["cxl"], 100);
  t_.StopAndOpen();
  for (uint64_t key = 0; key < 300; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
}

TEST_F(CxlTierTest, TheSecondReadBringsItBackToDram) {
  t_.Open();
  PutInCxl("key", 7, 1);
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
  Rest();
  EXPECT_EQ(t_.TierOf("key"), "cxl");
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.TierOf("key") == "dram";
  }));
  EXPECT_EQ(t_.Get("key", 7).version, 1u);
  // Counted, and its old bytes freed, after it is there.
  EXPECT_TRUE(Eventually([&] { return stats().promoted_bytes == kLength; }));
  EXPECT_EQ(stats().promotions, 1u);
  EXPECT_TRUE(Eventually([&] { return cxl_bytes() == 0; }));
}

TEST_F(CxlTierTest, AdmissionDecidesWhichReadDoes) {
  t_.tenant_options.partitions =
      PartitionsOf("first prefix=always: admission=always; none prefix=never: admission=never");
  t_.Open();
  PutInCxl("always:", 1, 1);
  PutInCxl("never:", 2, 1);
  EXPECT_EQ(t_.Get("always:", 1).version, 1u);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(t_.Get("never:", 2).version, 1u);
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.TierOf("always:") == "dram";
  }));
  Rest();
  EXPECT_EQ(t_.TierOf("never:"), "cxl");
}

TEST_F(CxlTierTest, NothingComesBackWhileDramIsFull) {
  t_.tenant_options.policy = MaxmemoryPolicy::kNoEviction;
  t_.tenant_options.high_watermark = 0.5;  // half of what is above stays the writers': 0.75
  t_.Open();
  PutInCxl("key", 7, 1);
  uint64_t key = 0;
  while (t_.tenant->budget().used_bytes() + kLength < 32 * kMiB * 3 / 4) {
    t_.Set("fill:" + std::to_string(key), key, 1);
    ++key;
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(t_.Get("key", 7).version, 1u);
  for (int i = 0; i < 20; ++i) Rest();
  EXPECT_EQ(t_.TierOf("key"), "cxl");
  // But once there is room again, with the next read.
  for (uint64_t i = 0; i < 50; ++i) t_.Erase("fill:" + std::to_string(i));
  EXPECT_TRUE(Eventually([&] {
    EXPECT_EQ(t_.Get("key", 7).version, 1u);
    t_.KeepUp();
    return t_.TierOf("key") == "dram";
  }));
}

TEST_F(CxlTierTest, APreferenceGivesWayToDramWhereThereIsNoRoom) {
  t_.UseCxl(8 * kMiB);
  t_.tenant_options.policy = MaxmemoryPolicy::kNoEviction;
  t_.Open();
  for (uint64_t key = 0; key < 100; ++key) t_.Set(Numbered(key), key, 1, kLength, Tier::kCxl);
  const auto places = Places(100);
  EXPECT_GT(places.at("cxl"), 30);
  EXPECT_GT(places.at("dram"), 50);
  // One that could never be there.
  t_.Set("large", 1, 1, 10'000'000, Tier::kCxl);
  EXPECT_EQ(t_.TierOf("large"), "dram");
}

TEST_F(CxlTierTest, PinnedValuesStayInDram) {
  t_.Open();
  t_.Set("pinned", 5, 1);
  {
    KeyLock lock(t_.tenant->keyspace(), "pinned", UnixNowMs());
    ASSERT_NE(lock.key.Find(), nullptr);
    lock.key.SetPin({0, true, 0});
  }
  SetAll(0, 400);
  EXPECT_EQ(t_.TierOf("pinned"), "dram");
}

TEST_F(CxlTierTest, HeldBytesStayWhatTheyAre) {
  t_.Open();
  t_.Set("held", 5, 1);
  const ValueRef held = t_.Hold("held");
  const uint64_t generation = held->extent().generation;
  SetAll(0, 400);
  // It may have moved; the hold is on the bytes where they were.
  EXPECT_EQ(CheckStamped(held->data(), held->length(), 5), "");
  EXPECT_EQ(t_.tenant->pool().generations().counter(held->extent().slot).load(), generation);
  EXPECT_EQ(t_.Get("held", 5).version, 1u);
}

TEST_F(CxlTierTest, AMovedExtentIsRecycledByItsGeneration) {
  t_.Open();
  t_.Set("key", 5, 1);
  const auto [slot, generation] = [&] {
    const ValueRef before = t_.Hold("key");
    return std::pair(before->extent().slot, before->extent().generation);
  }();
  SetAll(0, 400);
  ASSERT_EQ(t_.TierOf("key"), "cxl");
  EXPECT_NE(t_.tenant->pool().generations().counter(slot).load(), generation);
}

TEST_F(CxlTierTest, ArenasAreThereToo) {
  constexpr SessionId kSession = 3;
  t_.Open();
  ArenaClient client(*t_.tenant, kSession);
  std::string bytes(kLength, '\0');
  FillStamped(bytes.data(), kLength, {9, 1});
  auto handle = t_.tenant->ReserveInArena(kSession, kLength, UnixNowMs(), Tier::kCxl);
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle->extent().region->kind(), Region::Kind::kArena);
  const uint32_t arena = client.Commit(std::move(*handle), "mine", bytes);
  EXPECT_EQ(t_.TierOf("mine"), "cxl");
  EXPECT_EQ(t_.Get("mine", 9).version, 1u);
  // When the session ends its arena drains: the value stays in this tier, out of the writer's
  // reach.
  t_.tenant->pool().SessionEnded(kSession);
  client.Unmap();
  EXPECT_TRUE(Eventually([&] {
    t_.KeepUp();
    return t_.tenant->pool().FindRegion(arena) == nullptr;
  }));
  EXPECT_EQ(t_.TierOf("mine"), "cxl");
  EXPECT_EQ(t_.Get("mine", 9).version, 1u);
  EXPECT_EQ(t_.Hold("mine")->extent().region->kind(), Region::Kind::kShared);
}

TEST_F(CxlTierTest, APartitionThatHasMoreThanItsShareGives) {
  t_.tenant_options.partitions = PartitionsOf("small prefix=small: dram=0.1");
  t_.Open();
  for (uint64_t key = 0; key < 250; ++key)
    t_.Set("small:" + std::to_string(key), key, 1, kLength, Tier::kCxl);
  for (uint64_t key = 0; key < 250; ++key)
    t_.Set("other:" + std::to_string(key), key, 1, kLength, Tier::kCxl);
  Rest();
  const auto& keyspace = t_.tenant->keyspace();
  const Partitions::Counts small = CountsOf(keyspace, "small");
  const Partitions::Counts other = CountsOf(keyspace, std::string(kDefaultPartition));
  EXPECT_LT(small.cxl_bytes, 12 * kMiB);
  EXPECT_GT(other.cxl_bytes, 45 * kMiB);
  ExpectExactCounts(t_.tenant->keyspace(), UnixNowMs());
}

TEST_F(CxlTierTest, FlushingFreesIt) {
  t_.Open();
  SetAll(0, 300);
  t_.tenant->keyspace().Clear();
  Rest();
  EXPECT_EQ(cxl_bytes(), 0u);
  EXPECT_EQ(t_.tenant->budget().extent_bytes(), 0u);
  SetAll(0, 300);
  EXPECT_EQ(Places(300).count(""), 0u);
}

TEST_F(CxlTierTest, ANodeThatIsNotThereIsAnErrorAtTheStart) {
  t_.tenant_options.cxl.numa_node = 1000;
  const auto tenant = Tenant::Create(t_.tenant_options);
  ASSERT_FALSE(tenant);
  EXPECT_NE(tenant.error().message.find("NUMA node 1000"), std::string::npos);
}

// Invariant 8 within memory: a value that is overwritten or deleted while it moves stays so.
TEST_F(CxlTierTest, WhatChangesWhileItMovesStaysChanged) {
  Random random;
  SCOPED_TRACE(random.Replay());
  t_.tenant_options.quota_bytes = 8 * kMiB;
  t_.UseCxl(32 * kMiB);
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
                 what == 0 ? Tier::kCxl : Tier::kDram);
          versions[key] = next;
        } else if (what < 5) {
          t_.Erase(name);
          versions.erase(key);
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
  EXPECT_GT(stats().demotions, 20u);
  EXPECT_GT(stats().promotions, 0u);
  t_.Settle();
  // What was read last may be on its way up yet.
  EXPECT_TRUE(Eventually(
      [&] { return WrongCounts(t_.tenant->keyspace(), UnixNowMs()).empty(); }))
      << WrongCounts(t_.tenant->keyspace(), UnixNowMs());
}

}  // namespace
}  // namespace moonpool::storage
