// Partitions in memory: shares under pressure, policies, counts, and changes while commands go on.
#include "storage/partitions.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "storage/tenant.h"
#include "tests/protocol/random.h"
#include "tests/storage/partition_counts.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

constexpr uint64_t kValue = 128 << 10;
constexpr uint64_t kQuota = 32 * kMiB;

// A tenant without an SSD, full after 200 to 256 values.
class Pressed {
 public:
  explicit Pressed(std::string_view partitions,
                   MaxmemoryPolicy policy = MaxmemoryPolicy::kAllKeysLru) {
    TenantOptions options;
    options.quota_bytes = kQuota;
    options.policy = policy;
    options.partitions = PartitionsOf(partitions);
    options.region_bytes = 4 * kMiB;
    options.arena_bytes = 2 * kMiB;
    options.region.huge_pages = RegionOptions::HugePages::kNo;
    tenant = std::move(*Tenant::Create(options));
  }

  // False: out of memory.
  bool Set(const std::string& name, uint64_t length = kValue) {
    auto handle = tenant->Reserve(length, 1);
    if (!handle) return false;
    ValueRef value = std::move(*handle).Publish();
    KeyLock lock(keyspace(), name, 1);
    lock.key.SetBulk(std::move(value));
    return true;
  }
  // Keys `prefix`0, `prefix`1, ...; how many there was memory for.
  int Fill(const std::string& prefix, int count) {
    int stored = 0;
    for (int i = 0; i < count; ++i) stored += Set(prefix + std::to_string(i));
    return stored;
  }
  int Left(const std::string& prefix, int count) {
    int left = 0;
    for (int i = 0; i < count; ++i) left += Has(prefix + std::to_string(i));
    return left;
  }
  bool Has(const std::string& name) {
    KeyLock lock(keyspace(), name, 1);
    return lock.key.Find() != nullptr;
  }
  void Expire(const std::string& name, int64_t at_ms) {
    KeyLock lock(keyspace(), name, 1);
    ASSERT_NE(lock.key.Find(), nullptr);
    lock.key.SetExpiry(at_ms);
  }
  double ShareOf(std::string_view name) {
    return static_cast<double>(CountsOf(keyspace(), name).dram_bytes) /
           static_cast<double>(tenant->budget().extent_bytes());
  }
  Keyspace& keyspace() { return tenant->keyspace(); }

  std::unique_ptr<Tenant> tenant;
};

TEST(PartitionsTest, WhoIsFurthestAboveItsShareGives) {
  Pressed t("a prefix=a: dram=0.5; b prefix=b: dram=0.25");
  // Memory that is free is anybody's.
  t.Fill("b:", 400);
  EXPECT_GT(t.ShareOf("b"), 0.99);
  // b and the rest give to a until all are equally far above their shares.
  t.Fill("a:", 1000);
  EXPECT_NEAR(t.ShareOf("a"), 2. / 3, 0.05);
  EXPECT_NEAR(t.ShareOf("b"), 1. / 3, 0.05);
  t.Fill("other", 1000);
  t.Fill("a:again", 1000);
  t.Fill("b:again", 1000);
  EXPECT_NEAR(t.ShareOf("a"), 0.5, 0.05);
  EXPECT_NEAR(t.ShareOf("b"), 0.25, 0.05);
  EXPECT_NEAR(t.ShareOf("default"), 0.25, 0.05);
  // Whoever writes: what the others have of their shares stays.
  t.Fill("other", 3000);
  EXPECT_NEAR(t.ShareOf("default"), 0.25, 0.05);
  ExpectExactCounts(t.keyspace(), 1);
  EXPECT_GT(CountsOf(t.keyspace(), "a").evictions, 0u);
  EXPECT_EQ(CountsOf(t.keyspace(), "a").evictions, CountsOf(t.keyspace(), "a").drops);
}

