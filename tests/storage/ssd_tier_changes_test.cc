// Every change of values in every place where they may be, and what a crash leaves of it: the
// current version or none, never an older one.
#include <gtest/gtest.h>

#include <string>

#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using Where = TieredTenant::Where;

enum class State { kMemory, kQueued, kOnSsd, kClean, kLoading };

std::string NameOf(const testing::TestParamInfo<State>& info) {
  constexpr const char* kNames[] = {"Memory", "Queued", "OnSsd", "Clean", "Loading"};
  return kNames[static_cast<size_t>(info.param)];
}

constexpr uint64_t kKeys = 10;

class SsdTierChangesTest : public testing::TestWithParam<State> {
 protected:
  // Version 1 of every key, in that state.
  void SetUp() override {
    t.Open();
    for (uint64_t key = 0; key < kKeys; ++key) t.Set(Numbered(key), key, 1);
    if (GetParam() == State::kMemory) return;
    if (GetParam() == State::kQueued) {
      t.disk->payload.writes_held = true;
      t.Set("first", 100, 1, 4 * kMiB - 4096);  // more than the write buffers take
      ASSERT_EQ(t.BeginDemotion("first"), SsdTier::Taken::kYes);
      ASSERT_TRUE(Eventually([&] { return t.disk->payload.waiting > 0; }));
      for (uint64_t key = 0; key < kKeys; ++key) {
        ASSERT_EQ(t.BeginDemotion(Numbered(key)), SsdTier::Taken::kYes);
      }
      ASSERT_EQ(t.stats().queued_values, kKeys + 1);
      return;
    }
    for (uint64_t key = 0; key < kKeys; ++key) t.MoveDown(Numbered(key));
    t.StopAndOpen();  // what is on the SSD survives a crash now
    if (GetParam() == State::kLoading) t.disk->payload.reads_held = true;
    for (uint64_t key = 0; key < kKeys; ++key) {
      if (GetParam() == State::kClean) {
        ASSERT_EQ(t.Get(Numbered(key), key).version, 1u);
      }
      if (GetParam() != State::kLoading) continue;
      const std::string name = Numbered(key);
      KeyLock lock(t.tenant->keyspace(), name, UnixNowMs());
      t.tier().Load(lock.key.hash(), lock.key.Find()->place(), SsdTier::Why::kWanted, nullptr);
    }
    if (GetParam() == State::kLoading) {
      ASSERT_TRUE(Eventually([&] { return t.disk->payload.waiting > 0; }));
    }
  }

  void LetGo() {
    t.disk->payload.writes_held = false;
    t.disk->payload.reads_held = false;
    t.Settle();
  }
  // What is durable must be served, the rest may.
  bool Durable() const { return GetParam() == State::kOnSsd || GetParam() == State::kLoading; }
  void IsVersion(const std::string& name, uint64_t key, uint64_t version, bool must) {
    const auto found = t.Get(name, key).version;
    if (must) {
      EXPECT_TRUE(found) << name;
    }
    if (found) {
      EXPECT_EQ(*found, version) << name;
    }
  }
  void IsGone(const std::string& name) { EXPECT_EQ(t.WhereIs(name), Where::kNowhere) << name; }

  TieredTenant t;
};

TEST_P(SsdTierChangesTest, OfOneKey) {
  const int64_t later_ms = UnixNowMs() + 1'000'000;
  t.Set(Numbered(0), 0, 2);
  t.SetSmall(Numbered(1), 1, 2);
  ASSERT_TRUE(t.Erase(Numbered(2)));
  ASSERT_TRUE(t.Expire(Numbered(3), 1));
  ASSERT_TRUE(t.Expire(Numbered(4), later_ms));
  ASSERT_TRUE(t.Expire(Numbered(5), later_ms));
  ASSERT_TRUE(t.Persist(Numbered(5)));
  ASSERT_TRUE(t.Rename(Numbered(6), "renamed"));
  ASSERT_TRUE(t.Rename(Numbered(7), Numbered(8)));
  const auto check = [&](bool must_large, bool must_small, bool must) {
    IsVersion(Numbered(0), 0, 2, must_large);
    IsVersion(Numbered(1), 1, 2, must_small);
    IsGone(Numbered(2));
    IsGone(Numbered(3));
    IsVersion(Numbered(4), 4, 1, must);
    if (must) {
      EXPECT_EQ(t.ExpiryOf(Numbered(4)), later_ms);
    }
    IsVersion(Numbered(5), 5, 1, must);
    EXPECT_EQ(t.ExpiryOf(Numbered(5)), 0);
    IsGone(Numbered(6));
    IsVersion("renamed", 6, 1, must);
    IsGone(Numbered(7));
    IsVersion(Numbered(8), 7, 1, must);
    IsVersion(Numbered(9), 9, 1, must);
  };
  LetGo();
  check(true, true, true);
  t.CrashAndOpen();
  check(false, false, Durable());
  t.StopAndOpen();
  check(false, false, Durable());
  EXPECT_EQ(t.stats().lost, 0u);
}

