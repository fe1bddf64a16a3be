// Several threads on one keyspace; meant for ThreadSanitizer as well.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

// Values say whose they are: "<key>|<filler>".
std::string ValueFor(std::string_view key, size_t size) {
  std::string value = std::string(key) + "|";
  if (value.size() < size) value.resize(size, static_cast<char>('a' + size % 26));
  return value;
}
bool Belongs(std::string_view value, std::string_view key) {
  if (value.size() <= key.size() || value.substr(0, key.size()) != key) return false;
  const size_t size = value.size();
  if (value[key.size()] != '|') return false;
  for (const char c : value.substr(key.size() + 1)) {
    if (c != static_cast<char>('a' + size % 26)) return false;
  }
  return true;
}

class Threads {
 public:
  ~Threads() { Join(); }
  template <typename Body>
  void Start(Body&& body) {
    threads_.emplace_back(std::forward<Body>(body));
  }
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

TEST(KeyspaceThreadsTest, EverythingAtOnce) {
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  Store store(MaxmemoryPolicy::kAllKeysPrefix, 32 * kMiB, 64 * kMiB);
  Keyspace& keyspace = store.keyspace;
  constexpr uint64_t kNames = 500;
  constexpr int kWorkers = 3;
  const int kSteps = Steps(400000);
  std::atomic<int64_t> now_ms{1'000'000};
  std::atomic<int> working{kWorkers};
  std::atomic<uint64_t> wrong{0}, read{0}, evicted{0};
  const auto name = [](Random& random) { return "key:" + std::to_string(random.Below(kNames)); };
  const auto check = [&](const Entry* entry, std::string_view key) {
    if (entry == nullptr) return;
    read.fetch_add(1, std::memory_order_relaxed);
    if (entry->key() != key || !Belongs(ValueOf(*entry), key)) wrong.fetch_add(1);
  };

  Threads threads;
  for (int t = 0; t < kWorkers; ++t) {
    threads.Start([&, seed = seeds.Next()] {
      Random random(seed);
      for (int step = 0; step < kSteps; ++step) {
        const int64_t now = now_ms.fetch_add(1, std::memory_order_relaxed);
        const std::string key = name(random);
        const uint64_t action = random.Below(20);
        if (action == 0) {
          ValueRef value = MakeBulk(*store.pool, ValueFor(key, random.Between(10, 9000)));
          if (!value) continue;
          KeyLock lock(keyspace, key, now);
          lock.key.SetBulk(std::move(value), random.Chance(0.5));
          continue;
        }
        if (action == 1) {  // rename
          const std::string to = name(random);
          if (to == key) continue;
          const std::array<std::string_view, 2> names = {key, to};
          KeysLock lock(keyspace, names, now);
          const Entry* entry = lock[0].Find();
          check(entry, key);
          if (entry == nullptr || entry->has(Entry::kBulk)) continue;  // it names its key
          lock[1].Set(ValueFor(to, entry->value_bytes));
          lock[0].Erase();
          continue;
        }
        if (action == 2) {
          std::vector<std::string> keys(random.Between(2, 8));
          for (std::string& k : keys) k = name(random);
          const std::vector<std::string_view> names(keys.begin(), keys.end());
          KeysLock lock(keyspace, names, now);
          for (size_t i = 0; i < lock.size(); ++i) {
            check(lock[i].Read(), keys[i]);
            lock[i].Set(ValueFor(keys[i], random.Below(60)));
          }
          continue;
        }
        ValueRef held;
        {
          KeyLock lock(keyspace, key, now);
          switch (action) {
            case 3:
            case 4:
            case 5:
            case 6:
              lock.key.Set(ValueFor(key, random.Below(300)), random.Chance(0.5));
              break;
            case 7:
              lock.key.Erase();
              break;
            case 8:
              if (lock.key.Find()) {
                lock.key.SetExpiry(now + static_cast<int64_t>(random.Below(3000)));
              }
              break;
            case 9:
              if (lock.key.Find()) lock.key.ClearExpiry();
              break;
            case 10:
              if (lock.key.Find())
                lock.key.SetPin({.until_ms = now + 100, .hard = random.Chance(0.5)});
              break;
            case 11:
              if (lock.key.Find()) lock.key.ClearPin();
              break;
            default: {
              const Entry* entry = lock.key.Read();
              check(entry, key);
              if (entry != nullptr && entry->has(Entry::kBulk)) {
                held = ValueRef::Share(entry->bulk());
              }
            }
          }
        }
        if (held) {
          // Whatever happens to the key, these bytes stay.
          if (!Belongs(BytesOf(*held), key)) wrong.fetch_add(1);
          BulkValue* const touched[] = {held.get()};
          keyspace.Touch(touched);
        }
      }
      working.fetch_sub(1);
    });
  }
  threads.Start([&, seed = seeds.Next()] {  // what the upkeep thread does, and more
    Random random(seed);
    while (working > 0) {
      const int64_t now = now_ms;
      keyspace.ExpireSome(20, now);
      keyspace.SweepVoids(now);
      if (ValueRef victim = store.bulk_policy.Victim()) {
        switch (random.Below(3)) {
          case 0:
            evicted += Evicted(keyspace, *victim, now, random.Chance(0.5));
            break;
          case 1:
            if (ValueRef moved = MakeBulk(*store.pool, BytesOf(*victim))) {
              keyspace.MoveBulk(*victim, std::move(moved));
            }
            break;
          case 2:
            store.bulk_policy.Spare(victim);
            break;
        }
      }
      if (random.Chance(0.1)) keyspace.EvictInline(now, false);
    }
  });
  threads.Start([&, seed = seeds.Next()] {  // commands on all keys
    Random random(seed);
    uint64_t cursor = 0;
    while (working > 0) {
      const int64_t now = now_ms;
      switch (random.Below(2000)) {  // the rare ones disturb everything else
        case 0:
          keyspace.Clear();
          break;
        case 1:
          keyspace.VoidPattern("*" + std::to_string(random.Below(10)));
          break;
        case 2:
          keyspace.VoidPrefix("key:" + std::to_string(random.Below(10)));
          break;
        case 3:
          keyspace.SetPolicy(random.Chance(0.5) ? MaxmemoryPolicy::kAllKeysLru
                                                : MaxmemoryPolicy::kVolatileTtl);
          break;
        case 4:
        case 5:
        case 6:
        case 7:
          (void)keyspace.RandomKey(now);
          break;
        case 8:
          EXPECT_LE(keyspace.Size(), kNames);
          EXPECT_LE(keyspace.ExpiringSize(), kNames);
          break;
        default: {
          std::vector<std::string> keys;
          cursor = keyspace.Scan(cursor, 50, now, &keys);
          keyspace.PrefetchBucket(random.Next());
          keyspace.PrefetchEntry(random.Next());
        }
      }
    }
  });
  threads.Join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(read, 1000u);
  EXPECT_GT(evicted, 0u);

  // No account has drifted.
  keyspace.Clear();
  EXPECT_EQ(keyspace.Size(), 0u);
  EXPECT_EQ(keyspace.ExpiringSize(), 0u);
  EXPECT_EQ(keyspace.hard_pinned_bytes(), 0u);
  EXPECT_EQ(store.pool_budget.extent_bytes(), 0u);
  EXPECT_FALSE(store.bulk_policy.Victim());
  EXPECT_LE(store.heap_budget.inline_bytes(), Keyspace::kStripes * 64);
}

TEST(KeyspaceThreadsTest, LocksOfSeveralKeysMakeOneStep) {
  // Pairs of keys change together or not at all, whichever way round they are named.
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  Store store;
  constexpr uint64_t kPairs = 8;
  const int kSteps = Steps(100000);
  std::atomic<uint64_t> torn{0};
  std::atomic<uint64_t> sum{0};
  Threads threads;
  for (int t = 0; t < 4; ++t) {
    threads.Start([&, seed = seeds.Next()] {
      Random random(seed);
      for (int step = 0; step < kSteps; ++step) {
        const std::string pair = std::to_string(random.Below(kPairs));
        const std::string a = "a" + pair, b = "b" + pair;
        std::vector<std::string_view> names = {a, b};
        if (random.Chance(0.5)) std::swap(names[0], names[1]);
        KeysLock lock(store.keyspace, names, 1);
        const Entry* first = lock[0].Find();
        const Entry* second = lock[1].Find();
        const std::string before = first == nullptr ? "0" : std::string(first->value());
        if ((first == nullptr) != (second == nullptr) ||
            (second != nullptr && second->value() != before)) {
          torn.fetch_add(1);
        }
        if (random.Chance(0.5)) {
          const std::string after = std::to_string(std::stoull(before) + 1);
          lock[0].Set(after);
          lock[1].Set(after);
          sum.fetch_add(1);
        }
      }
    });
  }
  threads.Join();
  EXPECT_EQ(torn, 0u);
  uint64_t total = 0;
  for (uint64_t i = 0; i < kPairs; ++i) total += std::stoull(*store.Get("a" + std::to_string(i)));
  EXPECT_EQ(total, sum);
}

TEST(KeyspaceThreadsTest, AVoidIsCompleteWhenTheCallReturns) {
  // A reader that starts after VoidPrefix returned never sees an older value, however far the
  // sweep is; and a sweep never takes what was written after the void.
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  Store store;
  Keyspace& keyspace = store.keyspace;
  constexpr uint64_t kNames = 200;
  std::atomic<uint64_t> began{0}, ended{0};  // voids, one after the other
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> stale{0}, lost{0}, seen{0};
  Threads threads;
  for (int t = 0; t < 2; ++t) {
    threads.Start([&, t, seed = seeds.Next()] {
      Random random(seed);
      // Each thread has names of its own, and knows when it wrote them: before which void.
      std::array<uint64_t, kNames> written_before{};
      while (!stop) {
        const uint64_t n = random.Below(kNames);
        const std::string key = "name:" + std::to_string(t) + ":" + std::to_string(n);
        uint64_t ended_before = ended;
        if (store.Has(key)) {
          seen.fetch_add(1);
          if (ended_before > written_before[n]) stale.fetch_add(1);
        }
        ended_before = ended;
        const uint64_t began_before = began;
        store.Set(key, "value");
        written_before[n] = began;
        const bool there = store.Has(key);
        const bool quiet = began_before == ended_before && began == began_before;
        if (!there && quiet) lost.fetch_add(1);
      }
    });
  }
  threads.Start([&] {
    while (!stop) keyspace.SweepVoids(1);
  });
  const int voids = Steps(1000);
  for (int i = 0; i < voids; ++i) {
    began.fetch_add(1);
    while (!keyspace.VoidPrefix("name:")) std::this_thread::yield();
    ended.fetch_add(1);
    const uint64_t had = seen;
    if (!Eventually([&] { return seen > had; })) {
      ADD_FAILURE() << "the readers see nothing any more";
      break;
    }
  }
  stop = true;
  threads.Join();
  EXPECT_EQ(lost, 0u);
  EXPECT_EQ(stale, 0u);
}

TEST(BulkPolicyThreadsTest, LinkUnlinkTouchReplaceChange) {
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  MemoryBudget budget(64 * kMiB);
  const auto pool = MakePool(SmallPool(), &budget);
  BulkPolicy policy(MaxmemoryPolicy::kAllKeysLru);
  constexpr int kWorkers = 3;
  const int kSteps = Steps(60000);
  std::atomic<int> working{kWorkers};
  std::atomic<uint64_t> victims{0};
  Threads threads;
  for (int t = 0; t < kWorkers; ++t) {
    threads.Start([&, seed = seeds.Next()] {
      Random random(seed);
      // Each thread plays the entries of some keys.
      std::array<ValueRef, 20> values;
      // On a machine that has much to do the thread that takes victims may begin last.
      for (int step = 0; step < kSteps || victims == 0; ++step) {
        ValueRef& value = values[random.Below(values.size())];
        if (!value) {
          value = MakeBulk(*pool, "value");
          value->set_owner_hash(random.Next());
          policy.Link(value.get(), static_cast<int64_t>(random.Below(1000)));
          continue;
        }
        switch (random.Below(5)) {
          case 0:
            policy.Unlink(value.get(), random.Chance(0.5));
            value.Reset();
            break;
          case 1: {
            ValueRef replacement = MakeBulk(*pool, "moved");
            policy.Replace(value.get(), replacement.get());
            value = std::move(replacement);
            break;
          }
          case 2:
            policy.Link(value.get(), 5);  // after a Change it may be missing
            break;
          default: {
            BulkValue* const touched[] = {value.get(), value.get()};
            policy.Touch(touched);
          }
        }
      }
      for (ValueRef& value : values) {
        if (value) policy.Unlink(value.get(), false);
      }
      working.fetch_sub(1);
    });
  }
  threads.Start([&, seed = seeds.Next()] {
    Random random(seed);
    while (working > 0) {
      if (ValueRef victim = policy.Victim()) {
        victims.fetch_add(1);
        EXPECT_TRUE(BytesOf(*victim) == "value" || BytesOf(*victim) == "moved");
        policy.Spare(victim);
      }
      if (random.Chance(0.02)) {
        const MaxmemoryPolicy policies[] = {
            MaxmemoryPolicy::kAllKeysLru, MaxmemoryPolicy::kAllKeysLfu,
            MaxmemoryPolicy::kAllKeysS3Fifo, MaxmemoryPolicy::kAllKeysPrefix,
            MaxmemoryPolicy::kAllKeysRandom,
            MaxmemoryPolicy::kVolatileTtl};
        policy.Change(policies[random.Below(std::size(policies))]);
      }
    }
  });
  threads.Join();
  EXPECT_GT(victims, 0u);
  EXPECT_FALSE(policy.Victim());
  EXPECT_EQ(budget.extent_bytes(), 0u);
}

}  // namespace
}  // namespace moonpool::storage