TEST(PartitionsTest, WithoutASharePartitionsCountWithTheRest) {
  Pressed t("a prefix=a: dram=0.5; b prefix=b:; c prefix=c: policy=allkeys-lfu");
  t.Fill("a:", 200);
  // Three quarters of what is not a's are b's and c's: they give in proportion to what they have.
  for (int i = 0; i < 3000; ++i) {
    const char* kind[] = {"b:", "b:", "c:", "other"};
    ASSERT_TRUE(t.Set(kind[i % 4] + std::to_string(i)));
  }
  EXPECT_NEAR(t.ShareOf("a"), 0.5, 0.05);
  EXPECT_NEAR(t.ShareOf("b"), 0.25, 0.1);
  EXPECT_NEAR(t.ShareOf("c"), 0.125, 0.08);
}

TEST(PartitionsTest, WhereNothingIsLeftTheRestGivesFirst) {
  Pressed t("a prefix=a: dram=0.5; b prefix=b: dram=0.5");
  t.Fill("other", 400);
  EXPECT_GT(t.ShareOf("default"), 0.99);  // while nobody else wants it
  t.Fill("a:", 1000);
  EXPECT_EQ(t.Left("other", 400), 0);
  t.Fill("other", 50);
  EXPECT_GT(t.ShareOf("a"), 0.9);
}

TEST(PartitionsTest, WhoHasNothingToGiveIsPassedOver) {
  Pressed t("a prefix=a: dram=0.01; b prefix=b: dram=0.09");
  t.Fill("a:", 100);
  t.Fill("b:", 50);
  for (int i = 0; i < 100; ++i) {
    const std::string name = "a:" + std::to_string(i);
    KeyLock lock(t.keyspace(), name, 1);
    ASSERT_NE(lock.key.Find(), nullptr);
    lock.key.SetPin({.until_ms = 0, .hard = true});
  }
  EXPECT_EQ(t.Fill("other", 500), 500);
  EXPECT_EQ(t.Left("a:", 100), 100);
  // b was the next: it is down to its share of what is left.
  EXPECT_LT(t.Left("b:", 50), 50);
}

TEST(PartitionsTest, WhatIsReadGoesLastWhoeverHasIt) {
  Pressed t("a prefix=a: dram=0.01");
  t.Fill("a:", 60);
  std::vector<ValueRef> held;
  for (int i = 0; i < 60; ++i) {
    const std::string name = "a:" + std::to_string(i);
    KeyLock lock(t.keyspace(), name, 1);
    held.push_back(ValueRef::Share(lock.key.Find()->bulk()));
    held.push_back(held.back().Share());
  }
  EXPECT_EQ(t.Fill("other", 400), 400);
  EXPECT_EQ(t.Left("a:", 60), 60);
}

TEST(PartitionsTest, EachGoesByItsOwnPolicy) {
  Pressed t(
      "keep prefix=keep: policy=noeviction dram=0.1; ttl prefix=ttl: policy=volatile-ttl dram=0.1;"
      "lru prefix=lru: dram=0.1");
  t.Fill("keep:", 40);
  t.Fill("ttl:", 40);
  for (int i = 0; i < 20; ++i) t.Expire("ttl:" + std::to_string(i), 1000 + (i + 7) % 20);
  t.Fill("lru:", 40);
  EXPECT_EQ(t.Fill("other", 1000), 1000);
  EXPECT_EQ(t.Left("keep:", 40), 40);
  // Only those with an expiry went, the soonest first.
  const int with_expiry = t.Left("ttl:", 20);
  EXPECT_LT(with_expiry, 20);
  EXPECT_EQ(t.Left("ttl:", 40), 20 + with_expiry);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(t.Has("ttl:" + std::to_string(i)), (i + 7) % 20 >= 20 - with_expiry) << i;
  }
  // The oldest first.
  const int left = t.Left("lru:", 40);
  EXPECT_LT(left, 40);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(t.Has("lru:" + std::to_string(i)), i >= 40 - left);
}

