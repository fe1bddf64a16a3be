// Eviction of inline values samples, so these are statistical: the bounds leave room for luck that
// comes up less than once in a million runs.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

constexpr int kKeys = 4000;
constexpr int64_t kSecond = 1000;

std::string Name(int i) {
  return "key:" + std::to_string(i);
}

class KeyspaceEvictionTest : public testing::Test {
 protected:
  void Fill(Store& store, int64_t now_ms) {
    for (int i = 0; i < kKeys; ++i) store.Set(Name(i), "value", now_ms);
  }
  // Evicts `count` keys; returns the share of the survivors among those that `chosen` names.
  double Surviving(Store& store, int count, int64_t now_ms,
                   const std::function<bool(int)>& chosen) {
    for (int i = 0; i < count; ++i) EXPECT_GT(store.keyspace.EvictInline(now_ms, false), 0u);
    EXPECT_EQ(store.keyspace.Size(), static_cast<uint64_t>(kKeys - count));
    EXPECT_EQ(store.keyspace.stats().evicted, static_cast<uint64_t>(count));
    int total = 0, left = 0;
    for (int i = 0; i < kKeys; ++i) {
      if (!chosen(i)) continue;
      ++total;
      const std::string name = Name(i);
      KeyLock lock(store.keyspace, name, now_ms);
      left += lock.key.Find() != nullptr;
    }
    return static_cast<double>(left) / total;
  }
};

TEST_F(KeyspaceEvictionTest, LruKeepsWhatWasReadLately) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  Fill(store, kSecond);
  for (int i = 0; i < kKeys; i += 2) store.Get(Name(i), 100 * kSecond);
  const auto read = [](int i) { return i % 2 == 0; };
  EXPECT_GT(Surviving(store, kKeys / 4, 101 * kSecond, read), 0.93);
}

TEST_F(KeyspaceEvictionTest, LruOrdersByAge) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  for (int i = 0; i < kKeys; ++i) store.Set(Name(i), "value", (i + 1) * kSecond);
  const auto older_half = [](int i) { return i < kKeys / 2; };
  EXPECT_LT(Surviving(store, kKeys / 2, (kKeys + 1) * kSecond, older_half), 0.3);
}

TEST_F(KeyspaceEvictionTest, LruSurvivesItsClocksWrapAround) {
  // The 24 bits of seconds overflow every 194 days.
  constexpr int64_t kWrap = (1ll << 24) * kSecond;
  Store store(MaxmemoryPolicy::kAllKeysLru);
  Fill(store, kWrap - 100 * kSecond);
  for (int i = 0; i < kKeys; i += 2) store.Get(Name(i), kWrap + 50 * kSecond);
  const auto read = [](int i) { return i % 2 == 0; };
  EXPECT_GT(Surviving(store, kKeys / 4, kWrap + 51 * kSecond, read), 0.93);
}

TEST_F(KeyspaceEvictionTest, LfuKeepsWhatIsReadOften) {
  for (const auto policy : {MaxmemoryPolicy::kAllKeysLfu, MaxmemoryPolicy::kAllKeysS3Fifo}) {
    Store store(policy);
    Fill(store, kSecond);
    for (int use = 0; use < 50; ++use) {
      for (int i = 0; i < kKeys; i += 2) store.Get(Name(i), kSecond);
    }
    const auto hot = [](int i) { return i % 2 == 0; };
    EXPECT_GT(Surviving(store, kKeys / 4, 2 * kSecond, hot), 0.93);
  }
}

TEST_F(KeyspaceEvictionTest, LfuForgetsOldFame) {
  Store store(MaxmemoryPolicy::kAllKeysLfu);
  store.keyspace.set_lfu_options({.log_factor = 1, .decay_minutes = 1});
  Fill(store, kSecond);
  for (int use = 0; use < 100; ++use) {
    for (int i = 0; i < kKeys; i += 2) store.Get(Name(i), kSecond);
  }
  // Four hours later the others are read a little.
  constexpr int64_t kLater = 4 * 3600 * kSecond;
  for (int use = 0; use < 10; ++use) {
    for (int i = 1; i < kKeys; i += 2) store.Get(Name(i), kLater);
  }
  const auto once_hot = [](int i) { return i % 2 == 0; };
  EXPECT_LT(Surviving(store, kKeys / 4, kLater + kSecond, once_hot), 0.6);
}

TEST_F(KeyspaceEvictionTest, RandomPrefersNobody) {
  Store store(MaxmemoryPolicy::kAllKeysRandom);
  Fill(store, kSecond);
  for (int i = 0; i < kKeys; i += 2) store.Get(Name(i), 100 * kSecond);
  const auto read = [](int i) { return i % 2 == 0; };
  const double surviving = Surviving(store, kKeys / 2, 101 * kSecond, read);
  EXPECT_GT(surviving, 0.44);
  EXPECT_LT(surviving, 0.56);
}

