#include "storage/keyspace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "protocol/glob.h"
#include "storage/heap.h"
#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

constexpr size_t kAll = 1 << 20;  // buckets: more than there are

// --- by example ----------------------------------------------------------------------------------

TEST(KeyspaceTest, SetReadReplaceErase) {
  Store store;
  EXPECT_EQ(store.Get("k"), std::nullopt);
  store.Set("k", "one");
  EXPECT_EQ(store.Get("k"), "one");
  store.Set("k", "another value");
  EXPECT_EQ(store.Get("k"), "another value");
  store.SetBulk("k", std::string(100000, 'b'));
  EXPECT_TRUE(Same(store.Get("k"), std::string(100000, 'b')));
  EXPECT_GT(store.pool_budget.extent_bytes(), 0u);
  store.Set("k", "");
  EXPECT_EQ(store.Get("k"), "");
  EXPECT_EQ(store.pool_budget.extent_bytes(), 0u);
  EXPECT_EQ(store.keyspace.Size(), 1u);
  KeyLock lock(store.keyspace, "k", 1);
  EXPECT_TRUE(lock.key.Erase());
  EXPECT_FALSE(lock.key.Erase());
}

TEST(KeyspaceTest, KeysAndValuesMayBeEmptyOrHoldAnyByte) {
  Store store;
  store.Set(std::string_view(), std::string_view());
  EXPECT_EQ(store.Get(""), "");
  const std::string odd("\0\r\n\xff", 4);
  store.Set(odd, odd);
  EXPECT_EQ(store.Get(odd), odd);
  EXPECT_EQ(store.keyspace.Size(), 2u);
}

TEST(KeyspaceTest, UninitialisedRoomIsTheCallersToFill) {
  Store store;
  KeyLock lock(store.keyspace, "k", 1);
  Entry* entry = lock.key.SetUninitialized(5, false);
  ASSERT_EQ(entry->value_bytes, 5u);
  std::memcpy(entry->value_data(), "12345", 5);
  EXPECT_EQ(lock.key.Find()->value(), "12345");
}

TEST(KeyspaceTest, AnExpiryPassesAtItsMillisecond) {
  Store store;
  store.Set("k", "v", 1000);
  store.Expire("k", 2000, 1000);
  EXPECT_EQ(store.keyspace.ExpiringSize(), 1u);
  EXPECT_TRUE(store.Has("k", 1999));
  EXPECT_FALSE(store.Has("k", 2000));
  EXPECT_EQ(store.keyspace.Size(), 0u);
  EXPECT_EQ(store.keyspace.ExpiringSize(), 0u);
  EXPECT_EQ(store.keyspace.stats().expired, 1u);
  // A new key of that name is no heir of the old one's expiry.
  store.Set("k", "v", 2000);
  EXPECT_TRUE(store.Has("k", 1'000'000));
}

TEST(KeyspaceTest, KeepExpiryKeepsIt) {
  Store store;
  for (const size_t size : {1, 8, 9, 100, 3}) {  // in place, and in blocks of other sizes
    store.Set("k", "x");
    store.Expire("k", 5000);
    {
      KeyLock lock(store.keyspace, "k", 1);
      Entry* entry = lock.key.Set(std::string(size, 'y'), true);
      ASSERT_TRUE(entry->has(Entry::kHasExpiry));
      EXPECT_EQ(entry->expiry_ms(), 5000);
    }
    store.Set("k", std::string(size, 'z'));
    KeyLock lock(store.keyspace, "k", 1);
    EXPECT_FALSE(lock.key.Find()->has(Entry::kHasExpiry));
    EXPECT_EQ(lock.key.Find()->value(), std::string(size, 'z'));
  }
  EXPECT_EQ(store.keyspace.ExpiringSize(), 0u);
}

TEST(KeyspaceTest, OverwritingAnExpiredKeyForgetsItsExpiry) {
  Store store;
  store.Set("k", "old", 1);
  store.Expire("k", 100);
  {
    KeyLock lock(store.keyspace, "k", 200);
    EXPECT_FALSE(lock.key.Set("new", true)->has(Entry::kHasExpiry));
  }
  EXPECT_EQ(store.keyspace.ExpiringSize(), 0u);
  EXPECT_EQ(store.keyspace.stats().expired, 1u);
}