TEST(PartitionsTest, AServerThatEvictsNothingEvictsWhereAPartitionSaysSo) {
  Pressed t("a prefix=a: policy=allkeys-lru", MaxmemoryPolicy::kNoEviction);
  t.Fill("other", 50);
  EXPECT_EQ(t.Fill("a:", 1000), 1000);
  EXPECT_EQ(t.Left("other", 50), 50);
  // Now and then there is nothing that may go.
  t.keyspace().SetPartitions({});
  EXPECT_LT(t.Fill("a:new", 1000), 300);
  EXPECT_EQ(t.Left("other", 50), 50);
}

TEST(PartitionsTest, TheServersPolicyIsFollowedByThoseThatSayNone) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  store.keyspace.SetPartitions(PartitionsOf("own prefix=own: policy=allkeys-lru; none prefix=none:"));
  const auto set = store.keyspace.partition_set();
  for (const char* name : {"own:1", "none:1", "other"}) store.SetBulk(name, "x");
  const auto victim_of = [&](const char* name) {
    return static_cast<bool>(store.bulk_policy.Victim(set->Match(name)));
  };
  EXPECT_TRUE(victim_of("own:1") && victim_of("none:1") && victim_of("other"));
  store.keyspace.SetPolicy(MaxmemoryPolicy::kVolatileLru);
  EXPECT_TRUE(victim_of("own:1"));
  EXPECT_FALSE(victim_of("none:1") || victim_of("other"));
  store.Expire("none:1", 1000);
  EXPECT_TRUE(victim_of("none:1"));
  store.SetBulk("none:2", "x");
  store.Expire("none:2", 500);
  store.keyspace.SetPolicy(MaxmemoryPolicy::kVolatileTtl);
  EXPECT_EQ(store.bulk_policy.Victim(set->Match("none:1"))->owner_hash(), HashKey("none:2"));
  store.keyspace.SetPolicy(MaxmemoryPolicy::kVolatileLru);
  EXPECT_EQ(store.keyspace.PartitionReports()[1].policy, MaxmemoryPolicy::kAllKeysLru);
  EXPECT_EQ(store.keyspace.PartitionReports()[2].policy, MaxmemoryPolicy::kVolatileLru);
}

TEST(PartitionsTest, SmallValuesGoByTheRuleOfTheirPartition) {
  Store store(MaxmemoryPolicy::kVolatileTtl);
  store.keyspace.SetPartitions(
      PartitionsOf("keep prefix=keep: policy=noeviction; free prefix=free: policy=allkeys-random"));
  for (int i = 0; i < 50; ++i) {
    const std::string number = std::to_string(i);
    for (const char* kind : {"keep:", "free:", "ttl:", "other:"}) store.Set(kind + number, "x");
    store.Expire("keep:" + std::to_string(i), 9000);
    store.Expire("ttl:" + std::to_string(i), 9000);
  }
  while (store.keyspace.EvictInline(1, true) > 0) {
  }
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(store.Has("keep:" + std::to_string(i)));
    EXPECT_FALSE(store.Has("free:" + std::to_string(i)));
    EXPECT_FALSE(store.Has("ttl:" + std::to_string(i)));
    EXPECT_TRUE(store.Has("other:" + std::to_string(i)));
  }
  // They are of no partition's share.
  EXPECT_EQ(CountsOf(store.keyspace, "keep").dram_keys, 0u);
}

