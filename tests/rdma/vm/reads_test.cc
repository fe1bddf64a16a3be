// Reads of every size, alone and in batches, every byte checked.
#include "tests/rdma/vm/fixture.h"

namespace moonpool::rdma::test {
namespace {

class VmReads : public VmTest {};

constexpr uint64_t kSizes[] = {
    1,    2,     7,     8,      63,      64,      100,     1000,           4095,     4096,
    4097, 65535, 65536, 100000, 1 << 20, 1048577, 3274752, (16 << 20) + 3, 33554432, 100'000'000};

TEST_F(VmReads, EverySizeAlone) {
  auto client = Connected(1);
  ClientBuffer buffer(100'000'064);
  ASSERT_TRUE(client->cache().Declare(buffer.data(), buffer.bytes()));
  for (const uint64_t bytes : kSizes) {
    SCOPED_TRACE(bytes);
    const storage::ValueRef value = pool_->Put(bytes, bytes);
    std::memset(buffer.data(), 0x11, bytes + 64);
    EXPECT_EQ(client->Read({{value->extent(), buffer.data()}})[0], Outcome::kDone)
        << client->error();
    EXPECT_EQ(FirstWrong(buffer.data(), bytes, bytes), std::nullopt);
    for (uint64_t i = bytes; i < bytes + 64; ++i) ASSERT_EQ(buffer.data()[i], 0x11);
  }
}

TEST_F(VmReads, EverySizeIntoMemoryThatIsNotRegistered) {
  auto client = Connected(1);
  ClientBuffer buffer(100'000'000);
  for (const uint64_t bytes : kSizes) {
    SCOPED_TRACE(bytes);
    const storage::ValueRef value = pool_->Put(bytes, bytes);
    EXPECT_EQ(client->Read({{value->extent(), buffer.data()}})[0], Outcome::kDone)
        << client->error();
    EXPECT_EQ(FirstWrong(buffer.data(), bytes, bytes), std::nullopt);
  }
  EXPECT_GT(client->endpoint().counters().staged_bytes, 0u);
}

TEST_F(VmReads, InBatches) {
  auto client = Connected(1);
  for (const uint64_t bytes : {uint64_t{100}, uint64_t{4096}, uint64_t{200'000}}) {
    constexpr size_t kCount = 128;
    const uint64_t each = (bytes + 4095) / 4096 * 4096;
    ClientBuffer buffer(kCount * each);
    ASSERT_TRUE(client->cache().Declare(buffer.data(), buffer.bytes()));
    std::vector<storage::ValueRef> values;
    std::vector<LiveClient::Want> wants;
    for (size_t i = 0; i < kCount; ++i) {
      values.push_back(pool_->Put(bytes, 1000 + i));
      // Not in the order of the pool.
      wants.push_back({values.back()->extent(), buffer.data() + (i * 37 % kCount) * each});
    }
    const auto outcomes = client->Read(wants);
    for (size_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(outcomes[i], Outcome::kDone) << client->error();
      ASSERT_EQ(FirstWrong(wants[i].to, bytes, 1000 + i), std::nullopt) << i;
    }
    ASSERT_TRUE(client->cache().Withdraw(buffer.data()));
  }
}

TEST_F(VmReads, AValueThatIsGoneIsSeen) {
  auto client = Connected(1);
  ClientBuffer buffer(1 << 20);
  storage::ValueRef value = pool_->Put(1 << 20, 5);
  const storage::Extent old = value->extent();
  EXPECT_EQ(client->Read({{old, buffer.data()}})[0], Outcome::kDone) << client->error();
  value.Reset();
  EXPECT_EQ(client->Read({{old, buffer.data()}})[0], Outcome::kChanged);
  // Also when its memory has another value by then.
  value = pool_->Put(1 << 20, 6);
  EXPECT_EQ(client->Read({{old, buffer.data()}})[0], Outcome::kChanged);
  EXPECT_EQ(client->Read({{value->extent(), buffer.data()}})[0], Outcome::kDone);
}

}  // namespace
}  // namespace moonpool::rdma::test