TEST(KeyspaceTest, RenameMovesABulkValueWithoutCopying) {
  Store store;
  store.SetBulk("from", std::string(50000, 'v'));
  store.Set("to", "old");
  const std::array<std::string_view, 2> names = {"from", "to"};
  KeysLock lock(store.keyspace, names, 1);
  ASSERT_EQ(lock.size(), 2u);
  const Entry* entry = lock[0].Find();
  ASSERT_NE(entry, nullptr);
  const char* data = entry->bulk()->data();
  const uint64_t generation = entry->bulk()->extent().generation;
  ValueRef value = lock[0].TakeBulk();
  EXPECT_EQ(value->references(), 1u);
  EXPECT_EQ(lock[0].Find(), nullptr);
  lock[1].SetBulk(std::move(value));
  entry = lock[1].Find();
  EXPECT_EQ(entry->bulk()->data(), data);
  EXPECT_EQ(entry->bulk()->extent().generation, generation);
  EXPECT_EQ(entry->bulk()->owner_hash(), HashKey("to"));
}

TEST(KeyspaceTest, LocksOfTheSameKeyTwiceAndOfNoKey) {
  Store store;
  const std::array<std::string_view, 4> names = {"a", "b", "a", "a"};
  {
    KeysLock lock(store.keyspace, names, 1);
    lock[0].Set("1");
    EXPECT_EQ(lock[2].Find()->value(), "1");
    lock[2].Set(std::string(1000, '2'));
    EXPECT_EQ(lock[0].Find()->value(), std::string(1000, '2'));
    EXPECT_TRUE(lock[3].Erase());
    EXPECT_EQ(lock[0].Find(), nullptr);
  }
  KeysLock none(store.keyspace, {}, 1);
  EXPECT_EQ(none.size(), 0u);
}

TEST(KeyspaceTest, PinsFollowTheirKey) {
  Store store;
  Keyspace& keyspace = store.keyspace;
  store.Set("k", "12345");
  store.SetPin("k", {.until_ms = 0, .hard = true});
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 5u);
  store.SetBulk("k", std::string(10000, 'x'));  // the pin stays, and knows the new size
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 10000u);
  store.Set("k", "1");
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 1u);
  store.Expire("k", 1000);  // moves the entry
  {
    KeyLock lock(keyspace, "k", 1);
    lock.key.Find();
    const auto pin = lock.key.GetPin();
    ASSERT_TRUE(pin);
    EXPECT_TRUE(pin->hard);
    EXPECT_EQ(pin->bytes, 1u);
  }
  store.SetPin("k", {.until_ms = 0, .hard = false});  // a soft one replaces it
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
  store.SetPin("k", {.until_ms = 0, .hard = true});
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 1u);
  {
    KeyLock lock(keyspace, "k", 1);
    lock.key.Find();
    EXPECT_TRUE(lock.key.ClearPin());
    EXPECT_FALSE(lock.key.ClearPin());
    EXPECT_FALSE(lock.key.GetPin());
  }
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
  // It goes with its key: erased, expired, cleared.
  store.SetPin("k", {.until_ms = 0, .hard = true});
  EXPECT_FALSE(store.Has("k", 1000));
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
  store.Set("k", "12345", 1000);
  {
    KeyLock lock(keyspace, "k", 1000);
    lock.key.Find();
    EXPECT_FALSE(lock.key.GetPin());
    lock.key.SetPin({.until_ms = 0, .hard = true});
    lock.key.Erase();
  }
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
  store.Set("k", "12345", 1000);
  store.SetPin("k", {.until_ms = 0, .hard = true}, 1000);
  keyspace.Clear();
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
}

TEST(KeyspaceTest, APinThatHasPassedNoLongerCounts) {
  // Else KV.PIN .. HARD TTL eats up hard-pin-limit for good.
  Store store;
  store.Set("k", "12345");
  store.Set("forever", "123");
  store.SetPin("k", {.until_ms = 1000, .hard = true});
  store.SetPin("forever", {.until_ms = 0, .hard = true});
  store.keyspace.ExpireSome(kAll, 999);
  EXPECT_EQ(store.keyspace.hard_pinned_bytes(), 8u);
  {
    KeyLock lock(store.keyspace, "k", 1000);
    ASSERT_NE(lock.key.Find(), nullptr);
    EXPECT_FALSE(lock.key.GetPin());
  }
  store.keyspace.ExpireSome(kAll, 1000);
  EXPECT_EQ(store.keyspace.hard_pinned_bytes(), 3u);
  KeyLock lock(store.keyspace, "k", 1000);
  ASSERT_NE(lock.key.Find(), nullptr);
  EXPECT_FALSE(lock.key.ClearPin());
}

