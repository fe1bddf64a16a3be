// Partitions over both tiers: what may go down, what comes up to stay, what gives on the SSD, and
// that all of it is counted.
#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <string>

#include "tests/storage/partition_counts.h"
#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using Where = TieredTenant::Where;
using LoadError = SsdTier::LoadError;

class SsdPartitionsTest : public testing::Test {
 protected:
  void Partition(std::string_view text) {
    t.tenant_options.partitions = PartitionsOf(text);
    if (t.tenant != nullptr) t.tenant->keyspace().SetPartitions(t.tenant_options.partitions);
  }
  Partitions::Counts Counts(std::string_view name) { return CountsOf(t.tenant->keyspace(), name); }
  void ExpectExact() {
    t.Settle();
    ExpectExactCounts(t.tenant->keyspace(), UnixNowMs());
  }
  void PutDown(const std::string& prefix, uint64_t first, uint64_t count) {
    for (uint64_t i = first; i < first + count; ++i) {
      t.Set(prefix + Numbered(i), i, 1);
      t.MoveDown(prefix + Numbered(i));
    }
  }

  TieredTenant t;
};

TEST_F(SsdPartitionsTest, EveryMoveIsCounted) {
  Partition("a prefix=a:; b prefix=b:");
  t.Open();
  PutDown("a:", 0, 3);
  PutDown("b:", 0, 2);
  t.Set("a:memory", 9, 1);
  EXPECT_EQ(Counts("a").ssd_keys, 3u);
  EXPECT_EQ(Counts("a").ssd_bytes, 3 * kLength);
  EXPECT_EQ(Counts("a").dram_keys, 1u);
  EXPECT_EQ(Counts("a").demotions, 3u);
  EXPECT_EQ(Counts("b").ssd_keys, 2u);
  ExpectExact();
  // Up: it counts in both tiers.
  EXPECT_EQ(t.Get("a:key:0", 0).version, 1u);
  EXPECT_EQ(Counts("a").ssd_keys, 3u);
  EXPECT_EQ(Counts("a").dram_keys, 2u);
  ExpectExact();
  // Its name takes it to another partition: alone on the SSD, and in memory as well.
  ASSERT_TRUE(t.Rename("a:key:1", "b:renamed"));
  EXPECT_EQ(Counts("a").ssd_keys, 2u);
  EXPECT_EQ(Counts("b").ssd_keys, 3u);
  ASSERT_TRUE(t.Rename("a:key:0", "other"));
  ExpectExact();
  // Changes of what is there, and of who it belongs to.
  ASSERT_TRUE(t.Erase("b:renamed"));
  ASSERT_TRUE(t.Expire("b:key:0", 1));
  EXPECT_EQ(t.WhereIs("b:key:0"), Where::kNowhere);
  ExpectExact();
  Partition("all prefix=b:; a prefix=a:key:2");
  EXPECT_EQ(Counts("all").ssd_keys, 1u);
  EXPECT_EQ(Counts("a").ssd_keys, 1u);
  ExpectExact();
  // A restart finds them where they belong by then.
  Partition("a prefix=a:; b prefix=b:");
  for (const bool clean : {true, false}) {
    clean ? t.StopAndOpen() : t.CrashAndOpen();
    EXPECT_EQ(Counts("b").ssd_keys, 1u);
    EXPECT_GE(Counts("a").ssd_keys, 1u);
    ExpectExact();
  }
  t.tenant->keyspace().Clear();
  ExpectExact();
  EXPECT_EQ(Counts("a").ssd_bytes + Counts("b").ssd_bytes + Counts("default").ssd_bytes, 0u);
  EXPECT_EQ(t.stats().bytes, 0u);
}