TEST(PartitionsTest, WhatIsNeverLetInStaysCold) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  store.keyspace.SetPartitions(
      PartitionsOf("never prefix=never: admission=never; always prefix=always: admission=always"));
  const auto set = store.keyspace.partition_set();
  using Arrival = BulkValue::Arrival;
  // Two written ones, and between them one that came up from the SSD.
  const auto cold_after = [&](const std::string& prefix, Arrival arrival, int reads) {
    store.keyspace.Clear();
    for (const char* name : {"1", "2", "3"}) store.SetBulk(prefix + name, "x");
    ValueRef value;
    {
      const std::string name = prefix + "2";
      KeyLock lock(store.keyspace, name, 1);
      value = ValueRef::Share(lock.key.Find()->bulk());
    }
    store.bulk_policy.Unlink(value.get(), false);
    value->set_arrival(arrival);
    store.bulk_policy.Link(value.get(), 0, 0, true);
    BulkValue* const read[] = {value.get()};
    for (int i = 0; i < reads; ++i) store.keyspace.Touch(read);
    const ValueRef victim = store.bulk_policy.Victim(set->Match(prefix), BulkPolicy::Among::kCold);
    return victim.get() == value.get();
  };
  EXPECT_TRUE(cold_after("other:", Arrival::kCold, 1));
  EXPECT_FALSE(cold_after("other:", Arrival::kCold, 2));
  EXPECT_TRUE(cold_after("never:", Arrival::kCold, 5));
  EXPECT_TRUE(cold_after("never:", Arrival::kAhead, 5));
  EXPECT_TRUE(cold_after("always:", Arrival::kAhead, 0));
  EXPECT_FALSE(cold_after("always:", Arrival::kAhead, 1));
}

TEST(PartitionsTest, EachLearnsFromItsOwnKeys) {
  Store store(MaxmemoryPolicy::kAllKeysPrefix);
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a:; b prefix=b:"));
  const auto set = store.keyspace.partition_set();
  // Two chains in one command, their keys in turns.
  std::vector<std::string> names;
  for (int i = 0; i < 8; ++i) {
    names.push_back("a:" + std::to_string(i));
    names.push_back("b:" + std::to_string(i));
  }
  for (const std::string& name : names) store.SetBulk(name, "x");
  std::vector<uint64_t> hashes;
  std::vector<uint8_t> slots;
  for (const std::string& name : names) {
    hashes.push_back(HashKey(name));
    slots.push_back(set->Match(name));
  }
  EXPECT_TRUE(store.keyspace.NoteBatch(hashes, BatchKind::kWrite, slots));
  uint64_t next[2];
  ASSERT_EQ(store.bulk_policy.Successors(HashKey("a:0"), next, set->Match("a:")), 2u);
  EXPECT_EQ(next[0], HashKey("a:1"));
  EXPECT_EQ(next[1], HashKey("a:2"));
  ASSERT_EQ(store.bulk_policy.Successors(HashKey("b:6"), next, set->Match("b:")), 1u);
  EXPECT_EQ(next[0], HashKey("b:7"));
  EXPECT_EQ(store.bulk_policy.Successors(HashKey("a:0"), next, set->Match("b:")), 0u);
  EXPECT_EQ(store.bulk_policy.Successors(HashKey("a:0"), next), 0u);
  // What it learned outlives a change of anything but its policy.
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a: dram=0.5 admission=always"));
  EXPECT_EQ(store.bulk_policy.Successors(HashKey("a:0"), next, set->Match("a:")), 2u);
  EXPECT_TRUE(store.keyspace.wants_batches());
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a: policy=allkeys-lru"));
  EXPECT_EQ(store.bulk_policy.Successors(HashKey("a:0"), next, set->Match("a:")), 0u);
}