TEST(KeyspaceTest, ExpireSomeWorksThroughEverythingInSlices) {
  Store store;
  for (int i = 0; i < 3000; ++i) {
    const std::string key = "k" + std::to_string(i);
    store.Set(key, "v");
    if (i % 3 != 0) store.Expire(key, i % 3 == 1 ? 1000 : 5000);
  }
  size_t gone = 0;
  for (int slice = 0; slice < 3000; ++slice) gone += store.keyspace.ExpireSome(16, 1000);
  EXPECT_EQ(gone, 1000u);
  EXPECT_EQ(store.keyspace.Size(), 2000u);
  EXPECT_EQ(store.keyspace.ExpiringSize(), 1000u);
  EXPECT_EQ(store.keyspace.stats().expired, 1000u);
  store.keyspace.ResetStats();
  EXPECT_EQ(store.keyspace.stats().expired, 0u);
}

TEST(KeyspaceTest, ClearHandsEverythingOutToBeFreedLater) {
  Store store;
  const uint64_t empty = store.heap_budget.inline_bytes();
  for (int i = 0; i < 1000; ++i) store.Set("k" + std::to_string(i), std::string(100, 'x'));
  store.SetBulk("bulk", std::string(100000, 'b'));
  const uint64_t full = store.heap_budget.inline_bytes();
  auto cleared = store.keyspace.Clear();
  EXPECT_EQ(store.keyspace.Size(), 0u);
  EXPECT_FALSE(store.Has("bulk"));
  EXPECT_GE(store.heap_budget.inline_bytes(), full);  // not yet
  EXPECT_GT(store.pool_budget.extent_bytes(), 0u);
  store.Set("k1", "new");
  cleared.reset();
  EXPECT_EQ(store.pool_budget.extent_bytes(), 0u);
  EXPECT_EQ(store.Get("k1"), "new");
  store.keyspace.Clear();
  EXPECT_EQ(store.heap_budget.inline_bytes(), empty);
}

TEST(KeyspaceTest, ItsBudgetIsBackWhereItWasWhenItIsGone) {
  for (const uint64_t limit : {uint64_t{1000}, kMiB, uint64_t{1} << 40}) {
    MemoryBudget budget(limit), pool_budget(64 * kMiB);
    const auto pool = MakePool(SmallPool(), &pool_budget);
    BulkPolicy policy(MaxmemoryPolicy::kAllKeysLru);
    {
      Keyspace keyspace(&budget, &policy, MaxmemoryPolicy::kAllKeysLru);
      for (int i = 0; i < 5000; ++i) {
        const std::string name = std::to_string(i);
        KeyLock lock(keyspace, name, 1);
        lock.key.Set("value");
      }
      keyspace.Clear();
      for (int i = 0; i < 500; ++i) {
        const std::string name = std::to_string(i);
        KeyLock lock(keyspace, name, 1);
        lock.key.SetBulk(MakeBulk(*pool, "value"));
      }
    }
    EXPECT_EQ(budget.inline_bytes(), 0u) << limit;
    EXPECT_EQ(pool_budget.extent_bytes(), 0u);
  }
}

TEST(KeyspaceTest, TheBudgetLagsBehindByAFewThousandthsAtMost) {
  MemoryBudget budget(64 * kMiB);
  BulkPolicy policy(MaxmemoryPolicy::kAllKeysLru);
  Keyspace keyspace(&budget, &policy, MaxmemoryPolicy::kAllKeysLru);
  uint64_t blocks = 0;
  for (int i = 0; i < 100000; ++i) {
    const std::string key = "key" + std::to_string(i);
    KeyLock lock(keyspace, key, 1);
    blocks += lock.key.Set(std::string(200, 'x'))->block_bytes();
    const uint64_t reported = budget.inline_bytes();
    ASSERT_GE(reported + budget.limit() / 256, blocks);
    ASSERT_LE(reported, blocks + static_cast<uint64_t>(i) * 25 + 65536 + budget.limit() / 256);
  }
}

TEST(KeyspaceTest, MoveBulkSwapsTheBytesUnderneath) {
  Store store;
  store.SetBulk("k", std::string(5000, 'x'));
  store.Expire("k", 9000);
  ValueRef old;
  {
    KeyLock lock(store.keyspace, "k", 1);
    old = ValueRef::Share(lock.key.Find()->bulk());
  }
  EXPECT_TRUE(store.keyspace.MoveBulk(*old, MakeBulk(*store.pool, BytesOf(*old))));
  {
    KeyLock lock(store.keyspace, "k", 1);
    const Entry* entry = lock.key.Find();
    EXPECT_NE(entry->bulk(), old.get());
    EXPECT_TRUE(Same(ValueOf(*entry), std::string(5000, 'x')));
    EXPECT_EQ(entry->expiry_ms(), 9000);
    EXPECT_EQ(entry->bulk()->owner_hash(), HashKey("k"));
  }
  EXPECT_EQ(old->references(), 1u);
  // The policy follows: the new value is its victim.
  EXPECT_NE(store.bulk_policy.Victim().get(), old.get());
  EXPECT_FALSE(store.keyspace.MoveBulk(*old, MakeBulk(*store.pool, BytesOf(*old))));
  EXPECT_FALSE(Evicted(store.keyspace, *old, 1, true));
}

