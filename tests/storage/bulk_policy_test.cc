#include "storage/bulk_policy.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

class BulkPolicyTest : public testing::Test {
 protected:
  // A chain of values, linked.
  void SetUp() override {
    for (uint64_t i = 0; i < 4; ++i) {
      values_.push_back(MakeBulk(*pool_, std::string(5000, 'x')));
      values_.back()->set_owner_hash(100 + i);
      policy_.Link(values_.back().get(), 0);
      hashes_.push_back(100 + i);
    }
  }
  void TearDown() override {
    for (const ValueRef& value : values_) policy_.Unlink(value.get(), false);
  }
  // What follows the first key of the chain, as far as it was learned.
  size_t Learned() {
    uint64_t next[3];
    return policy_.Successors(hashes_[0], next);
  }

  MemoryBudget budget_{64 * kMiB};
  std::unique_ptr<ExtentPool> pool_ = MakePool(SmallPool(), &budget_);
  BulkPolicy policy_{MaxmemoryPolicy::kAllKeysPrefix};
  std::vector<ValueRef> values_;
  std::vector<uint64_t> hashes_;
};

TEST_F(BulkPolicyTest, BatchesAreLearnedFrom) {
  EXPECT_TRUE(policy_.wants_batches());
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(policy_.NoteBatch(hashes_, BatchKind::kRead));
  EXPECT_EQ(Learned(), 3u);
}

TEST_F(BulkPolicyTest, OfTooManyReadsASampleIsLearnedFrom) {
  policy_.set_learn_rate(1);  // the first takes until long after the test
  EXPECT_TRUE(policy_.NoteBatch(hashes_, BatchKind::kRead));
  EXPECT_EQ(Learned(), 3u);
  const std::vector<uint64_t> others = {7, 8, 9};
  for (const BatchKind kind : {BatchKind::kRead, BatchKind::kLook}) {
    EXPECT_FALSE(policy_.NoteBatch(others, kind));
  }
  uint64_t next[3];
  EXPECT_EQ(policy_.Successors(7, next), 0u);
  // Single keys are no batch, and what is written is always learned from.
  EXPECT_TRUE(policy_.NoteBatch(std::span(others).first(1), BatchKind::kRead));
  EXPECT_TRUE(policy_.NoteBatch(others, BatchKind::kWrite));
  EXPECT_EQ(policy_.Successors(7, next), 2u);
  policy_.set_learn_rate(0);
  EXPECT_TRUE(policy_.NoteBatch(others, BatchKind::kRead));
}

// --- values that came up cold --------------------------------------------------------------------

class ColdValuesTest : public testing::TestWithParam<MaxmemoryPolicy> {
 protected:
  void TearDown() override {
    for (const ValueRef& value : values_) policy_.Unlink(value.get(), false);
  }
  BulkValue* Link(bool cold) {
    values_.push_back(MakeBulk(*pool_, std::string(5000, 'x')));
    values_.back()->set_owner_hash(values_.size());
    policy_.Link(values_.back().get(), 0, 0, cold);
    return values_.back().get();
  }
  void Touch(BulkValue* value) {
    BulkValue* const read[] = {value};
    policy_.Touch(read);
  }

  MemoryBudget budget_{64 * kMiB};
  std::unique_ptr<ExtentPool> pool_ = MakePool(SmallPool(), &budget_);
  BulkPolicy policy_{GetParam()};
  std::vector<ValueRef> values_;
};

TEST_P(ColdValuesTest, TheOldestGoesFirstUnlessItIsReadAgain) {
  Link(false);
  BulkValue* const first = Link(true);
  BulkValue* const second = Link(true);
  EXPECT_EQ(policy_.Victim(0, BulkPolicy::Among::kCold).get(), first);
  Touch(first);
  EXPECT_EQ(policy_.Victim(0, BulkPolicy::Among::kCold).get(), second);
  policy_.Spare(ValueRef::Share(second));
  EXPECT_EQ(policy_.Victim(0, BulkPolicy::Among::kCold).get(), second);  // there is no other
  policy_.Unlink(second, true);
  EXPECT_FALSE(policy_.Victim(0, BulkPolicy::Among::kCold));
  // The one that was read is among the others now.
  policy_.Unlink(values_[0].get(), false);
  EXPECT_EQ(policy_.Victim(0).get(), first);
}

TEST_P(ColdValuesTest, LoadsReplaceThemFromHalfTheShareOnOthersAboveIt) {
  policy_.set_cold_share(0.2);
  for (int i = 0; i < 80; ++i) Link(false);
  int cold = 0;
  const auto expect = [&](bool load, bool others) {
    EXPECT_EQ(policy_.ColdFirst(0, true), load) << cold;
    EXPECT_EQ(policy_.ColdFirst(0, false), others) << cold;
  };
  for (; cold < 20; ++cold) {
    const double share = cold / (80.0 + cold);
    expect(share > 0.1, share > 0.2);
    Link(true);
  }
  expect(true, false);  // a fifth
  BulkValue* const last = Link(true);
  expect(true, true);
  Touch(last);
  expect(true, false);
  policy_.set_cold_share(1);
  expect(false, false);
  policy_.set_cold_share(0);
  expect(true, true);
}

TEST_P(ColdValuesTest, TheyMoveAndChangePoliciesLikeOthers) {
  BulkValue* const cold = Link(true);
  Link(false);
  ValueRef moved = MakeBulk(*pool_, std::string(5000, 'x'));
  policy_.Replace(cold, moved.get());
  EXPECT_EQ(policy_.Victim(0, BulkPolicy::Among::kCold).get(), moved.get());
  policy_.Unlink(cold, false);  // which is linked no more
  EXPECT_TRUE(policy_.ColdFirst(0, false));
  policy_.Change(MaxmemoryPolicy::kAllKeysLru);
  EXPECT_FALSE(policy_.Victim(0, BulkPolicy::Among::kCold));
  EXPECT_FALSE(policy_.Victim(0));
  EXPECT_FALSE(policy_.ColdFirst(0, true));
  policy_.Change(MaxmemoryPolicy::kAllKeysLru, 3);
  policy_.Assign(moved.get(), 3);
  policy_.Link(moved.get(), 0, 0, true);
  EXPECT_EQ(policy_.Victim(3, BulkPolicy::Among::kCold).get(), moved.get());
  EXPECT_FALSE(policy_.Victim(0, BulkPolicy::Among::kCold));
  policy_.Assign(moved.get(), 0);
  EXPECT_FALSE(policy_.ColdFirst(3, true));
}

INSTANTIATE_TEST_SUITE_P(All, ColdValuesTest,
                         testing::Values(MaxmemoryPolicy::kAllKeysLru, MaxmemoryPolicy::kAllKeysLfu,
                                         MaxmemoryPolicy::kAllKeysS3Fifo,
                                         MaxmemoryPolicy::kAllKeysPrefix,
                                         MaxmemoryPolicy::kAllKeysRandom,
                                         MaxmemoryPolicy::kVolatileTtl));

}  // namespace
}  // namespace moonpool::storage
