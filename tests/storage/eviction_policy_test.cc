#include "storage/eviction_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;
using Make = std::unique_ptr<EvictionPolicy> (*)();

std::unique_ptr<PolicyItem> Item(uint64_t key, uint64_t bytes = 4096) {
  auto item = std::make_unique<PolicyItem>();
  item->key_hash = key;
  item->policy_bytes = bytes;
  item->rank = key;  // the deadline, for TTL
  return item;
}

std::unique_ptr<EvictionPolicy> NewPrefixPolicy() { return MakePrefixPolicy(); }

// Takes victims until none is left.
std::vector<uint64_t> Drain(EvictionPolicy& policy) {
  std::vector<uint64_t> order;
  while (PolicyItem* item = policy.Victim()) {
    order.push_back(item->key_hash);
    policy.Remove(item, true);
  }
  return order;
}

// --- what every policy must do -------------------------------------------------------------------

class EveryPolicyTest : public testing::TestWithParam<std::pair<const char*, Make>> {
 protected:
  std::unique_ptr<EvictionPolicy> policy_ = GetParam().second();
};

TEST_P(EveryPolicyTest, VictimsAreItemsAndAllItemsAreVictims) {
  Random random;
  SCOPED_TRACE(random.Replay());
  std::map<uint64_t, std::unique_ptr<PolicyItem>> items;
  uint64_t next = 1;
  const auto pick = [&]() -> PolicyItem* {
    auto it = items.lower_bound(random.Below(next));
    if (it == items.end()) it = items.begin();
    return it->second.get();
  };
  for (int step = 0; step < Steps(200000); ++step) {
    const size_t size = items.size();
    if (random.Chance(0.1)) {
      // Batches of keys there, gone, and yet to come, in any order and twice.
      std::vector<uint64_t> keys(random.Between(1, 12));
      for (uint64_t& key : keys) key = random.Between(1, next + 5);
      policy_->Batch(keys, random.Pick(std::vector{BatchKind::kLook, BatchKind::kRead,
                                                   BatchKind::kWrite}));
    }
    switch (random.Below(8)) {
      case 0:
      case 1: {
        if (size > 200) break;
        auto item = Item(next++, random.Between(1, 100) * 4096);
        policy_->Insert(item.get());
        items.emplace(item->key_hash, std::move(item));
        break;
      }
      case 2:
        if (size > 0) policy_->Access(pick());
        break;
      case 3: {
        if (size == 0) break;
        PolicyItem* item = pick();
        const uint64_t key = item->key_hash;
        policy_->Remove(item, false);
        items.erase(key);
        break;
      }
      case 4: {
        PolicyItem* victim = policy_->Victim();
        ASSERT_EQ(victim != nullptr, size > 0);
        if (victim == nullptr) break;
        const auto found = items.find(victim->key_hash);
        ASSERT_NE(found, items.end());
        ASSERT_EQ(found->second.get(), victim);
        if (random.Chance(0.5)) {
          policy_->Remove(victim, true);
          items.erase(found);
        }
        break;
      }
      case 5:
      case 6:
        if (PolicyItem* victim = policy_->Victim()) policy_->Spare(victim);
        break;
      case 7: {
        if (size == 0) break;
        PolicyItem* item = pick();
        auto replacement = std::make_unique<PolicyItem>();
        const uint64_t key = item->key_hash;
        policy_->Replace(item, replacement.get());
        ASSERT_EQ(replacement->key_hash, key);
        ASSERT_EQ(replacement->policy_bytes, item->policy_bytes);
        items[key] = std::move(replacement);
        break;
      }
    }
  }
  std::set<uint64_t> expected, drained;
  for (const auto& [key, item] : items) expected.insert(key);
  for (const uint64_t key : Drain(*policy_)) EXPECT_TRUE(drained.insert(key).second);
  EXPECT_EQ(drained, expected);
}