TEST(KeyspaceTest, HashesSpreadOverStripesAndBuckets) {
  // Names as people choose them, and as somebody would who wants them in one bucket.
  const auto name = [](int kind, uint64_t i) -> std::string {
    switch (kind) {
      case 0:
        return std::to_string(i);
      case 1:
        return std::string(200, 'p') + std::to_string(i);
      case 2:
        return std::string(i, '\0');
      case 3:
        return {reinterpret_cast<const char*>(&i), sizeof(i)};
      default:
        return "user:" + std::to_string(i << 20) + ":kv";
    }
  };
  for (int kind = 0; kind < 5; ++kind) {
    constexpr uint64_t kKeys = 4096;
    std::array<int, 256> low{}, high{};
    for (uint64_t i = 0; i < kKeys; ++i) {
      const uint64_t hash = HashKey(name(kind, i));
      ++low[hash & 255];
      ++high[hash >> 56];
    }
    // 16 each on average; 50 is beyond eight standard deviations.
    EXPECT_LT(*std::max_element(low.begin(), low.end()), 50) << kind;
    EXPECT_LT(*std::max_element(high.begin(), high.end()), 50) << kind;
  }
}

#ifndef MOONPOOL_SANITIZED
// The sanitizers' allocator has blocks of other sizes.
TEST(KeyspaceTest, AMillionKeysTakeFewBytesEach) {
  for (const bool expiry : {false, true}) {
    MemoryBudget budget(1);  // small, so that every byte is reported
    BulkPolicy policy(MaxmemoryPolicy::kAllKeysLru);
    Keyspace keyspace(&budget, &policy, MaxmemoryPolicy::kAllKeysLru);
    char key[17];
    const std::string value(64, 'v');
    for (int i = 0; i < 1'000'000; ++i) {
      std::snprintf(key, sizeof(key), "%016d", i);
      KeyLock lock(keyspace, std::string_view(key, 16), 1);
      lock.key.Set(value);
      if (expiry) {
        lock.key.Find();
        lock.key.SetExpiry(1'000'000);
      }
    }
    ASSERT_EQ(keyspace.Size(), 1'000'000u);
    const double overhead = static_cast<double>(budget.inline_bytes()) / 1e6 - 80;
    std::printf("%.1f bytes on top of key and value%s\n", overhead, expiry ? " and expiry" : "");
    EXPECT_LT(overhead, expiry ? 60 : 40);
    EXPECT_GT(overhead, 16);
  }
}
#endif

// --- KV.DROP -------------------------------------------------------------------------------------

