#include "storage/prefix_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "storage/chain_nodes.h"
#include "storage/reuse_times.h"
#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;
using Keys = std::vector<uint64_t>;

// A cache of so many items under the policy, driven as the server drives it.
class Cache {
 public:
  explicit Cache(size_t capacity) : capacity_(capacity), policy_(MakePrefixPolicy()) {}

  // A request; returns how many of its leading keys were there.
  size_t Request(const Keys& keys) {
    policy_->Batch(keys, BatchKind::kRead);
    Keys missed;
    size_t prefix = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto found = items_.find(keys[i]);
      if (found == items_.end()) {
        missed.push_back(keys[i]);
        continue;
      }
      prefix += prefix == i;
      policy_->Access(found->second.get());
    }
    policy_->Batch(missed, BatchKind::kWrite);
    for (const uint64_t key : missed) Insert(key);
    return prefix;
  }
  void Insert(uint64_t key) {
    if (items_.contains(key)) return;
    while (items_.size() >= capacity_) EvictOne();
    auto item = std::make_unique<PolicyItem>();
    item->key_hash = key;
    item->policy_bytes = 65536;
    policy_->Insert(item.get());
    items_.emplace(key, std::move(item));
  }
  uint64_t EvictOne() {
    PolicyItem* victim = policy_->Victim();
    const uint64_t key = victim->key_hash;
    policy_->Remove(victim, true);
    items_.erase(key);
    return key;
  }
  bool Has(uint64_t key) const { return items_.contains(key); }
  PolicyItem* item(uint64_t key) { return items_.at(key).get(); }
  EvictionPolicy& policy() { return *policy_; }

 private:
  const size_t capacity_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::map<uint64_t, std::unique_ptr<PolicyItem>> items_;
};

Keys Chain(uint64_t first, size_t length) {
  Keys keys(length);
  for (size_t i = 0; i < length; ++i) keys[i] = first + i;
  return keys;
}

TEST(PrefixPolicyTest, TailsGoBeforeHeads) {
  Cache cache(1000);
  for (const uint64_t first : {100, 200, 300}) cache.Request(Chain(first, 50));
  std::map<uint64_t, uint64_t> last;
  for (int i = 0; i < 150; ++i) {
    const uint64_t key = cache.EvictOne();
    uint64_t& above = last.try_emplace(key / 100, 50).first->second;
    EXPECT_EQ(key % 100, above - 1);
    above = key % 100;
  }
}

TEST(PrefixPolicyTest, ASharedStartStaysWhileAnyBranchDoes) {
  Cache cache(1000);
  const Keys start = Chain(1, 10);
  for (const uint64_t branch : {100, 200, 300}) {
    Keys keys = start;
    for (const uint64_t key : Chain(branch, 5)) keys.push_back(key);
    cache.Request(keys);
  }
  for (int i = 0; i < 15; ++i) EXPECT_GE(cache.EvictOne(), 100u);
  for (uint64_t key = 10; key > 0; --key) EXPECT_EQ(cache.EvictOne(), key);
}

TEST(PrefixPolicyTest, ASparedTailLetsItsHeadGo) {
  Cache cache(100);
  cache.Request(Chain(1, 3));
  cache.policy().Spare(cache.item(3));
  EXPECT_EQ(cache.policy().Victim(), cache.item(2));
  cache.policy().Spare(cache.item(2));
  EXPECT_EQ(cache.policy().Victim(), cache.item(1));
  cache.policy().Spare(cache.item(1));
  EXPECT_EQ(cache.policy().Victim(), cache.item(3));
}

TEST(PrefixPolicyTest, KeysThatFollowDifferentKeysAreNoChain) {
  Cache cache(100);
  cache.Request({1, 2, 3});
  cache.Request({3, 2, 1});
  cache.Request({2, 9, 1});
  std::set<uint64_t> evicted;
  for (int i = 0; i < 4; ++i) evicted.insert(cache.EvictOne());
  EXPECT_EQ(evicted, (std::set<uint64_t>{1, 2, 3, 9}));
}

TEST(PrefixPolicyTest, SuccessorsAreTheUsualNextKeys) {
  Cache cache(100);
  cache.Request({1, 2, 3, 4, 5});
  cache.Request({1, 2, 3, 7, 8});
  cache.Request({1, 2, 3, 7, 8});
  cache.Request({1, 2, 3, 7, 8});
  Keys next(10);
  EXPECT_EQ(cache.policy().Successors(1, next), 4u);
  next.resize(4);
  EXPECT_EQ(next, (Keys{2, 3, 7, 8}));
  EXPECT_EQ(cache.policy().Successors(8, next), 0u);
  EXPECT_EQ(cache.policy().Successors(99, next), 0u);
  EXPECT_EQ(cache.policy().Successors(1, {}), 0u);
}

TEST(PrefixPolicyTest, LearnsWhichChainsComeBack) {
  // Long prompts are never seen again, short ones once more after 180 others: a queue of this
  // size forgets them in time.
  Cache cache(600);
  uint64_t next = 1, hits = 0, asked = 0;
  std::vector<Keys> returning;
  for (int i = 0; i < 6000; ++i) {
    cache.Request(Chain(next, 20));
    next += 20;
    returning.push_back(Chain(next, 2));
    cache.Request(returning.back());
    next += 2;
    if (i < 60) continue;
    const size_t found = cache.Request(returning[static_cast<size_t>(i) - 60]);
    if (i < 3000) continue;
    hits += found;
    asked += 2;
  }
  EXPECT_GT(static_cast<double>(hits) / static_cast<double>(asked), 0.9);
}