TEST_P(EveryPolicyTest, ASparedItemComesBackOnlyAfterTheOthers) {
  // Tenant relies on it: it looks for a value that may go until it meets the first one again.
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < 300; ++round) {
    const std::unique_ptr<EvictionPolicy> policy = GetParam().second();
    std::vector<std::unique_ptr<PolicyItem>> items;
    for (uint64_t i = random.Between(1, 40); i > 0; --i) {
      items.push_back(Item(i));
      policy->Insert(items.back().get());
    }
    // Some are used much, some little; some have been spared, moved or evicted before.
    for (uint64_t i = random.Below(200); i > 0; --i) {
      policy->Access(items[std::min(random.Below(items.size()), random.Below(items.size()))].get());
    }
    for (uint64_t i = random.Below(30); i > 0; --i) policy->Spare(policy->Victim());
    // An eviction ends such a round, and so does having met everybody.
    for (int again = 0; again < 4 && !items.empty(); ++again) {
      if (again % 2 == 0) {
        PolicyItem* evicted = policy->Victim();
        policy->Remove(evicted, true);
        std::erase_if(items, [&](const auto& item) { return item.get() == evicted; });
      }
      std::set<PolicyItem*> seen;
      while (seen.size() < items.size()) {
        PolicyItem* victim = policy->Victim();
        ASSERT_TRUE(seen.insert(victim).second)
            << "met again after " << seen.size() << " of " << items.size();
        policy->Spare(victim);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryPolicyTest,
                         testing::Values(std::pair{"Lru", &MakeLruPolicy},
                                         std::pair{"Lfu", &MakeLfuPolicy},
                                         std::pair{"S3Fifo", &MakeS3FifoPolicy},
                                         std::pair{"Prefix", &NewPrefixPolicy},
                                         std::pair{"Random", &MakeRandomPolicy},
                                         std::pair{"Ttl", &MakeTtlPolicy}),
                         [](const auto& test) { return std::string(test.param.first); });

// --- each by its own rule ------------------------------------------------------------------------

TEST(LruPolicyTest, ExactOrder) {
  Random random;
  SCOPED_TRACE(random.Replay());
  const auto policy = MakeLruPolicy();
  std::list<PolicyItem*> model;  // newest first
  std::vector<std::unique_ptr<PolicyItem>> items;
  for (int step = 0; step < Steps(100000); ++step) {
    const auto pick = [&] {
      auto it = model.begin();
      std::advance(it, static_cast<int64_t>(random.Below(model.size())));
      return it;
    };
    switch (random.Below(5)) {
      case 0:
        if (model.size() >= 50) break;
        items.push_back(Item(static_cast<uint64_t>(step)));
        policy->Insert(items.back().get());
        model.push_front(items.back().get());
        break;
      case 1:
      case 2: {
        if (model.empty()) break;
        const auto it = pick();
        policy->Access(*it);
        model.splice(model.begin(), model, it);
        break;
      }
      case 3: {
        if (model.empty()) break;
        const auto it = pick();
        policy->Remove(*it, random.Chance(0.5));
        model.erase(it);
        break;
      }
      case 4: {
        if (model.empty()) break;
        const auto it = pick();
        items.push_back(std::make_unique<PolicyItem>());
        policy->Replace(*it, items.back().get());
        *it = items.back().get();
        break;
      }
    }
    ASSERT_EQ(policy->Victim(), model.empty() ? nullptr : model.back());
  }
}

TEST(TtlPolicyTest, NearestDeadlineFirst) {
  Random random;
  SCOPED_TRACE(random.Replay());
  const auto policy = MakeTtlPolicy();
  std::vector<std::unique_ptr<PolicyItem>> items;
  std::vector<uint64_t> deadlines;
  for (int i = 0; i < 1000; ++i) {
    items.push_back(Item(random.Below(500)));
    policy->Insert(items.back().get());
    deadlines.push_back(items.back()->rank);
  }
  for (int i = 0; i < 100; ++i) policy->Access(items[random.Below(items.size())].get());
  std::sort(deadlines.begin(), deadlines.end());
  EXPECT_EQ(Drain(*policy), deadlines);
}

TEST(RandomPolicyTest, NobodyIsPreferred) {
  constexpr int kItems = 20, kRounds = 4000;
  const auto policy = MakeRandomPolicy();
  std::vector<std::unique_ptr<PolicyItem>> items;
  for (uint64_t i = 0; i < kItems; ++i) {
    items.push_back(Item(i));
    policy->Insert(items.back().get());
  }
  std::map<PolicyItem*, int> times;
  for (int round = 0; round < kRounds; ++round) {
    PolicyItem* victim = policy->Victim();
    ++times[victim];
    policy->Remove(victim, true);
    policy->Insert(victim);
  }
  for (const auto& item : items) {
    EXPECT_GT(times[item.get()], kRounds / kItems / 2);
    EXPECT_LT(times[item.get()], kRounds / kItems * 2);
  }
}

TEST(LfuPolicyTest, LeastUsedFirstAndOldestAmongEquals) {
  const auto policy = MakeLfuPolicy();
  std::vector<std::unique_ptr<PolicyItem>> items;
  for (uint64_t i = 0; i < 100; ++i) {
    items.push_back(Item(i));
    policy->Insert(items.back().get());
  }
  for (uint64_t i = 0; i < 100; ++i) {
    for (uint64_t uses = 0; uses < i % 3; ++uses) policy->Access(items[i].get());
  }
  std::vector<uint64_t> expected;
  for (uint64_t uses = 0; uses < 3; ++uses) {
    for (uint64_t i = uses; i < 100; i += 3) expected.push_back(i);
  }
  EXPECT_EQ(Drain(*policy), expected);
}

TEST(LfuPolicyTest, YesterdaysFavouritesLeave) {
  const auto policy = MakeLfuPolicy();
  std::vector<std::unique_ptr<PolicyItem>> items;
  for (uint64_t i = 0; i < 100; ++i) {
    items.push_back(Item(i));
    policy->Insert(items.back().get());
  }
  for (int use = 0; use < 1000; ++use) policy->Access(items[0].get());
  for (int round = 0; round < 100; ++round) {
    for (uint64_t i = 1; i < 100; ++i) policy->Access(items[i].get());
  }
  EXPECT_EQ(policy->Victim(), items[0].get());
}

// --- hit ratios ----------------------------------------------------------------------------------

// A Zipf distribution over `keys` keys (exponent 1), from a table.
class Zipf {
 public:
  explicit Zipf(size_t keys) {
    double sum = 0;
    for (size_t i = 1; i <= keys; ++i) {
      sum += 1.0 / static_cast<double>(i);
      cumulative_.push_back(sum);
    }
  }
  uint64_t operator()(Random& random) const {
    const double u = random.Uniform() * cumulative_.back();
    return static_cast<uint64_t>(std::upper_bound(cumulative_.begin(), cumulative_.end(), u) -
                                 cumulative_.begin());
  }

 private:
  std::vector<double> cumulative_;
};

// Serves `requests` from a cache of `capacity` items; returns the share of hits.
double HitRatio(EvictionPolicy& policy, const std::vector<uint64_t>& requests, size_t capacity,
                const std::function<bool(uint64_t)>& counted) {
  std::unordered_map<uint64_t, std::unique_ptr<PolicyItem>> cache;
  uint64_t hits = 0, total = 0;
  for (const uint64_t key : requests) {
    const auto found = cache.find(key);
    if (counted(key)) {
      ++total;
      hits += found != cache.end();
    }
    if (found != cache.end()) {
      policy.Access(found->second.get());
      continue;
    }
    while (cache.size() >= capacity) {
      PolicyItem* victim = policy.Victim();
      const uint64_t victim_key = victim->key_hash;
      policy.Remove(victim, true);
      cache.erase(victim_key);
    }
    auto item = Item(key);
    policy.Insert(item.get());
    cache.emplace(key, std::move(item));
  }
  return static_cast<double>(hits) / static_cast<double>(total);
}

TEST(HitRatioTest, S3FifoResistsAScanWhereLruDoesNot) {
  // Popular keys, interrupted by long runs of keys that nobody asks for again.
  constexpr uint64_t kKeys = 10000, kScanKey = 1'000'000;
  constexpr size_t kCapacity = 1000;
  Random random(20240607);
  const Zipf zipf(kKeys);
  std::vector<uint64_t> requests;
  uint64_t scanned = kScanKey;
  for (int round = 0; round < 40; ++round) {
    for (int i = 0; i < 5000; ++i) requests.push_back(zipf(random));
    for (int i = 0; i < 3000; ++i) requests.push_back(++scanned);
  }
  const auto popular = [](uint64_t key) { return key < kScanKey; };
  const double lru = HitRatio(*MakeLruPolicy(), requests, kCapacity, popular);
  const double s3fifo = HitRatio(*MakeS3FifoPolicy(), requests, kCapacity, popular);
  const double lfu = HitRatio(*MakeLfuPolicy(), requests, kCapacity, popular);
  const double any = HitRatio(*MakeRandomPolicy(), requests, kCapacity, popular);
  std::printf("hits: lru %.3f, s3fifo %.3f, lfu %.3f, random %.3f\n", lru, s3fifo, lfu, any);
  EXPECT_GT(s3fifo, lru + 0.05);
  EXPECT_GT(lfu, lru + 0.05);
  EXPECT_GT(s3fifo, 0.6);
}

TEST(HitRatioTest, NobodyIsWorseThanRandomWithoutAScan) {
  Random random(20240608);
  const Zipf zipf(10000);
  std::vector<uint64_t> requests(100000);
  for (uint64_t& key : requests) key = zipf(random);
  const auto all = [](uint64_t) { return true; };
  const double lru = HitRatio(*MakeLruPolicy(), requests, 1000, all);
  const double s3fifo = HitRatio(*MakeS3FifoPolicy(), requests, 1000, all);
  const double lfu = HitRatio(*MakeLfuPolicy(), requests, 1000, all);
  const double any = HitRatio(*MakeRandomPolicy(), requests, 1000, all);
  std::printf("hits: lru %.3f, s3fifo %.3f, lfu %.3f, random %.3f\n", lru, s3fifo, lfu, any);
  EXPECT_GT(lru, any);
  EXPECT_GT(s3fifo, lru);
  EXPECT_GT(lfu, any);
}

}  // namespace
}  // namespace moonpool::storage