TEST(KeyspaceVoidTest, MatchingKeysAreGoneAtOnceAndMemoryFollows) {
  Store store;
  for (int i = 0; i < 1000; ++i) {
    store.Set("a@1:" + std::to_string(i), "v");
    store.Set("b@1:" + std::to_string(i), "v");
  }
  store.SetBulk("a@1:bulk", std::string(100000, 'x'));
  ASSERT_TRUE(store.keyspace.VoidPrefix("a@1:"));
  EXPECT_FALSE(store.Has("a@1:5"));
  EXPECT_TRUE(store.Has("b@1:5"));
  EXPECT_EQ(store.Keys().size(), 1000u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(store.keyspace.RandomKey(1)->substr(0, 4), "b@1:");
  store.Set("a@1:7", "new");  // written later: not touched
  store.Set("a@1:fresh", "new");
  while (store.keyspace.SweepVoids(1)) {
  }
  EXPECT_EQ(store.pool_budget.extent_bytes(), 0u);
  EXPECT_EQ(store.keyspace.Size(), 1002u);
  EXPECT_EQ(store.Get("a@1:7"), "new");
  EXPECT_EQ(store.Get("a@1:fresh"), "new");
  EXPECT_FALSE(store.keyspace.SweepVoids(1));
}

TEST(KeyspaceVoidTest, EachVoidEndsWhatWasWrittenBeforeIt) {
  Store store;
  store.Set("k1", "v");
  ASSERT_TRUE(store.keyspace.VoidPattern("k*"));
  store.Set("k1", "between");
  EXPECT_TRUE(store.Has("k1"));
  ASSERT_TRUE(store.keyspace.VoidPattern("k?"));
  EXPECT_FALSE(store.Has("k1"));
  store.Set("k1", "after");
  EXPECT_TRUE(store.Has("k1"));
  while (store.keyspace.SweepVoids(1)) {
  }
  EXPECT_EQ(store.Get("k1"), "after");
}

TEST(KeyspaceVoidTest, AVoidedValueHasNoHeirs) {
  // Its expiry, its pin and its value are not seen by the write that comes next.
  Store store;
  store.Set("k", "old");
  store.Expire("k", 9000);
  store.SetPin("k", {.until_ms = 0, .hard = true});
  ASSERT_TRUE(store.keyspace.VoidPrefix("k"));
  KeyLock lock(store.keyspace, "k", 1);
  const Entry* entry = lock.key.Set("new", true);
  EXPECT_FALSE(entry->has(Entry::kHasExpiry));
  EXPECT_FALSE(entry->has(Entry::kPinned));
  EXPECT_EQ(store.keyspace.hard_pinned_bytes(), 0u);
}

TEST(KeyspaceVoidTest, OnlySoManyAtATime) {
  Store store;
  store.Set("x99", "v");
  int accepted = 0;
  while (accepted < 1000 && store.keyspace.VoidPrefix("y" + std::to_string(accepted))) ++accepted;
  EXPECT_GT(accepted, 10);
  EXPECT_LT(accepted, 1000);
  EXPECT_FALSE(store.keyspace.VoidPrefix("x"));
  EXPECT_TRUE(store.Has("x99"));  // refused: nothing happened
  while (store.keyspace.SweepVoids(1)) {
  }
  EXPECT_TRUE(store.keyspace.VoidPrefix("x"));
  EXPECT_FALSE(store.Has("x99"));
}

#ifndef MOONPOOL_SANITIZED
// Needs the heap's statistics.
TEST(KeyspaceVoidTest, ManyDropsOneAfterTheOtherDoNotPileUpMemory) {
  // There is always some void being swept, as on a server whose clients drop a namespace now and
  // then: what is remembered about writes meanwhile must not grow with every key ever written.
  Store store(MaxmemoryPolicy::kAllKeysLru, 64 * kMiB, 1ull << 40);
  constexpr int kRounds = 40, kKeys = 5000;
  size_t early = 0;
  ASSERT_TRUE(store.keyspace.VoidPrefix("none"));
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kKeys; ++i) {
      const std::string key = std::to_string(round) + ":" + std::to_string(i);
      KeyLock lock(store.keyspace, key, 1);
      lock.key.Set("v");
      lock.key.Erase();
    }
    // The next void comes in the middle of the pass that sweeps the one before.
    for (size_t step = 0; step < Keyspace::kStripes; ++step) {
      if (step == 100) {
        ASSERT_TRUE(store.keyspace.VoidPrefix("none"));
      }
      ASSERT_TRUE(store.keyspace.SweepVoids(1));
    }
    if (round == 4) early = ReadHeapStats().allocated_bytes;
  }
  const size_t late = ReadHeapStats().allocated_bytes;
  EXPECT_LT(late, early + kKeys * 100) << "for " << kRounds * kKeys << " keys that are gone";
}
#endif

// --- against a model -----------------------------------------------------------------------------

class Model {
 public:
  struct Value {
    std::string bytes;
    bool bulk = false;
    std::optional<int64_t> expiry;
    std::optional<Pin> pin;
  };

  explicit Model(Random& random, uint64_t names)
      : random_(random),
        names_(names),
        store_(MaxmemoryPolicy::kAllKeysLru, 32 * kMiB),
        empty_bytes_(store_.heap_budget.inline_bytes()) {}