TEST_F(SsdPartitionsTest, WhatCameUpMovesWithItsPlace) {
  t.Open();
  PutDown("a:", 0, 2);
  EXPECT_EQ(t.Get("a:key:0", 0).version, 1u);
  EXPECT_EQ(t.WhereIs("a:key:0"), Where::kClean);
  Partition("a prefix=a:");
  ExpectExact();
  EXPECT_EQ(Counts("a").dram_keys, 1u);
  EXPECT_EQ(Counts("a").ssd_keys, 2u);
  // One on its way up while its partition changes.
  t.disk->payload.reads_held = true;
  SsdPlace place;
  {
    KeyLock lock(t.tenant->keyspace(), "a:key:1", UnixNowMs());
    place = lock.key.Find()->place();
  }
  std::promise<LoadError> loaded;
  t.tier().Load(HashKey("a:key:1"), place, SsdTier::Why::kWanted,
                [&](const SsdTier::Loaded& found) { loaded.set_value(found.error); });
  Partition("new prefix=a:");
  t.disk->payload.reads_held = false;
  EXPECT_EQ(loaded.get_future().get(), LoadError::kNone);
  ExpectExact();
  EXPECT_EQ(Counts("new").dram_keys, 2u);
  // And one on its way down.
  t.Set("a:down", 7, 1);
  t.disk->payload.writes_held = true;
  ASSERT_EQ(t.BeginDemotion("a:down"), SsdTier::Taken::kYes);
  Partition("newer prefix=a:d; new prefix=a:");
  t.disk->payload.writes_held = false;
  ExpectExact();
  EXPECT_EQ(Counts("newer").ssd_keys, 1u);
}

TEST_F(SsdPartitionsTest, AdmissionSaysWhatAReadBringsUp) {
  Partition("always prefix=always: admission=always; never prefix=never: admission=never");
  t.Open();
  for (const char* kind : {"always:", "never:", "other:"}) PutDown(kind, 0, 1);
  const auto read = [&](const std::string& name) {
    const SsdTierStats before = t.stats();
    EXPECT_EQ(t.Get(name, 0).version, 1u);
    t.Evict(name);
    EXPECT_EQ(t.WhereIs(name), Where::kSsd);
    const SsdTierStats after = t.stats();
    EXPECT_EQ(after.promotions + after.cold_loads, before.promotions + before.cold_loads + 1);
    return after.promotions > before.promotions;
  };
  EXPECT_TRUE(read("always:key:0"));
  EXPECT_TRUE(read("always:key:0"));
  EXPECT_FALSE(read("never:key:0"));
  EXPECT_FALSE(read("never:key:0"));
  EXPECT_FALSE(read("never:key:0"));
  EXPECT_FALSE(read("other:key:0"));
  EXPECT_TRUE(read("other:key:0"));
  Partition("never prefix=other: admission=never");
  EXPECT_FALSE(read("other:key:0"));
  EXPECT_TRUE(read("never:key:0"));  // it has been read before
}

TEST_F(SsdPartitionsTest, WhatIsKeptOffTheSsdIsDroppedInstead) {
  Partition("off prefix=off: ssd=no");
  t.tenant_options.quota_bytes = 16 * kMiB;
  t.Open();
  for (uint64_t i = 0; i < 150; ++i) {
    t.Set("off:" + Numbered(i), i, 1);
    t.Set("on:" + Numbered(i), i, 1);
  }
  t.Settle();
  uint64_t off = 0;
  for (uint64_t i = 0; i < 150; ++i) {
    EXPECT_NE(t.WhereIs("on:" + Numbered(i)), Where::kNowhere) << i;
    const Where where = t.WhereIs("off:" + Numbered(i));
    EXPECT_TRUE(where == Where::kNowhere || where == Where::kMemory) << i;
    off += where == Where::kMemory;
  }
  EXPECT_LT(off, 100u);
  EXPECT_EQ(Counts("off").ssd_keys, 0u);
  EXPECT_EQ(Counts("off").drops, 150 - off);
  EXPECT_GT(Counts("default").demotions, 0u);
  EXPECT_EQ(t.tenant->keyspace().stats().memory_only, 150 - off);
  t.SetSmall("off:small", 1, 1);
  t.SetSmall("on:small", 1, 1);
  t.StopAndOpen();
  EXPECT_EQ(t.WhereIs("off:small"), Where::kNowhere);
  EXPECT_NE(t.WhereIs("on:small"), Where::kNowhere);
}