TEST(PartitionsTest, CountsFollowEveryChangeOfAKey) {
  Store store(MaxmemoryPolicy::kVolatileLru);  // nothing is linked, and counts all the same
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a:; b prefix=b:"));
  const std::string large(100'000, 'x');
  for (int i = 0; i < 10; ++i) store.SetBulk("a:" + std::to_string(i), large);
  EXPECT_EQ(CountsOf(store.keyspace, "a").dram_keys, 10u);
  ExpectExactCounts(store.keyspace, 1);
  store.SetBulk("a:0", "another");
  store.Set("a:1", "small");
  store.Expire("a:2", 5);
  EXPECT_FALSE(store.Has("a:2", 10));
  {  // RENAME and COPY
    const std::string_view names[] = {"a:3", "b:3", "other"};
    KeysLock lock(store.keyspace, names, 10);
    ASSERT_NE(lock[0].Find(), nullptr);
    lock[1].SetBulk(lock[0].TakeBulk());
    lock[2].SetBulk(store.pool->Alias(*lock[1].Find()->bulk()));
  }
  EXPECT_EQ(CountsOf(store.keyspace, "a").dram_keys, 7u);
  EXPECT_EQ(CountsOf(store.keyspace, "b").dram_keys, 1u);
  EXPECT_EQ(CountsOf(store.keyspace, "default").dram_keys, 1u);
  ExpectExactCounts(store.keyspace, 10);
  ASSERT_TRUE(store.keyspace.VoidPrefix("a:"));
  while (store.keyspace.SweepVoids(10)) {
  }
  EXPECT_EQ(CountsOf(store.keyspace, "a").dram_bytes, 0u);
  ExpectExactCounts(store.keyspace, 10);
  store.keyspace.Clear();
  ExpectExactCounts(store.keyspace, 10);
}

TEST(PartitionsTest, AChangeTakesTheValuesAlong) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  for (int i = 0; i < 30; ++i) {
    store.SetBulk("a:" + std::to_string(i), "x");
    store.SetBulk("a:x:" + std::to_string(i), "x");
  }
  const auto victims = [&](const std::string& like) {
    const auto set = store.keyspace.partition_set();
    const uint8_t slot = set == nullptr ? 0 : set->Match(like);
    int found = 0;
    std::vector<ValueRef> held;
    while (ValueRef victim = store.bulk_policy.Victim(slot)) {
      if (!held.empty() && held.front().get() == victim.get()) break;
      EXPECT_EQ(victim->partition(), slot);
      store.bulk_policy.Spare(victim);
      held.push_back(std::move(victim));
      ++found;
    }
    return found;
  };
  const struct {
    const char* partitions;
    int a, x, rest;
  } steps[] = {
      {"a prefix=a:", 60, 60, 0},
      {"a prefix=a: policy=allkeys-s3fifo; x prefix=a:x:", 30, 30, 0},
      {"y prefix=a:x:", 30, 30, 30},
      {"x prefix=a: dram=0.3; a prefix=a:x: policy=noeviction", 30, 30, 0},
      {"a prefix=b", 60, 60, 60},
      {"", 60, 60, 60},
      {"z prefix=a:x: policy=volatile-lru", 30, 0, 30},
      {"", 60, 60, 60},
  };
  for (const auto& step : steps) {
    SCOPED_TRACE(step.partitions);
    store.keyspace.SetPartitions(PartitionsOf(step.partitions));
    ExpectExactCounts(store.keyspace, 1);
    EXPECT_EQ(victims("a:1"), step.a);
    EXPECT_EQ(victims("a:x:1"), step.x);
    EXPECT_EQ(victims("none"), step.rest);
    for (int i = 0; i < 30; ++i) EXPECT_EQ(store.Get("a:" + std::to_string(i)), "x");
  }
}

TEST(PartitionsTest, WhatFlushallTookOutMayOutliveItsPartition) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a:"));
  for (int i = 0; i < 20; ++i) store.SetBulk("a:" + std::to_string(i), "x");
  auto cleared = store.keyspace.Clear();
  store.keyspace.SetPartitions(PartitionsOf("b prefix=a:"));
  store.keyspace.SetPartitions(PartitionsOf("c prefix=a:"));
  for (int i = 0; i < 20; ++i) store.SetBulk("a:" + std::to_string(i), "y");
  cleared.reset();
  ExpectExactCounts(store.keyspace, 1);
  EXPECT_EQ(CountsOf(store.keyspace, "c").dram_keys, 20u);
}