  void Step() {
    now_ms_ += static_cast<int64_t>(random_.Below(5));
    std::erase_if(model_, [this](const auto& entry) {
      return entry.second.expiry && *entry.second.expiry <= now_ms_;
    });
    switch (random_.Below(100)) {
      default:
        return SetAndCheck();
      case 0:
        return Rename();
      case 1:
        return Rename();
      case 2:
        return MultiSet();
      case 3:
        return MultiSet();
      case 4:
        return CheckEverything();
      case 5:
        return EvictInline();
      case 6:
        return EvictBulk();
      case 7:
        return MoveBulk();
      case 8:
        return random_.Chance(0.2) ? Drop() : void();
      case 9:
        for (uint64_t i = random_.Below(300); i > 0 && sweeping_; --i) {
          sweeping_ = store_.keyspace.SweepVoids(now_ms_);
        }
        return;
      case 13: {
        const MaxmemoryPolicy policies[] = {
            MaxmemoryPolicy::kNoEviction,   MaxmemoryPolicy::kAllKeysLru,
            MaxmemoryPolicy::kAllKeysLfu,   MaxmemoryPolicy::kAllKeysS3Fifo,
            MaxmemoryPolicy::kVolatileTtl,  MaxmemoryPolicy::kVolatileLru,
            MaxmemoryPolicy::kAllKeysRandom};
        policy_ = policies[random_.Below(std::size(policies))];
        return store_.keyspace.SetPolicy(policy_);
      }
      case 14:
        if (random_.Chance(0.05)) {
          store_.keyspace.Clear();
          model_.clear();
        }
        return;
      case 15: {
        const auto key = store_.keyspace.RandomKey(now_ms_);
        ASSERT_EQ(key.has_value(), !model_.empty());
        if (key) {
          ASSERT_EQ(model_.count(*key), 1u) << *key;
        }
        return;
      }
      case 16:
        store_.keyspace.ExpireSome(random_.Between(1, 50), now_ms_);
        return;
    }
  }

  void Finish() {
    CheckEverything();
    while (store_.keyspace.SweepVoids(now_ms_)) {
    }
    for (const std::string& key : store_.Keys(now_ms_)) {
      KeyLock lock(store_.keyspace, key, now_ms_);
      ASSERT_TRUE(lock.key.Erase());
    }
    store_.keyspace.ExpireSome(kAll, now_ms_);
    ASSERT_EQ(store_.keyspace.Size(), 0u);
    ASSERT_EQ(store_.keyspace.ExpiringSize(), 0u);
    ASSERT_EQ(store_.keyspace.hard_pinned_bytes(), 0u);
    ASSERT_EQ(store_.pool_budget.extent_bytes(), 0u);
    ASSERT_FALSE(store_.bulk_policy.Victim());
    // Tables that once grew keep a segment for the next time.
    ASSERT_GE(store_.heap_budget.inline_bytes(), empty_bytes_);
    ASSERT_LE(store_.heap_budget.inline_bytes(), empty_bytes_ + Keyspace::kStripes * 64);
    store_.keyspace.Clear();
    ASSERT_EQ(store_.heap_budget.inline_bytes(), empty_bytes_);
    // Nothing was mistaken for an expiry or an eviction.
    ASSERT_EQ(store_.keyspace.stats().evicted, evicted_);
  }

 private:
  std::string Name() { return "key:" + std::to_string(random_.Below(names_)); }
  std::string Bytes(bool bulk) {
    const size_t size = bulk                  ? random_.Between(1, 20000)
                        : random_.Chance(0.1) ? random_.Below(3000)
                                              : random_.Below(40);
    std::string bytes(size, static_cast<char>('a' + random_.Below(26)));
    for (size_t i = 0; i < std::min<size_t>(size, 8); ++i)
      bytes[i] = static_cast<char>(random_.Next());
    return bytes;
  }
  // The model's view of a write.
  void Put(const std::string& key, std::string bytes, bool bulk, bool keep_expiry) {
    Value& value = model_[key];
    value.bytes = std::move(bytes);
    value.bulk = bulk;
    if (!keep_expiry) value.expiry.reset();
  }
  void Check(Keyspace::Key& cursor) {
    const auto expected = model_.find(std::string(cursor.name()));
    const Entry* entry = random_.Chance(0.5) ? cursor.Find() : cursor.Read();
    ASSERT_EQ(entry != nullptr, expected != model_.end()) << cursor.name();
    if (entry == nullptr) return;
    const Value& value = expected->second;
    ASSERT_EQ(entry->key(), cursor.name());
    ASSERT_EQ(entry->has(Entry::kBulk), value.bulk);
    ASSERT_TRUE(Same(ValueOf(*entry), value.bytes));
    ASSERT_EQ(entry->has(Entry::kHasExpiry), value.expiry.has_value());
    if (value.expiry) {
      ASSERT_EQ(entry->expiry_ms(), *value.expiry);
    }
    const auto pin = cursor.GetPin();
    const bool pinned = value.pin && (value.pin->until_ms == 0 || value.pin->until_ms > now_ms_);
    ASSERT_EQ(pin.has_value(), pinned);
    if (pinned) {
      ASSERT_EQ(pin->hard, value.pin->hard);
      ASSERT_EQ(pin->bytes, value.bytes.size());
    }
  }