TEST_F(KeyspaceEvictionTest, VolatileTtlTakesWhatEndsSoonest) {
  Store store(MaxmemoryPolicy::kVolatileTtl);
  Fill(store, kSecond);
  for (int i = 0; i < kKeys; ++i) {
    store.Expire(Name(i), i % 2 == 0 ? 1'000'000 : 10'000'000, kSecond);
  }
  const auto soon = [](int i) { return i % 2 == 0; };
  EXPECT_LT(Surviving(store, kKeys / 4, kSecond, soon), 0.57);
}

TEST_F(KeyspaceEvictionTest, VolatilePoliciesTouchNothingThatLasts) {
  for (const auto policy : {MaxmemoryPolicy::kVolatileLru, MaxmemoryPolicy::kVolatileLfu,
                            MaxmemoryPolicy::kVolatileRandom, MaxmemoryPolicy::kVolatileTtl}) {
    Store store(policy);
    Fill(store, kSecond);
    for (int i = 0; i < kKeys; i += 8) store.Expire(Name(i), 1'000'000'000, kSecond);
    size_t evicted = 0;
    while (store.keyspace.EvictInline(kSecond, true) > 0) ++evicted;
    EXPECT_EQ(evicted, static_cast<size_t>(kKeys / 8));
    EXPECT_EQ(store.keyspace.Size(), static_cast<uint64_t>(kKeys - kKeys / 8));
    EXPECT_EQ(store.keyspace.ExpiringSize(), 0u);
  }
}

TEST_F(KeyspaceEvictionTest, PinsHold) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  for (int i = 0; i < 900; ++i) {
    store.Set(Name(i), "value", kSecond);
    if (i % 3 == 0) store.SetPin(Name(i), {.until_ms = 0, .hard = true}, kSecond);
    if (i % 3 == 1) store.SetPin(Name(i), {.until_ms = 50 * kSecond, .hard = false}, kSecond);
  }
  const auto evict_all = [&](int64_t now_ms, bool ignore_soft_pins) {
    while (store.keyspace.EvictInline(now_ms, ignore_soft_pins) > 0) {
    }
    return store.keyspace.Size();
  };
  EXPECT_EQ(evict_all(10 * kSecond, false), 600u);
  for (int i = 0; i < 900; ++i) EXPECT_EQ(store.Has(Name(i), 10 * kSecond), i % 3 != 2);
  EXPECT_EQ(evict_all(10 * kSecond, true), 300u);
  for (int i = 0; i < 900; ++i) EXPECT_EQ(store.Has(Name(i), 10 * kSecond), i % 3 == 0);
}

TEST_F(KeyspaceEvictionTest, AHardPinEndsWithItsTime) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  store.Set("k", "value", kSecond);
  store.SetPin("k", {.until_ms = 50 * kSecond, .hard = true}, kSecond);
  EXPECT_EQ(store.keyspace.EvictInline(50 * kSecond - 1, true), 0u);
  EXPECT_GT(store.keyspace.EvictInline(50 * kSecond, false), 0u);
  EXPECT_EQ(store.keyspace.hard_pinned_bytes(), 0u);
}

TEST_F(KeyspaceEvictionTest, BulkValuesAreNotTouched) {
  Store store(MaxmemoryPolicy::kAllKeysRandom);
  for (int i = 0; i < 300; ++i) {
    if (i % 2 == 0) {
      store.SetBulk(Name(i), "bulk");
    } else {
      store.Set(Name(i), "inline");
    }
  }
  size_t evicted = 0;
  while (store.keyspace.EvictInline(1, true) > 0) ++evicted;
  EXPECT_EQ(evicted, 150u);
  for (int i = 0; i < 300; ++i) EXPECT_EQ(store.Has(Name(i)), i % 2 == 0);
}

TEST_F(KeyspaceEvictionTest, ReturnsTheHeapBytesItFreed) {
  Store store(MaxmemoryPolicy::kAllKeysRandom);
  Fill(store, kSecond);
  const uint64_t before = store.heap_budget.inline_bytes();
  uint64_t freed = 0;
  for (int i = 0; i < 100; ++i) freed += store.keyspace.EvictInline(kSecond, false);
  EXPECT_EQ(store.heap_budget.inline_bytes(), before - freed);
}

// --- bulk values, through the policy -------------------------------------------------------------