TEST(PartitionsTest, ReadsAreCountedWhereTheirKeysAre) {
  Store store;
  store.SetBulk("a:large", "x");
  store.Set("a:small", "x");
  const auto read = [&](const std::string& name) {
    KeyLock lock(store.keyspace, name, 1);
    store.keyspace.CountRead(lock.key, lock.key.Read());
  };
  read("a:large");  // nobody asked for partitions yet
  store.keyspace.SetPartitions(PartitionsOf("a prefix=a:"));
  read("a:large");
  read("a:small");
  read("a:none");
  read("none");
  EXPECT_EQ(CountsOf(store.keyspace, "a").hits, 2u);
  EXPECT_EQ(CountsOf(store.keyspace, "a").misses, 1u);
  EXPECT_EQ(CountsOf(store.keyspace, "default").hits, 0u);
  EXPECT_EQ(CountsOf(store.keyspace, "default").misses, 1u);
  store.keyspace.ResetStats();
  EXPECT_EQ(CountsOf(store.keyspace, "a").hits + CountsOf(store.keyspace, "a").misses, 0u);
}

// Writers, readers and eviction while partitions and policies change.
TEST(PartitionsThreadsTest, ChangesUnderLoad) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Pressed t("");
  std::atomic<bool> done{false};
  std::atomic<uint64_t> worked{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, seed = random.Next()] {
      Random mine(seed);
      while (!done) {
        const std::string name = std::string(1, static_cast<char>('a' + mine.Below(4))) + ":" +
                                 std::to_string(mine.Below(150));
        const uint64_t what = mine.Below(10);
        if (what < 5) {
          t.Set(name, mine.Between(1, 60) * 4096);
        } else if (what < 6) {
          KeyLock lock(t.keyspace(), name, 1);
          mine.Chance(0.5) ? void(lock.key.Erase()) : void(lock.key.Set("small"));
        } else if (what < 7) {
          const std::string other = "d:" + std::to_string(mine.Below(150));
          const std::string_view names[] = {name, other};
          KeysLock lock(t.keyspace(), names, 1);
          const Entry* entry = name == other ? nullptr : lock[0].Find();
          if (entry != nullptr && entry->has(Entry::kBulk)) lock[1].SetBulk(lock[0].TakeBulk());
        } else {
          ValueRef value;
          {
            KeyLock lock(t.keyspace(), name, 1);
            const Entry* entry = lock.key.Read();
            t.keyspace().CountRead(lock.key, entry);
            if (entry != nullptr && entry->has(Entry::kBulk)) value = ValueRef::Share(entry->bulk());
          }
          if (value) {
            BulkValue* const read[] = {value.get()};
            t.keyspace().Touch(read);
            const uint64_t hashes[] = {HashKey(name), HashKey(name + "1")};
            const auto set = t.keyspace().partition_set();
            const uint8_t slot = set == nullptr ? 0 : set->Match(name);
            const uint8_t slots[] = {slot, slot};
            t.keyspace().NoteBatch(hashes, BatchKind::kRead, slots);
          }
        }
        ++worked;
      }
    });
  }
  const char* const sets[] = {
      "", "a prefix=a: dram=0.3; b prefix=b: policy=allkeys-prefix",
      "a prefix=b: dram=0.2; x prefix=a:",
      "c prefix=c: policy=volatile-lru dram=0.1; d prefix=d: admission=never",
      "a prefix=a:; b prefix=b:; c prefix=c:; d prefix=d:"};
  for (int i = 0; i < Steps(160); ++i) {
    const uint64_t before = worked;
    if (random.Chance(0.2)) {
      t.keyspace().SetPolicy(random.Chance(0.5) ? MaxmemoryPolicy::kAllKeysPrefix
                                                : MaxmemoryPolicy::kAllKeysS3Fifo);
    } else if (random.Chance(0.1)) {
      t.keyspace().Clear();
    } else {
      t.keyspace().SetPartitions(PartitionsOf(sets[random.Below(std::size(sets))]));
    }
    t.tenant->Maintain(1);
    EXPECT_TRUE(Eventually([&] { return worked > before + 20; }));
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  ExpectExactCounts(t.keyspace(), 1);
  t.keyspace().SetPartitions({});
  ExpectExactCounts(t.keyspace(), 1);
  t.keyspace().Clear();
  ExpectExactCounts(t.keyspace(), 1);
  EXPECT_EQ(t.tenant->budget().extent_bytes(), 0u);
}

}  // namespace
}  // namespace moonpool::storage