  void SetAndCheck() {
    const std::string key = Name();
    const uint64_t action = random_.Below(12);
    const bool bulk = action == 1 || action == 2;
    const std::string bytes = Bytes(bulk);
    ValueRef value = bulk ? MakeBulk(*store_.pool, bytes) : ValueRef();
    if (bulk && !value) return;  // the pool is full
    KeyLock lock(store_.keyspace, key, now_ms_);
    Keyspace::Key& cursor = lock.key;
    const bool keep = random_.Chance(0.4);
    switch (action) {
      case 0:
      case 3:
      case 4:
        cursor.Set(bytes, keep);
        Put(key, bytes, false, keep);
        break;
      case 1:
      case 2:
        cursor.SetBulk(std::move(value), keep);
        Put(key, bytes, true, keep);
        break;
      case 5:
      case 6:
        ASSERT_EQ(cursor.Erase(), model_.erase(key) == 1);
        break;
      case 7:
      case 8: {
        Entry* entry = cursor.Find();
        if (entry == nullptr) break;
        const int64_t at = now_ms_ + static_cast<int64_t>(random_.Below(2000)) - 20;
        ASSERT_EQ(cursor.SetExpiry(at)->expiry_ms(), at);
        model_[key].expiry = at;
        if (at <= now_ms_) model_.erase(key);
        break;
      }
      case 9: {
        if (cursor.Find() == nullptr) break;
        ASSERT_FALSE(cursor.ClearExpiry()->has(Entry::kHasExpiry));
        model_[key].expiry.reset();
        break;
      }
      case 10: {
        if (cursor.Find() == nullptr) break;
        Pin pin;
        pin.hard = random_.Chance(0.5);
        if (random_.Chance(0.5)) pin.until_ms = now_ms_ + static_cast<int64_t>(random_.Below(500));
        cursor.SetPin(pin);
        model_[key].pin = pin;
        break;
      }
      case 11: {
        if (cursor.Find() == nullptr) break;
        Value& model = model_[key];
        const bool cleared = cursor.ClearPin();
        if (!model.pin) {
          ASSERT_FALSE(cleared);
        }
        if (model.pin && model.pin->until_ms == 0) {
          ASSERT_TRUE(cleared);
        }
        model.pin.reset();
        break;
      }
    }
    ASSERT_NO_FATAL_FAILURE(Check(cursor));
  }

  void Rename() {
    const std::string from = Name(), to = Name();
    if (from == to) return;
    const std::array<std::string_view, 2> names = {from, to};
    KeysLock lock(store_.keyspace, names, now_ms_);
    ASSERT_NO_FATAL_FAILURE(Check(lock[0]));
    const Entry* entry = lock[0].Find();
    if (entry == nullptr) return;
    const std::string bytes = model_[from].bytes;
    const bool bulk = entry->has(Entry::kBulk);
    if (bulk) {
      lock[1].SetBulk(lock[0].TakeBulk());
    } else {
      lock[1].Set(bytes);
      ASSERT_TRUE(lock[0].Erase());
    }
    model_.erase(from);
    Put(to, bytes, bulk, false);
    ASSERT_NO_FATAL_FAILURE(Check(lock[0]));
    ASSERT_NO_FATAL_FAILURE(Check(lock[1]));
  }

  void MultiSet() {
    std::vector<std::string> keys(random_.Between(1, 12));
    for (std::string& key : keys) key = Name();
    const std::vector<std::string_view> names(keys.begin(), keys.end());
    KeysLock lock(store_.keyspace, names, now_ms_);
    for (size_t i = 0; i < keys.size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(Check(lock[i]));
      if (random_.Chance(0.2)) {
        ASSERT_EQ(lock[i].Erase(), model_.erase(keys[i]) == 1);
        continue;
      }
      const std::string bytes = Bytes(false);
      lock[i].Set(bytes);
      Put(keys[i], bytes, false, false);
    }
    for (size_t i = 0; i < keys.size(); ++i) ASSERT_NO_FATAL_FAILURE(Check(lock[i]));
  }

