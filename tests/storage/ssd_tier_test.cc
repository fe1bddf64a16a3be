// Values that go down and come up, what the SSD keeps, and what a clean stop leaves.
#include "storage/ssd_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <string>
#include <vector>

#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using Where = TieredTenant::Where;
using LoadError = SsdTier::LoadError;

TEST(SsdTierTest, ValuesComeBackByteForByte) {
  TieredTenant t;
  t.Open();
  const std::vector<uint64_t> lengths = {24, 4096, 65528, 65536, 65544, 200'000, 3 * kMiB};
  for (uint64_t key = 0; key < lengths.size(); ++key) t.Set(Numbered(key), key, 1, lengths[key]);
  for (int round = 0; round < 3; ++round) {
    for (uint64_t key = 0; key < lengths.size(); ++key) t.MoveDown(Numbered(key));
    EXPECT_EQ(t.tenant->keyspace().OnSsdSize(), lengths.size());
    for (uint64_t key = 0; key < lengths.size(); ++key) {
      EXPECT_EQ(t.Get(Numbered(key), key).version, 1u);
      EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kClean);
    }
  }
  t.Settle();
  const SsdTierStats stats = t.stats();
  EXPECT_EQ(stats.demotions, lengths.size());  // what came up goes down again for nothing
  EXPECT_EQ(stats.hits, 3 * lengths.size());
  EXPECT_EQ(stats.cold_loads, lengths.size());
  EXPECT_EQ(stats.promotions, 2 * lengths.size());
  EXPECT_EQ(stats.versions, lengths.size());
  EXPECT_EQ(stats.keys, 0u);
  EXPECT_EQ(stats.loaded_bytes, 3 * stats.bytes);
  EXPECT_EQ(stats.lost + stats.read_errors + stats.write_errors + stats.abandoned, 0u);
}

TEST(SsdTierTest, MoreThanMemoryHoldsComesBack) {
  TieredTenant t;
  t.tenant_options.quota_bytes = 16 * kMiB;
  t.Open();
  for (uint64_t key = 0; key < 300; ++key) t.Set(Numbered(key), key, key + 1);
  t.SetSmall("small", 7, 1);
  for (int round = 0; round < 2; ++round) {
    for (uint64_t key = 0; key < 300; ++key) {
      ASSERT_EQ(t.Get(Numbered(key), key).version, key + 1);
      t.tenant->Maintain(UnixNowMs());
    }
  }
  // Nor is it paid for by those that have nowhere to go.
  EXPECT_EQ(t.Get("small", 7).version, 1u);
  EXPECT_EQ(t.tenant->keyspace().Size(), 301u);
}

