// Processes that are killed; and the other family of addresses.
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <thread>

#include "tests/rdma/vm/fixture.h"
#include "tests/rdma/vm/peer_process.h"

namespace moonpool::rdma::test {
namespace {

using Clock = std::chrono::steady_clock;

class VmFailures : public VmTest {};

TEST_F(VmFailures, OverIpv6) {
  const char* const address = std::getenv("RDMA_ADDR6");
  if (address == nullptr) GTEST_SKIP() << "no IPv6 address is known";
  service_->BeginSession(1, pool_->memory());
  EndpointTarget target = Target(1);
  for (RemoteNic& nic : target.nics) {
    std::erase_if(nic.addresses, [](const std::string& a) { return a.find(':') == a.npos; });
  }
  LiveClient client(*client_nics_, target,
                    [&]() -> Result<Token> { return service_->IssueToken(1); });
  ASSERT_TRUE(client.endpoint().Open());
  EXPECT_NE(client.endpoint().lanes()[0].pair.find("fd77:"), std::string::npos);
  ClientBuffer buffer(1 << 20);
  const storage::ValueRef value = pool_->Put(1 << 20, 9);
  EXPECT_EQ(client.Read({{value->extent(), buffer.data()}})[0], Outcome::kDone);
  EXPECT_EQ(FirstWrong(buffer.data(), 1 << 20, 9), std::nullopt);
}

TEST_F(VmFailures, AClientIsKilled) {
  service_->BeginSession(5, pool_->memory());
  const storage::ValueRef value = pool_->Put(8 << 20, 5);
  PeerProcess peer({"read", std::to_string(service_->port()), std::to_string(kEpoch), "5",
                    TokenText(service_->IssueToken(5)), TokenText(service_->IssueToken(5)),
                    std::to_string(value->extent().region->id()),
                    std::to_string(value->extent().offset), std::to_string(value->length()),
                    std::to_string(value->extent().slot),
                    std::to_string(value->extent().generation)});
  ASSERT_EQ(peer.Line(), "reading");
  EXPECT_GE(service_->counters().lanes, 1u);
  peer.Kill();
  EXPECT_TRUE(WaitClosed(5));
  EXPECT_EQ(service_->counters().lanes, 0u);
  // Others are served as before.
  auto client = Connected(6);
  ClientBuffer buffer(8 << 20);
  EXPECT_EQ(client->Read({{value->extent(), buffer.data()}})[0], Outcome::kDone);
}

TEST_F(VmFailures, AServerIsKilled) {
  PeerProcess peer({"serve", std::to_string(kEpoch), "5"});
  const auto port = static_cast<uint16_t>(std::stoul(peer.Line()));
  std::vector<Token> tokens;
  for (int i = 0; i < 8; ++i) tokens.push_back(*ParseToken(peer.Line()));
  LiveClient::Want want;
  want.region = static_cast<uint32_t>(std::stoul(peer.Line()));
  want.offset = std::stoull(peer.Line());
  want.length = std::stoull(peer.Line());
  want.slot = static_cast<uint32_t>(std::stoul(peer.Line()));
  want.generation = std::stoull(peer.Line());
  EndpointTarget target = Target(5);
  target.port = port;
  LiveClient client(*client_nics_, target, [&]() -> Result<Token> {
    if (tokens.empty()) return Fail(ErrorCode::kUnavailable, "no token is left");
    const Token token = tokens.back();
    tokens.pop_back();
    return token;
  });
  const Status status = client.endpoint().Open();
  ASSERT_TRUE(status) << status.error().message;
  ClientBuffer buffer(want.length);
  want.to = buffer.data();
  ASSERT_EQ(client.Read({want})[0], Outcome::kDone) << client.error();
  EXPECT_EQ(FirstWrong(buffer.data(), want.length, 5), std::nullopt);
  std::thread kills([&] {
    usleep(30'000);
    peer.Kill();
  });
  // Reads go on until one finds nobody there, and that one does not take long.
  Outcome outcome = Outcome::kDone;
  Clock::time_point start;
  while (outcome == Outcome::kDone) {
    start = Clock::now();
    outcome = client.Read({want})[0];
  }
  kills.join();
  EXPECT_EQ(outcome, Outcome::kUnreachable);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(2));
  EXPECT_FALSE(client.endpoint().has_lane());
  // Nothing of it writes into the buffer any more.
  std::memset(buffer.data(), 0x55, want.length);
  usleep(50'000);
  for (uint64_t i = 0; i < want.length; ++i) ASSERT_EQ(buffer.data()[i], 0x55);
  client.endpoint().Repair();
  EXPECT_FALSE(client.endpoint().has_lane());
}

}  // namespace
}  // namespace moonpool::rdma::test