  // One key of the model is gone: which?
  void FindEvicted(bool bulk, bool ignore_soft_pins) {
    std::vector<std::string> gone;
    const std::vector<std::string> listed = store_.Keys(now_ms_, 1000);
    const std::set<std::string> there(listed.begin(), listed.end());
    for (const auto& [key, value] : model_) {
      if (there.count(key) == 0) gone.push_back(key);
    }
    ++evicted_;
    if (gone.empty()) return;  // one that had expired or was void
    ASSERT_EQ(gone.size(), 1u);
    const Value& value = model_[gone[0]];
    ASSERT_EQ(value.bulk, bulk);
    ASSERT_TRUE(!VolatileOnly(policy_) || value.expiry);
    if (value.pin && (value.pin->until_ms == 0 || value.pin->until_ms > now_ms_)) {
      ASSERT_TRUE(!value.pin->hard && ignore_soft_pins);
    }
    model_.erase(gone[0]);
  }
  void EvictInline() {
    const bool ignore = random_.Chance(0.5);
    const size_t bytes = store_.keyspace.EvictInline(now_ms_, ignore);
    if (bytes > 0) FindEvicted(false, ignore);
  }
  void EvictBulk() {
    const bool ignore = random_.Chance(0.5);
    const ValueRef victim = store_.bulk_policy.Victim();
    if (!victim) return;
    if (Evicted(store_.keyspace, *victim, now_ms_, ignore)) {
      FindEvicted(true, ignore);
    } else {
      store_.bulk_policy.Spare(victim);
    }
  }
  void MoveBulk() {
    const ValueRef value = store_.bulk_policy.Victim();
    if (!value) return;
    ValueRef moved = MakeBulk(*store_.pool, BytesOf(*value));
    if (moved) {
      ASSERT_TRUE(store_.keyspace.MoveBulk(*value, std::move(moved)));
    }
  }

  void Drop() {
    const std::string digit = std::to_string(random_.Below(10));
    const bool glob = random_.Chance(0.5);
    const std::string text = glob ? "*" + digit : "key:" + digit;
    if (!(glob ? store_.keyspace.VoidPattern(text) : store_.keyspace.VoidPrefix(text))) return;
    sweeping_ = true;
    std::erase_if(model_, [&](const auto& entry) {
      return glob ? protocol::GlobMatch(text, entry.first) : entry.first.rfind(text, 0) == 0;
    });
  }

  void CheckEverything() {
    const std::vector<std::string> listed = store_.Keys(now_ms_, random_.Between(1, 100));
    const std::set<std::string> there(listed.begin(), listed.end());
    ASSERT_EQ(there.size(), listed.size()) << "nothing changed, yet a key was seen twice";
    ASSERT_EQ(there.size(), model_.size());
    uint64_t expiring = 0, hard = 0, extents = 0, blocks = 0;
    for (const auto& [key, value] : model_) {
      ASSERT_EQ(there.count(key), 1u) << key;
      KeyLock lock(store_.keyspace, key, now_ms_);
      ASSERT_NO_FATAL_FAILURE(Check(lock.key));
      expiring += value.expiry.has_value();
      if (value.pin && value.pin->hard &&
          (value.pin->until_ms == 0 || value.pin->until_ms > now_ms_)) {
        hard += value.bytes.size();
      }
      if (value.bulk) extents += ExtentAllocator::RoundUp(value.bytes.size());
      blocks += lock.key.Find()->block_bytes();
    }
    if (sweeping_) return;
    // What had expired and what was void are really gone now, so everything can be counted.
    store_.keyspace.ExpireSome(kAll, now_ms_);
    store_.keyspace.ExpireSome(kAll, now_ms_);
    ASSERT_EQ(store_.keyspace.Size(), model_.size());
    ASSERT_EQ(store_.keyspace.ExpiringSize(), expiring);
    ASSERT_EQ(store_.keyspace.hard_pinned_bytes(), hard);
    ASSERT_EQ(store_.pool_budget.extent_bytes(), extents);
    const uint64_t heap = store_.heap_budget.inline_bytes();
    ASSERT_GE(heap, blocks + empty_bytes_);
    ASSERT_LE(heap, blocks + empty_bytes_ + Keyspace::kStripes * 64 + model_.size() * 24);
  }

  Random& random_;
  const uint64_t names_;
  Store store_;
  const uint64_t empty_bytes_;
  std::map<std::string, Value> model_;
  MaxmemoryPolicy policy_ = MaxmemoryPolicy::kAllKeysLru;
  int64_t now_ms_ = 1'000'000;
  bool sweeping_ = false;
  uint64_t evicted_ = 0;
};

void RunModel(uint64_t names, int steps) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Model model(random, names);
  for (int step = 0; step < steps; ++step) {
    ASSERT_NO_FATAL_FAILURE(model.Step()) << "step " << step;
  }
  ASSERT_NO_FATAL_FAILURE(model.Finish());
}

TEST(KeyspaceModelTest, FewKeys) {
  RunModel(12, Steps(100000));
}
TEST(KeyspaceModelTest, SomeKeys) {
  RunModel(300, Steps(100000));
}
TEST(KeyspaceModelTest, ManyKeys) {
  RunModel(20000, Steps(100000));
}

}  // namespace
}  // namespace moonpool::storage