TEST_F(SsdPartitionsTest, OnTheSsdWhoIsFurthestAboveItsShareGives) {
  Partition("small prefix=small: ssd=0.1; large prefix=large: ssd=0.6");
  t.options.capacity_bytes = 30 * kMiB;
  t.options.high_watermark = 0.9;
  t.options.evict_ratio = 0.1;
  t.Open();
  // 12, 8 and 9 MB: 40, 27 and 30 percent of what there is.
  PutDown("small:", 0, 60);
  PutDown("large:", 0, 40);
  PutDown("other:", 0, 45);
  while (t.tenant->Maintain(UnixNowMs())) {
  }
  ExpectExact();
  EXPECT_LT(Counts("small").ssd_keys, 60u);
  EXPECT_EQ(Counts("small").drops, 60 - Counts("small").ssd_keys);
  EXPECT_EQ(Counts("large").ssd_keys, 40u);
  EXPECT_EQ(Counts("default").ssd_keys, 45u);
  // With the shares exchanged it is the other's turn.
  t.tier().SetCapacity(26 * kMiB);
  Partition("small prefix=small: ssd=0.6; large prefix=large: ssd=0.1");
  const uint64_t small = Counts("small").ssd_keys;
  while (t.tenant->Maintain(UnixNowMs())) {
  }
  ExpectExact();
  EXPECT_EQ(Counts("small").ssd_keys, small);
  EXPECT_LT(Counts("large").ssd_keys, 40u);
}

TEST_F(SsdPartitionsTest, MemoryOnItsWayDownIsNoReasonForAnotherVictim) {
  Partition("a prefix=a: dram=0.25");
  t.tenant_options.quota_bytes = 32 * kMiB;
  t.Open();
  for (uint64_t i = 0; i < 60; ++i) t.Set("a:" + Numbered(i), i, 1);
  for (uint64_t i = 0; i < 60; ++i) t.Set("other:" + Numbered(i), i, 1);
  // All of a is on its way: the rest is furthest above its share, though a has as much yet.
  t.disk->payload.writes_held = true;
  for (uint64_t i = 0; i < 60; ++i) t.BeginDemotion("a:" + Numbered(i));
  Partitions::Order order;
  const size_t count = t.tenant->keyspace().partitions().VictimOrder(&order);
  EXPECT_EQ(count, 2u);
  EXPECT_EQ(order[0], 0);
  t.disk->payload.writes_held = false;
  t.Settle();
  ExpectExact();
}

TEST_F(SsdPartitionsTest, EachIsCompressedAsItSays) {
  t.options.store.compression = SsdCompression::kLz4;
  Partition("raw prefix=raw: compression=none; packed prefix=packed: compression=zstd");
  t.Open();
  uint64_t growth = 0;
  const auto grown = [&](const std::string& prefix) {
    t.StopAndOpen();
    const uint64_t before = t.stats().store.disk_bytes;
    for (uint64_t i = 0; i < 20; ++i) {
      const std::string name = prefix + Numbered(i);
      auto handle = t.tenant->Reserve(kLength, UnixNowMs());
      ASSERT_TRUE(handle) << handle.error().message;
      std::memset(handle->data(), 'x', kLength);
      ValueRef value = std::move(*handle).Publish();
      {
        KeyLock lock(t.tenant->keyspace(), name, UnixNowMs());
        lock.key.SetBulk(std::move(value));
      }
      t.MoveDown(name);
    }
    t.StopAndOpen();
    growth = t.stats().store.disk_bytes - before;
  };
  grown("raw:");
  EXPECT_GT(growth, 20 * kLength);
  grown("packed:");
  EXPECT_LT(growth, 20 * kLength / 5);
  grown("other:");
  EXPECT_LT(growth, 20 * kLength / 5);
}

}  // namespace
}  // namespace moonpool::storage
