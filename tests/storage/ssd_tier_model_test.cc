// Random work on both tiers against a model: what is served is the current version, or a miss where
// something may have been forgotten.
#include <gtest/gtest.h>

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

using test::Random;

// Sets of partitions under which nothing is lost that is not lost without them.
constexpr const char* kPartitions[] = {
    "",
    "one prefix=key:1 dram=0.2 ssd=0.1 compression=lz4; two prefix=key:2 admission=always",
    "two prefix=key:1 dram=0.5 admission=never; three prefix=key:2 compression=zstd",
    "one prefix=key:11 dram=0.05; two prefix=key:1 policy=allkeys-prefix; three prefix=key:3 dram=0.9",
    "four prefix=key: policy=allkeys-lfu admission=never compression=lz4; one prefix=key:4 ssd=1"};

// With a CXL tier and without.
class SsdTierModelTest : public testing::TestWithParam<bool> {};
class SsdTierThreadsTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Cxl, SsdTierModelTest, testing::Bool());
INSTANTIATE_TEST_SUITE_P(Cxl, SsdTierThreadsTest, testing::Bool());

TEST_P(SsdTierModelTest, RandomWork) {
  struct Known {
    uint64_t version;
    int64_t expiry_ms = 0;
    bool may_be_gone = false;
  };
  Random random;
  SCOPED_TRACE(random.Replay());
  TieredTenant t;
  t.tenant_options.quota_bytes = 12 * kMiB;
  t.options.write_through = random.Chance(0.3);
  if (GetParam()) t.UseCxl(8 * kMiB);
  t.Open();
  std::map<std::string, Known> model;
  uint64_t version = 0, served = 0, missed = 0;
  const auto check = [&](const std::string& name) {
    const auto known = model.find(name);
    const TieredTenant::Found found = t.Get(name, 0);
    ASSERT_EQ(found.error, SsdTier::LoadError::kNone) << name;
    if (!found.version) {
      ASSERT_TRUE(known == model.end() || known->second.may_be_gone) << name << " is gone";
      model.erase(name);  // and stays so
      ++missed;
      return;
    }
    ASSERT_NE(known, model.end()) << name << " came back as version " << *found.version;
    ASSERT_EQ(*found.version, known->second.version) << name;
    ASSERT_EQ(t.ExpiryOf(name), known->second.expiry_ms) << name;
    ++served;
  };
  const auto forget = [&] {
    for (auto& [name, known] : model) known.may_be_gone = true;
  };
  for (int step = 0; step < Steps(6000) && !testing::Test::HasFatalFailure(); ++step) {
    const std::string name = Numbered(random.Below(80));
    const uint64_t what = random.Below(1000);
    if (what < 250) {
      const bool cxl = GetParam() && random.Chance(0.2);
      t.Set(name, 0, ++version, random.Between(3, 40'000) * 8,
            cxl ? protocol::Tier::kCxl : protocol::Tier::kDram);
      model[name] = {version};
    } else if (what < 290) {
      const bool worth_it = random.Chance(0.5);
      t.SetSmall(name, 0, ++version, worth_it ? random.Between(512, 4000) * 8 : 64);
      model[name] = {version, 0, true};  // small values may go when memory is short
    } else if (what < 350) {
      const auto known = model.find(name);
      const bool was_there = t.Erase(name);
      ASSERT_TRUE(!was_there || known != model.end()) << name << " came back";
      ASSERT_TRUE(was_there || known == model.end() || known->second.may_be_gone) << name;
      model.erase(name);
    } else if (what < 400) {
      const bool dies = random.Chance(0.3);
      const int64_t at_ms = dies ? 1 : UnixNowMs() + 1'000'000 + step;
      if (t.Expire(name, at_ms)) {
        ASSERT_TRUE(model.count(name)) << name;
        dies ? void(model.erase(name)) : void(model[name].expiry_ms = at_ms);
      }
    } else if (what < 420) {
      if (t.Persist(name)) model.at(name).expiry_ms = 0;
    } else if (what < 460) {
      const std::string to = Numbered(random.Below(80));
      if (name != to && t.Rename(name, to)) {
        model[to] = model.at(name);
        model.erase(name);
      }
    } else if (what < 560) {
      t.BeginDemotion(name, random.Chance(0.2));
    } else if (what < 580) {
      t.Evict(name);
      if (model.count(name)) model[name].may_be_gone = true;
    } else if (what < 650) {
      t.tenant->Maintain(UnixNowMs());
    } else if (what < 655) {
      t.tenant->keyspace().Clear();
      model.clear();
    } else if (what < 660) {
      const std::string prefix = Numbered(random.Below(8));
      if (t.tenant->keyspace().VoidPrefix(prefix)) {
        std::erase_if(model, [&](const auto& entry) { return entry.first.starts_with(prefix); });
      }
    } else if (what < 663) {
      t.StopAndOpen();
    } else if (what < 667) {
      t.CrashAndOpen();
      forget();
    } else if (what < 675) {
      t.tenant_options.partitions = PartitionsOf(kPartitions[random.Below(std::size(kPartitions))]);
      t.tenant->keyspace().SetPartitions(t.tenant_options.partitions);
      if (random.Chance(0.2)) {
        t.Settle();
        ExpectExactCounts(t.tenant->keyspace(), UnixNowMs());
      }
    } else {
      check(name);
    }
  }
  for (uint64_t key = 0; key < 80; ++key) check(Numbered(key));
  EXPECT_EQ(t.stats().lost, 0u);
  EXPECT_GT(served, 20u);  // loads are slow under a sanitizer
  EXPECT_GT(missed, 10u);
  // Nothing leaks, and all was counted.
  t.Settle();
  ExpectExactCounts(t.tenant->keyspace(), UnixNowMs());
  t.tenant->keyspace().Clear();
  t.Settle();
  ExpectExactCounts(t.tenant->keyspace(), UnixNowMs());
  // Those who brought values up and down may still hold the last of them.
  EXPECT_TRUE(Eventually([&] { return t.tenant->budget().extent_bytes() == 0; }));
  EXPECT_TRUE(Eventually([&] { return t.tenant->cxl_budget().extent_bytes() == 0; }));
  EXPECT_EQ(t.stats().bytes, 0u);
}

// Keys of one thread: it alone changes them, so it knows what they may be.
class Owner {
 public:
  Owner(TieredTenant& t, int number, uint64_t seed) : t_(t), random_(seed) {
    for (uint64_t i = 0; i < 40; ++i) names_.push_back(std::to_string(number) + Numbered(i));
    versions_.resize(names_.size());
  }

  // Counts its steps in `done`.
  void Work(int steps, std::atomic<int>& done) {
    for (int step = 0; step < steps; ++step, ++done) {
      const size_t i = random_.Below(names_.size());
      const uint64_t what = random_.Below(100);
      if (what < 30) {
        t_.Set(names_[i], i, ++next_, random_.Between(3, 30'000) * 8);
        versions_[i] = next_;
      } else if (what < 35) {
        t_.SetSmall(names_[i], i, ++next_,
                    random_.Chance(0.5) ? 64 : random_.Between(512, 4000) * 8);
        versions_[i] = next_;
      } else if (what < 40) {
        t_.Erase(names_[i]);
        versions_[i] = 0;
      } else if (what < 43) {
        t_.Expire(names_[i], 1);
        versions_[i] = 0;
      } else if (what < 48) {
        t_.Expire(names_[i], UnixNowMs() + 1'000'000);
      } else if (what < 60) {
        t_.BeginDemotion(names_[i], what < 50);
      } else {
        Check(i);
      }
    }
  }
  void CheckAll() {
    for (size_t i = 0; i < names_.size(); ++i) Check(i);
  }
  uint64_t served() const { return served_; }
  uint64_t wrong() const { return wrong_; }

 private:
  void Check(size_t i) {
    const auto found = t_.Get(names_[i], i);
    if (found.version && *found.version != versions_[i]) ++wrong_;
    if (found.version) ++served_;
  }

  TieredTenant& t_;
  Random random_;
  std::vector<std::string> names_;
  std::vector<uint64_t> versions_;  // 0: none
  uint64_t next_ = 0, served_ = 0, wrong_ = 0;
};

TEST_P(SsdTierThreadsTest, WritersReadersEvictionAndFlushes) {
  Random random;
  SCOPED_TRACE(random.Replay());
  TieredTenant t;
  t.tenant_options.quota_bytes = 16 * kMiB;
  t.options.capacity_bytes = 24 * kMiB;
  if (GetParam()) t.UseCxl(8 * kMiB);
  t.upkeep_runs = true;
  t.Open();
  std::vector<Owner> owners;
  for (int i = 0; i < 3; ++i) owners.emplace_back(t, i, random.Next());
  for (int round = 0; round < 2; ++round) {
    {
      const Upkeep upkeep({t.tenant.get()});
      const int steps = Steps(2400);
      const int all = steps * static_cast<int>(owners.size());
      std::atomic<int> done{0};
      std::thread flushes([&, seed = random.Next()] {
        Random mine(seed);
        // Now and then by what was done, so that a slow machine has as much to serve.
        for (int next = 0; (next += static_cast<int>(mine.Between(50, 500))) < all;) {
          while (done < next) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          mine.Chance(0.5) ? void(t.tenant->keyspace().Clear())
                           : void(t.tenant->keyspace().VoidPattern("*:1?"));
          static_cast<void>(t.stats());
          // Also such under which values are dropped.
          constexpr const char* kSets[] = {
              "", "off prefix=1key: ssd=no; ttl prefix=2key: policy=volatile-lru",
              "a prefix=0key: dram=0.2 ssd=0.5; b prefix=1key: admission=never compression=lz4",
              "b prefix=2key:1 admission=always dram=0.7; a prefix=2key: policy=allkeys-prefix"};
          t.tenant->keyspace().SetPartitions(PartitionsOf(kSets[mine.Below(std::size(kSets))]));
        }
      });
      std::vector<std::thread> threads;
      for (Owner& owner : owners) threads.emplace_back([&] { owner.Work(steps, done); });
      for (std::thread& thread : threads) thread.join();
      flushes.join();
    }
    t.Settle();
    ExpectExactCounts(t.tenant->keyspace(), UnixNowMs());
    round == 0 ? t.StopAndOpen() : t.CrashAndOpen();
    const Upkeep upkeep({t.tenant.get()});
    for (Owner& owner : owners) {
      owner.CheckAll();
      EXPECT_EQ(owner.wrong(), 0u);
      EXPECT_GT(owner.served(), 10u);
    }
  }
  EXPECT_EQ(t.stats().lost, 0u);
}

}  // namespace
}  // namespace moonpool::storage