TEST(KeyspaceBulkEvictionTest, TheVictimIsTheKeyThatWasUsedLongestAgo) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  for (int i = 0; i < 10; ++i) store.SetBulk(Name(i), "bulk" + std::to_string(i));
  const auto touch = [&](int i) {
    ValueRef value;
    {
      const std::string name = Name(i);
      KeyLock lock(store.keyspace, name, 1);
      value = ValueRef::Share(lock.key.Read()->bulk());
    }
    BulkValue* const read[] = {value.get()};
    store.keyspace.Touch(read);
  };
  touch(0);
  touch(2);
  store.SetBulk(Name(1), "again");  // a new version is new
  for (const int expected : {3, 4, 5, 6, 7, 8, 9, 0, 2, 1}) {
    const ValueRef victim = store.bulk_policy.Victim();
    ASSERT_TRUE(victim);
    EXPECT_EQ(victim->owner_hash(), HashKey(Name(expected)));
    ASSERT_TRUE(Evicted(store.keyspace, *victim, 1, false));
    EXPECT_FALSE(store.Has(Name(expected)));
  }
  EXPECT_FALSE(store.bulk_policy.Victim());
}

TEST(KeyspaceBulkEvictionTest, PinsAreRespected) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  store.SetBulk("hard", "x");
  store.SetBulk("soft", "x");
  store.SetPin("hard", {.until_ms = 0, .hard = true});
  store.SetPin("soft", {.until_ms = 0, .hard = false});
  ValueRef hard = store.bulk_policy.Victim();
  ASSERT_EQ(hard->owner_hash(), HashKey("hard"));
  EXPECT_FALSE(Evicted(store.keyspace, *hard, 1, true));
  store.bulk_policy.Spare(hard);
  ValueRef soft = store.bulk_policy.Victim();
  ASSERT_EQ(soft->owner_hash(), HashKey("soft"));
  EXPECT_FALSE(Evicted(store.keyspace, *soft, 1, false));
  EXPECT_TRUE(Evicted(store.keyspace, *soft, 1, true));
  EXPECT_FALSE(Evicted(store.keyspace, *soft, 1, true));  // it is gone
}

TEST(KeyspaceBulkEvictionTest, UnderVolatilePoliciesOnlyValuesWithAnExpiryAreVictims) {
  Store store(MaxmemoryPolicy::kVolatileTtl);
  store.SetBulk("lasting", "x");
  store.SetBulk("late", "x");
  store.SetBulk("soon", "x");
  EXPECT_FALSE(store.bulk_policy.Victim());
  store.Expire("late", 9000);
  store.Expire("soon", 8000);
  EXPECT_EQ(store.bulk_policy.Victim()->owner_hash(), HashKey("soon"));
  store.Expire("soon", 10000);  // later after all
  EXPECT_EQ(store.bulk_policy.Victim()->owner_hash(), HashKey("late"));
  {
    KeyLock lock(store.keyspace, "late", 1);
    lock.key.Find();
    lock.key.ClearExpiry();
  }
  EXPECT_EQ(store.bulk_policy.Victim()->owner_hash(), HashKey("soon"));
  {
    ValueRef value = MakeBulk(*store.pool, "new");
    KeyLock lock(store.keyspace, "soon", 1);
    lock.key.SetBulk(std::move(value), true);  // keeps the expiry
  }
  EXPECT_EQ(store.bulk_policy.Victim()->owner_hash(), HashKey("soon"));
  store.SetBulk("soon", "new");
  EXPECT_FALSE(store.bulk_policy.Victim());
}

TEST(KeyspaceBulkEvictionTest, APolicyChangeTakesTheValuesAlong) {
  Store store(MaxmemoryPolicy::kAllKeysLru);
  for (int i = 0; i < 100; ++i) {
    store.SetBulk(Name(i), "x");
    if (i % 2 == 0) store.Expire(Name(i), 5000 + i);
  }
  for (const auto policy : {MaxmemoryPolicy::kVolatileTtl, MaxmemoryPolicy::kAllKeysS3Fifo,
                            MaxmemoryPolicy::kVolatileRandom, MaxmemoryPolicy::kAllKeysLfu,
                            MaxmemoryPolicy::kAllKeysRandom, MaxmemoryPolicy::kNoEviction,
                            MaxmemoryPolicy::kVolatileLfu}) {
    store.keyspace.SetPolicy(policy);
    std::set<uint64_t> victims;
    std::vector<ValueRef> held;
    while (victims.size() < 100) {
      ValueRef victim = store.bulk_policy.Victim();
      if (!victim || !victims.insert(victim->owner_hash()).second) break;
      store.bulk_policy.Spare(victim);
      held.push_back(std::move(victim));
    }
    EXPECT_EQ(victims.size(), VolatileOnly(policy) ? 50u : 100u);
  }
}

}  // namespace
}  // namespace moonpool::storage