TEST(PrefixPolicyTest, ALookAReadAndAWriteAreOneUse) {
  // The same requests through MATCH, LOCATE and ALLOC must teach about the same as through LOCATE.
  Random random(20240609);
  Cache plain(50), looked(50);
  size_t hits = 0, hits_looked = 0;
  for (int i = 0; i < 3000; ++i) {
    const Keys keys = Chain(random.Below(40) * 100, random.Between(2, 8));
    hits += plain.Request(keys);
    looked.policy().Batch(keys, BatchKind::kLook);
    hits_looked += looked.Request(keys);
  }
  EXPECT_NEAR(static_cast<double>(hits_looked), static_cast<double>(hits),
              0.1 * static_cast<double>(hits));
}

TEST(PrefixPolicyTest, TheSameCallsChooseTheSameVictims) {
  for (const int sizes : {1, 2}) {
    Cache a(40), b(40);
    for (uint64_t i = 0; i < 2000; ++i) {
      const Keys keys = Chain(i * 7919 % 50 * 100, 3 + i % 5 * static_cast<uint64_t>(sizes));
      ASSERT_EQ(a.Request(keys), b.Request(keys));
    }
  }
}

// --- what it rests on ----------------------------------------------------------------------------

TEST(ChainNodesTest, FindsWhatIsKnownAndForgetsTheOldest) {
  Random random;
  SCOPED_TRACE(random.Replay());
  ChainNodes nodes;
  std::map<uint64_t, PolicyItem> cached;
  uint64_t next = 1;
  for (int step = 0; step < Steps(100000); ++step) {
    const uint64_t key = random.Chance(0.7) ? next++ : random.Between(1, next);
    NodeIndex index = nodes.Find(key * 0x9e3779b97f4a7c15);
    if (index == kNoNode) {
      index = nodes.Add(key * 0x9e3779b97f4a7c15);
      if (const NodeIndex parent = nodes.Find((key - 1) * 0x9e3779b97f4a7c15); parent != kNoNode) {
        nodes.SetParent(index, nodes.ParentAfter(index, parent));
      }
    }
    ASSERT_EQ(nodes.Find(key * 0x9e3779b97f4a7c15), index);
    ASSERT_EQ(nodes[index].key_hash, key * 0x9e3779b97f4a7c15);
    if (nodes[index].item == nullptr && random.Chance(0.2)) {
      nodes.MakeCached(index, &cached[key], ChainNode::kLeaf);
    } else if (nodes[index].item != nullptr) {
      nodes.MakeGhost(index);
      cached.erase(key);
    }
    ASSERT_EQ(nodes.cached(), cached.size());
    ASSERT_LE(nodes.ghosts(), std::max<size_t>(2 * nodes.cached(), 16384) + 1);
    ASSERT_LE(nodes.size(), 2 * (nodes.cached() + nodes.ghosts()));
  }
  for (const auto& [key, item] : cached) {
    const NodeIndex index = nodes.Find(key * 0x9e3779b97f4a7c15);
    ASSERT_NE(index, kNoNode);
    EXPECT_EQ(nodes[index].item, &item);
  }
}

TEST(ReuseTimesTest, AgesCoverAllTimes) {
  for (uint32_t ticks = 0; ticks < 100000; ++ticks) {
    const size_t age = ReuseTimes::AgeOf(ticks);
    ASSERT_LE(ReuseTimes::AgeStart(age), ticks);
    ASSERT_GT(ReuseTimes::AgeStart(age + 1), ticks);
  }
  EXPECT_EQ(ReuseTimes::AgeOf(UINT32_MAX), ReuseTimes::kAges - 1);
}

TEST(ReuseTimesTest, WhatComesBackSoonerIsWorthMore) {
  // Class 20 after 10 ticks, class 10 after 100, class 2 never.
  ReuseTimes times;
  std::map<uint32_t, std::vector<uint32_t>> ends;
  for (uint32_t now = 1; now < 20000; ++now) {
    times.Advance(now, 8, [](uint32_t, uint32_t) {});
    for (const uint32_t ticket : ends[now]) times.End(ticket, now);
    ends.erase(now);
    ends[now + 10].push_back(times.Begin(20, now, 0));
    ends[now + 100].push_back(times.Begin(10, now, 0));
    times.Begin(2, now, 0);
  }
  EXPECT_NEAR(times.Worth(20, 0), 0.1, 0.03);
  EXPECT_GT(times.Worth(20, 0), 5 * times.Worth(10, 0));
  EXPECT_GT(times.Worth(10, 0), 5 * times.Worth(2, 0));
  // The nearer the time, the dearer; past it there is nothing to wait for.
  EXPECT_GT(times.Worth(10, 64), 1.5 * times.Worth(10, 0));
  EXPECT_LT(times.Worth(20, 300), times.Worth(20, 0) / 5);
}

}  // namespace
}  // namespace moonpool::storage