TEST(SsdTierTest, OneReadServesAllWhoAsk) {
  TieredTenant t;
  t.Open();
  t.Set("k", 1, 1, 65'536 - 512);  // one chunk
  t.Set("other", 2, 1, 65'536 - 512);
  t.MoveDown("k");
  t.MoveDown("other");
  t.StopAndOpen();    // which flushes
  t.Get("other", 2);  // opens the file
  SsdPlace place;
  {
    KeyLock lock(t.tenant->keyspace(), "k", UnixNowMs());
    place = lock.key.Find()->place();
  }
  t.disk->payload.reads_held = true;
  const uint64_t before = t.disk->payload.blob_reads;
  std::atomic<int> came{0};
  const auto count = [&](const SsdTier::Loaded& loaded) {
    if (CheckStamped(loaded.value->data(), loaded.value->length(), 1).empty()) came.fetch_add(1);
  };
  for (int i = 0; i < 20; ++i) t.tier().Load(HashKey("k"), place, SsdTier::Why::kWanted, count);
  EXPECT_TRUE(Eventually([&] { return t.disk->payload.waiting > 0; }));
  for (int i = 0; i < 20; ++i) t.tier().Load(HashKey("k"), place, SsdTier::Why::kWanted, count);
  EXPECT_EQ(t.stats().loads_queued, 1u);
  t.disk->payload.reads_held = false;
  EXPECT_TRUE(Eventually([&] { return came == 40; }));
  t.Settle();
  EXPECT_EQ(t.disk->payload.blob_reads, before + 1);
  EXPECT_EQ(t.stats().loaded_bytes, 2 * (65'536u - 512));
  EXPECT_EQ(t.stats().hits, 41u);
}

TEST(SsdTierTest, TheDiskPutsChunksStraightIntoTheExtent) {
  TieredTenant t;
  t.Open();
  const uint64_t chunk = t.options.store.chunk_bytes;
  t.Set("k", 1, 1, 5 * chunk + 512);
  t.Set("whole", 2, 1, 4 * chunk);
  t.MoveDown("k");
  t.MoveDown("whole");
  t.StopAndOpen();  // which flushes
  EXPECT_EQ(t.Get("k", 1).version, 1u);
  EXPECT_EQ(t.Get("whole", 2).version, 1u);
  EXPECT_EQ(t.stats().store.chunks_in_place, 10u);
}

TEST(SsdTierTest, WhoWaitsComesFirstAndInOrder) {
  TieredTenant t;
  t.options.readers = 1;
  t.Open();
  const std::string names = "abcde";
  std::vector<SsdPlace> places;
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string name = names.substr(i, 1);
    t.Set(name, i, 1);
    t.MoveDown(name);
    KeyLock lock(t.tenant->keyspace(), name, UnixNowMs());
    places.push_back(lock.key.Find()->place());
  }
  t.StopAndOpen();  // which flushes
  Mutex mu;
  std::string order;
  const auto load = [&](char name, SsdTier::Why why) {
    const size_t i = names.find(name);
    t.tier().Load(HashKey(names.substr(i, 1)), places[i], why, [&, name](const SsdTier::Loaded&) {
      MutexLock lock(mu);
      order += name;
    });
  };
  t.disk->payload.reads_held = true;
  load('a', SsdTier::Why::kWanted);
  EXPECT_TRUE(Eventually([&] { return t.disk->payload.waiting > 0; }));
  load('b', SsdTier::Why::kAhead);
  load('c', SsdTier::Why::kAhead);
  load('d', SsdTier::Why::kWanted);
  load('e', SsdTier::Why::kWanted);
  load('c', SsdTier::Why::kWanted);  // after all
  t.disk->payload.reads_held = false;
  // Who asked is called after the load has left the queue.
  EXPECT_TRUE(Eventually([&] {
    MutexLock lock(mu);
    return order.size() == 6;
  }));
  MutexLock lock(mu);
  EXPECT_EQ(order, "adeccb");
}

// By readers and writers: it comes back without anything being evicted.
TEST(SsdTierTest, MemoryThatIsHeldIsWaitedFor) {
  TieredTenant t;
  t.tenant_options.quota_bytes = 16 * kMiB;
  t.Open();
  t.Set("k", 1, 1);
  t.MoveDown("k");
  t.Settle();
  std::vector<WriteHandle> held;
  while (auto handle = t.tenant->Reserve(kLength, UnixNowMs())) held.push_back(std::move(*handle));
  ASSERT_GT(held.size(), 10u);
  auto found = std::async(std::launch::async, [&] { return t.Get("k", 1); });
  EXPECT_TRUE(Eventually([&] {
    return t.tenant->memory_queue().size() > 0 ||
           found.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }));
  held.clear();
  EXPECT_EQ(found.get().version, 1u);
}

TEST(SsdTierTest, ChunksAreReadSideBySide) {
  TieredTenant t;
  t.Open();
  t.Set("k", 1, 1, 4 * 65'536);
  t.Set("other", 2, 1);
  t.MoveDown("k");
  t.MoveDown("other");
  t.StopAndOpen();
  t.Get("other", 2);  // opens the file
  t.disk->payload.reads_held = true;
  std::thread reader([&] { EXPECT_EQ(t.Get("k", 1).version, 1u); });
  EXPECT_TRUE(Eventually([&] { return t.disk->payload.waiting == 4; }));
  t.disk->payload.reads_held = false;
  reader.join();
}

TEST(SsdTierTest, ExpiryFreesTheSsdWithoutReading) {
  TieredTenant t;
  t.Open();
  for (uint64_t key = 0; key < 20; ++key) {
    t.Set(Numbered(key), key, 1);
    if (key < 10) {
      ASSERT_TRUE(t.Expire(Numbered(key), UnixNowMs() + 100'000));
    }
    t.MoveDown(Numbered(key));
  }
  t.StopAndOpen();
  const uint64_t reads = t.disk->payload.blob_reads;
  EXPECT_EQ(t.stats().bytes, 20 * kLength);
  t.tenant->keyspace().ExpireSome(1 << 20, UnixNowMs() + 200'000);
  EXPECT_EQ(t.stats().bytes, 10 * kLength);
  EXPECT_EQ(t.tenant->keyspace().Size(), 10u);
  EXPECT_EQ(t.disk->payload.blob_reads, reads);
  // Also while nobody runs.
  for (uint64_t key = 10; key < 15; ++key) {
    ASSERT_TRUE(t.Expire(Numbered(key), UnixNowMs() + 1000'000));
  }
  t.Stop();
  t.tenant = std::move(*Tenant::Create(t.tenant_options));
  ASSERT_TRUE(t.tenant->OpenSsd(t.options, UnixNowMs() + 2000'000));
  EXPECT_EQ(t.tier().recovery().expired, 5u);
  EXPECT_EQ(t.stats().bytes, 5 * kLength);
}

TEST(SsdTierTest, AFullSsdDropsValuesNotNewOnes) {
  TieredTenant t;
  t.options.capacity_bytes = 20 * kLength;
  t.options.high_watermark = 0.8;
  t.options.evict_ratio = 0.2;
  t.Open();
  for (uint64_t key = 0; key < 60; ++key) {
    t.Set(Numbered(key), key, 1);
    t.MoveDown(Numbered(key));
    while (t.tier().Maintain(UnixNowMs())) {
    }
    EXPECT_LE(t.stats().bytes, 16 * kLength);
  }
  const SsdTierStats stats = t.stats();
  EXPECT_EQ(stats.drops_full, 60 - stats.keys);
  EXPECT_GE(stats.keys, 12u);
  EXPECT_EQ(stats.drops_refused, 0u);
  t.tier().SetCapacity(kLength);
  while (t.tier().Maintain(UnixNowMs())) {
  }
  EXPECT_EQ(t.stats().keys, 0u);
  t.Set("late", 99, 1);
  EXPECT_EQ(t.BeginDemotion("late"), SsdTier::Taken::kYes);
  t.Set("later", 98, 1);
  EXPECT_EQ(t.BeginDemotion("later"), SsdTier::Taken::kRefused);
  EXPECT_EQ(t.stats().drops_refused, 1u);
}

TEST(SsdTierTest, WriteThroughMakesEvictionFree) {
  TieredTenant t;
  t.options.write_through = true;
  t.Open();
  for (uint64_t key = 0; key < 30; ++key) t.Set(Numbered(key), key, 1);
  t.Settle();
  for (uint64_t key = 0; key < 30; ++key) EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kClean);
  t.Set(Numbered(3), 3, 2);
  t.Settle();
  EXPECT_EQ(t.stats().demotions, 31u);
  EXPECT_EQ(t.stats().versions, 30u);
  for (uint64_t key = 0; key < 30; ++key) {
    t.Evict(Numbered(key));
    EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kSsd);
    EXPECT_EQ(t.Get(Numbered(key), key).version, key == 3 ? 2u : 1u);
  }
}

TEST(SsdTierTest, AValueIsOnTheSsdOnce) {
  // Else one of the two places would outlive the key.
  for (const bool keep : {true, false}) {
    TieredTenant t;
    t.Open();
    t.Set("k", 1, 1);
    ASSERT_EQ(t.BeginDemotion("k", true), SsdTier::Taken::kYes);
    t.Settle();
    ASSERT_EQ(t.BeginDemotion("k", keep), SsdTier::Taken::kYes);
    t.Settle();
    EXPECT_EQ(t.WhereIs("k"), keep ? Where::kClean : Where::kSsd);
    EXPECT_EQ(t.stats().versions, 1u);
    EXPECT_EQ(t.Get("k", 1).version, 1u);
    t.StopAndOpen();
    EXPECT_EQ(t.tenant->keyspace().Size(), 1u);
    ASSERT_TRUE(t.Erase("k"));
    EXPECT_EQ(t.WhereIs("k"), Where::kNowhere);
    t.CrashAndOpen();
    EXPECT_EQ(t.WhereIs("k"), Where::kNowhere);
  }
}

TEST(SsdTierTest, TheQueueIsBounded) {
  TieredTenant t;
  t.options.queue_bytes = 1 * kMiB;
  t.Open();
  t.disk->payload.writes_held = true;
  t.Set("large", 1, 1, 4 * kMiB - 4096);  // more than RocksDB's buffers take while writes are held
  EXPECT_EQ(t.BeginDemotion("large"), SsdTier::Taken::kYes);  // one fits, however large
  EXPECT_EQ(t.BeginDemotion("large"), SsdTier::Taken::kFull);
  t.Set("k", 2, 1);
  EXPECT_EQ(t.BeginDemotion("k"), SsdTier::Taken::kFull);
  t.disk->payload.writes_held = false;
  t.Settle();
  EXPECT_EQ(t.BeginDemotion("k"), SsdTier::Taken::kYes);
  t.Settle();
  EXPECT_EQ(t.stats().queued_bytes, 0u);
  EXPECT_EQ(t.Get("large", 1).version, 1u);
  EXPECT_EQ(t.Get("k", 2).version, 1u);
}

TEST(SsdTierTest, AValueThatDrainsWhileItGoesDownIsStillEvictable) {
  TieredTenant t;
  t.Open();
  t.disk->payload.writes_held = true;
  t.Set("large", 1, 1, 4 * kMiB - 4096);  // more than the write buffers take
  t.Set("k", 2, 1);
  ASSERT_EQ(t.BeginDemotion("large"), SsdTier::Taken::kYes);
  const ValueRef old = t.Hold("k");
  t.tenant->keyspace().EvictBulk(*old, UnixNowMs(), true, Keyspace::Next::kSsd);
  ASSERT_EQ(t.BeginDemotion("k"), SsdTier::Taken::kYes);
  auto target = t.tenant->Reserve(kLength, UnixNowMs());
  ASSERT_TRUE(target);
  FillStamped(target->data(), kLength, {2, 1});
  ASSERT_TRUE(t.tenant->keyspace().MoveBulk(*old, std::move(*target).Publish()));
  t.disk->payload.writes_held = false;
  t.Settle();
  EXPECT_EQ(t.WhereIs("k"), Where::kMemory);
  t.tenant->SetWatermarks(0.001, 0);
  EXPECT_TRUE(Eventually([&] {
    t.tenant->Maintain(UnixNowMs());
    return t.WhereIs("k") == Where::kSsd;
  }));
  EXPECT_EQ(t.Get("k", 2).version, 1u);
}

// --- small values --------------------------------------------------------------------------------

// As much as memory of 64 MiB holds twice.
constexpr uint64_t kSmallKeys = 16'000;

// Returns when the disk has taken what was above the watermark: a disk too slow costs values.
void AwaitDisk(TieredTenant& t) {
  const MemoryBudget& budget = t.tenant->budget();
  EXPECT_TRUE(Eventually([&] {
    t.KeepUp();
    return budget.used_bytes() < budget.limit() / 100 * 97;
  }));
}

void SetWithTime(TieredTenant& t, uint64_t key, uint64_t version, uint64_t length) {
  AwaitDisk(t);
  t.SetSmall(Numbered(key), key, version, length);
}

TEST(SsdTierSmallTest, SmallValuesGoDownAsLargeOnesDo) {
  TieredTenant t;
  t.Open();
  for (uint64_t key = 0; key < kSmallKeys; ++key) SetWithTime(t, key, key + 1, 8192);
  t.Settle();
  EXPECT_EQ(t.tenant->keyspace().Size(), kSmallKeys);
  EXPECT_GT(t.stats().demotions, kSmallKeys / 3);
  for (uint64_t key = 0; key < kSmallKeys; key += 7) {
    AwaitDisk(t);  // what comes up pushes other values out
    ASSERT_EQ(t.Get(Numbered(key), key).version, key + 1) << key;
  }
  EXPECT_GT(t.stats().hits, kSmallKeys / 40);
  // With their expiry, and no more after they were deleted.
  for (uint64_t key = 0; key < kSmallKeys; key += 100) {
    ASSERT_TRUE(key % 200 == 0 ? t.Erase(Numbered(key)) : t.Expire(Numbered(key), 1));
  }
  t.CrashAndOpen();
  for (uint64_t key = 0; key < kSmallKeys; key += 100) {
    EXPECT_EQ(t.Get(Numbered(key), key).version, std::nullopt);
  }
}

TEST(SsdTierSmallTest, TheSmallestAndThoseThatMayNotAreDropped) {
  TieredTenant t;
  t.options.least_value_bytes = 4096;
  t.Open();
  t.tenant->keyspace().SetMemoryOnly({"key:*7"});
  for (uint64_t key = 0; key < kSmallKeys; ++key) {
    SetWithTime(t, key, 1, key % 2 == 0 ? 4088 : 8192);
  }
  t.Settle();
  uint64_t below = 0, excluded = 0;
  for (uint64_t key = 0; key < kSmallKeys; ++key) {
    const auto where = t.WhereIs(Numbered(key));
    if (key % 2 == 0 || key % 10 == 7) {
      EXPECT_NE(where, TieredTenant::Where::kSsd) << key;
      (key % 2 == 0 ? below : excluded) += where == TieredTenant::Where::kNowhere;
    } else {
      EXPECT_NE(where, TieredTenant::Where::kNowhere) << key;
    }
  }
  EXPECT_GT(below, 0u);
  EXPECT_GT(excluded, 0u);
}

TEST(SsdTierSmallTest, ADiskTooSlowCostsValuesNotMemory) {
  TieredTenant t;
  t.options.queue_bytes = 1 * kMiB;
  t.Open();
  t.disk->payload.writes_held = true;
  const MemoryBudget& budget = t.tenant->budget();
  uint64_t most = 0;
  for (uint64_t key = 0; key < kSmallKeys; ++key) {
    t.SetSmall(Numbered(key), key, 1, 8192);
    t.KeepUp();
    EXPECT_TRUE(t.tenant->MakeRoom(UnixNowMs()));
    const uint64_t used = budget.used_bytes();
    most = std::max(most, used - std::min(used, t.stats().queued_bytes));
  }
  EXPECT_LT(t.tenant->keyspace().Size(), kSmallKeys);
  t.disk->payload.writes_held = false;
  EXPECT_LE(most, budget.limit());
  t.Settle();
}

TEST(SsdTierSmallTest, AnotherValueIsNotTakenForTheVictim) {
  TieredTenant t;
  t.Open();
  t.SetSmall("k", 1, 1, 8192);
  Keyspace& keyspace = t.tenant->keyspace();
  Keyspace::Movable victim;
  EXPECT_EQ(keyspace.EvictInline(UnixNowMs(), false, &victim), 0u);
  ASSERT_EQ(victim.key, "k");
  ASSERT_EQ(victim.length, 8192u);
  t.SetSmall("k", 1, 2, 16'384);
  auto target = t.tenant->Reserve(victim.length, UnixNowMs());
  ASSERT_TRUE(target);
  EXPECT_FALSE(keyspace.MoveToPool("k", std::move(*target), UnixNowMs()));
  EXPECT_EQ(t.Get("k", 1).version, 2u);
  target = t.tenant->Reserve(16'384, UnixNowMs());
  ASSERT_TRUE(target);
  EXPECT_TRUE(keyspace.MoveToPool("k", std::move(*target), UnixNowMs()));
  EXPECT_EQ(t.WhereIs("k"), TieredTenant::Where::kMemory);
  EXPECT_EQ(t.Get("k", 1).version, 2u);
}

// --- a clean stop --------------------------------------------------------------------------------

TEST(SsdTierSaveTest, EverythingIsServedAgain) {
  TieredTenant t;
  t.Open();
  const int64_t expiry_ms = UnixNowMs() + 1'000'000;
  for (uint64_t key = 0; key < 60; ++key) {
    key % 3 == 0 ? t.SetSmall(Numbered(key), key, key + 1) : t.Set(Numbered(key), key, key + 1);
    if (key % 2 == 0) {
      ASSERT_TRUE(t.Expire(Numbered(key), expiry_ms));
    }
    if (key % 3 == 1) t.MoveDown(Numbered(key));
    if (key % 6 == 1) {
      EXPECT_TRUE(t.Get(Numbered(key), key).version);
    }
  }
  t.SetSmall("gone", 1, 1);
  ASSERT_TRUE(t.Expire("gone", UnixNowMs() - 1));
  for (int round = 0; round < 3; ++round) {
    t.StopAndOpen();
    EXPECT_TRUE(t.tier().recovery().clean);
    EXPECT_EQ(t.tier().recovery().versions, 40u);
    EXPECT_EQ(t.tier().recovery().small_values, 20u);
    EXPECT_EQ(t.tenant->keyspace().Size(), 60u);
    for (uint64_t key = round == 1 ? 60 : 0; key < 60; ++key) {
      EXPECT_EQ(t.Get(Numbered(key), key).version, key + 1);
      EXPECT_EQ(t.ExpiryOf(Numbered(key)), key % 2 == 0 ? expiry_ms : 0);
    }
  }
  // Small values are forgotten by a crash, and large ones that were on the SSD are not.
  t.CrashAndOpen();
  EXPECT_FALSE(t.tier().recovery().clean);
  EXPECT_EQ(t.tenant->keyspace().Size(), 40u);
}

TEST(SsdTierSaveTest, WhatWasInMemoryComesUpWhileThereIsRoom) {
  TieredTenant t;
  t.Open();
  for (uint64_t key = 0; key < 20; ++key) t.Set(Numbered(key), key, 1);
  for (uint64_t key = 10; key < 20; ++key) t.MoveDown(Numbered(key));
  t.StopAndOpen();
  EXPECT_TRUE(Eventually([&] {
    t.tier().WarmUp([] { return true; });
    return t.stats().promotions == 10;
  }));
  t.Settle();
  uint64_t up = 0;
  for (uint64_t key = 0; key < 20; ++key) up += t.WhereIs(Numbered(key)) == Where::kClean;
  EXPECT_EQ(up, 10u);
  for (uint64_t key = 0; key < 10; ++key) EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kClean);
  EXPECT_EQ(t.stats().hits, 0u);  // nobody asked
  t.StopAndOpen();
  t.tier().WarmUp([] { return false; });
  t.Settle();
  EXPECT_EQ(t.stats().promotions, 0u);
}

TEST(SsdTierSaveTest, AStopInNoTimeIsStillHonest) {
  TieredTenant t;
  t.Open();
  for (uint64_t key = 0; key < 40; ++key) t.Set(Numbered(key), key, 1, kMiB);
  for (uint64_t key = 0; key < 40; key += 2) t.MoveDown(Numbered(key));
  for (uint64_t key = 0; key < 40; ++key) t.Set(Numbered(key), key, 2, kMiB);
  static_cast<void>(t.tier().Save(0, nullptr));
  t.tenant.reset();
  t.Open();
  for (uint64_t key = 0; key < 40; ++key) {
    EXPECT_EQ(t.Get(Numbered(key), key).version.value_or(2), 2u);
  }
}

}  // namespace
}  // namespace moonpool::storage
