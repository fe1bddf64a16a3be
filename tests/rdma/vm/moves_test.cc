// Bytes that the server moves: from a client's buffer into the pool, and back.
#include "tests/rdma/vm/fixture.h"

namespace moonpool::rdma::test {
namespace {

class VmMoves : public VmTest {
 protected:
  Outcome Move(const BufferTransfer& what) {
    std::optional<Outcome> outcome;
    service_->Move({what}, [&](auto outcomes, const std::string& why) {
      std::lock_guard lock(mu_);
      outcome = outcomes[0];
      why_ = why;
      changed_.notify_all();
    });
    std::unique_lock lock(mu_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(30), [&] { return outcome.has_value(); }));
    return outcome.value_or(Outcome::kPending);
  }
  std::string why_;
};

TEST_F(VmMoves, EverySizeBothWays) {
  auto client = Connected(1);
  ClientBuffer buffer(100'000'000);
  constexpr uint32_t kAccess = kRemoteRead | kRemoteWrite;
  const auto keys = Must(Registration::Create(client->domains(), buffer.data(), buffer.bytes(),
                                              kLocalWrite | kAccess, 64 << 20),
                         "buffer");
  ASSERT_TRUE(client->endpoint().Announce(6, *keys, kAccess));
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4096}, uint64_t{65537}, uint64_t{1} << 20,
                               uint64_t{3274752}, uint64_t{99'000'000}}) {
    SCOPED_TRACE(bytes);
    const uint64_t at = 99'999'000 - bytes;
    FillKnown(buffer.data() + at, bytes, bytes);
    storage::WriteHandle handle = Must(pool_->pool().Reserve(bytes), "Reserve");
    pool_->Export();
    const storage::Extent extent = handle.extent();
    ASSERT_EQ(
        Move({1, 6, at, extent.region->id(), handle.data(), bytes, Transfer::Direction::kRead}),
        Outcome::kDone)
        << why_;
    EXPECT_EQ(FirstWrong(handle.data(), bytes, bytes), std::nullopt);
    std::memset(buffer.data(), 0, bytes);
    ASSERT_EQ(
        Move({1, 6, 0, extent.region->id(), handle.data(), bytes, Transfer::Direction::kWrite}),
        Outcome::kDone)
        << why_;
    EXPECT_EQ(FirstWrong(buffer.data(), bytes, bytes), std::nullopt);
  }
  client->endpoint().Retract(6);
  storage::WriteHandle handle = Must(pool_->pool().Reserve(4096), "Reserve");
  EXPECT_EQ(Move({1, 6, 0, handle.extent().region->id(), handle.data(), 4096,
                  Transfer::Direction::kWrite}),
            Outcome::kNotThere);
}

TEST_F(VmMoves, ABufferLentForReadingIsNotWritten) {
  auto client = Connected(1);
  ClientBuffer buffer(8192);
  const auto keys = Must(Registration::Create(client->domains(), buffer.data(), buffer.bytes(),
                                              kLocalWrite | kRemoteRead),
                         "buffer");
  ASSERT_TRUE(client->endpoint().Announce(6, *keys, kRemoteRead));
  storage::WriteHandle handle = Must(pool_->pool().Reserve(4096), "Reserve");
  pool_->Export();
  std::memset(buffer.data(), 0x44, 8192);
  const Outcome outcome = Move(
      {1, 6, 0, handle.extent().region->id(), handle.data(), 4096, Transfer::Direction::kWrite});
  EXPECT_TRUE(outcome == Outcome::kNotThere || outcome == Outcome::kUnreachable);
  for (int i = 0; i < 8192; ++i) ASSERT_EQ(buffer.data()[i], 0x44);
}

}  // namespace
}  // namespace moonpool::rdma::test