TEST_P(SsdTierChangesTest, Twice) {
  // Each change is followed by one that must not bring back what was before the first.
  for (uint64_t key = 0; key < kKeys; ++key) {
    if (key % 2 == 0) {
      t.Set(Numbered(key), key, 2);
    } else {
      ASSERT_TRUE(t.Erase(Numbered(key)));
    }
  }
  LetGo();
  for (uint64_t key = 0; key < kKeys; ++key) {
    if (key % 2 == 0) t.MoveDown(Numbered(key));
    if (key % 4 == 0) {
      ASSERT_TRUE(t.Erase(Numbered(key)));
    }
    if (key % 4 == 2) {
      ASSERT_TRUE(t.Expire(Numbered(key), UnixNowMs() + 1'000'000));
    }
    if (key % 4 == 3) t.Set(Numbered(key), key, 3);
  }
  for (int round = 0; round < 2; ++round) {
    for (uint64_t key = 0; key < kKeys; ++key) {
      if (key % 4 < 2) IsGone(Numbered(key));
      if (key % 4 >= 2) IsVersion(Numbered(key), key, key % 4 == 2 ? 2 : 3, round == 0);
    }
    t.CrashAndOpen();
  }
}

TEST_P(SsdTierChangesTest, OfAllKeys) {
  t.tenant->keyspace().Clear();
  t.Set(Numbered(0), 0, 2);
  LetGo();
  t.MoveDown(Numbered(0));
  EXPECT_EQ(t.stats().versions, 1u);
  EXPECT_EQ(t.stats().bytes, kLength);
  for (int round = 0; round < 2; ++round) {
    IsVersion(Numbered(0), 0, 2, round == 0);
    for (uint64_t key = 1; key < kKeys; ++key) IsGone(Numbered(key));
    t.CrashAndOpen();
  }
}

TEST_P(SsdTierChangesTest, OfAllThatMatch) {
  ASSERT_TRUE(t.tenant->keyspace().VoidPattern("key:[0-7]"));
  t.Set(Numbered(0), 0, 2);
  t.Set(Numbered(1), 1, 2);
  LetGo();
  t.MoveDown(Numbered(0));
  EXPECT_TRUE(t.tier().log().Sync(kPatience.count()));
  for (int round = 0; round < 3; ++round) {
    for (uint64_t key = 0; key < 2; ++key) IsVersion(Numbered(key), key, 2, round == 0);
    for (uint64_t key = 2; key < 8; ++key) IsGone(Numbered(key));
    for (uint64_t key = 8; key < kKeys; ++key) {
      IsVersion(Numbered(key), key, 1, Durable() || GetParam() == State::kClean || round == 0);
    }
    if (round == 1) {
      while (t.tenant->keyspace().SweepVoids(UnixNowMs())) {
      }
    }
    t.CrashAndOpen();
  }
}

INSTANTIATE_TEST_SUITE_P(Everywhere, SsdTierChangesTest,
                         testing::Values(State::kMemory, State::kQueued, State::kOnSsd,
                                         State::kClean, State::kLoading),
                         NameOf);

TEST(SsdTierCrashTest, AVoidThatWasNotSweptHoldsAcrossACrash) {
  TieredTenant t;
  t.Open();
  for (uint64_t key = 0; key < 10; ++key) {
    t.Set(Numbered(key), key, 1);
    t.MoveDown(Numbered(key));
  }
  t.StopAndOpen();
  ASSERT_TRUE(t.tenant->keyspace().VoidPrefix("key:"));
  t.CrashAndOpen();
  EXPECT_EQ(t.tier().recovery().voided, 10u);
  EXPECT_EQ(t.tenant->keyspace().Size(), 0u);
  t.CrashAndOpen();
  EXPECT_EQ(t.tier().recovery().versions, 0u);
}

}  // namespace
}  // namespace moonpool::storage
