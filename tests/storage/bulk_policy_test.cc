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

}  // namespace
}  // namespace moonpool::storage
