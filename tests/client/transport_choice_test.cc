// Which transport a client takes, and what it says when it cannot have the one it was told to.
// RDMA itself is tested in tests/client/vm, where there are NICs.
#include <filesystem>

#include "tests/client/live_server.h"

namespace moonpool::client {
namespace {

bool HasRdma() {
  return std::filesystem::exists("/dev/infiniband");
}

TEST(TransportChoice, RdmaWithoutANicIsAnErrorWithItsCure) {
  if (HasRdma()) GTEST_SKIP() << "this machine has RDMA";
  LiveServer server;
  std::unique_ptr<Client> client;
  const Status status = Client::Connect(server.Url("transport=rdma"), {}, &client);
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_TRUE(status.message.starts_with("no RDMA: ")) << status.message;
  EXPECT_TRUE(status.message.find("load the NIC's driver") != std::string::npos ||
              status.message.find("-DMOONPOOL_RDMA=ON") != std::string::npos)
      << status.message;
  EXPECT_EQ(client, nullptr);
}

TEST(TransportChoice, AutoTakesSharedMemoryAndOpensNoNic) {
  LiveServer server;
  auto client = server.Connect();
  const std::string value(100'000, 'x');
  ASSERT_TRUE(client->Set("k", value).ok());
  EXPECT_EQ(client->transport(), Transport::kShm);
  const Stats stats = client->stats();
  EXPECT_EQ(stats.shm.values_written, 1u);
  EXPECT_EQ(stats.rdma.values_written + stats.rdma_failures + stats.rdma_registered_bytes, 0u);
  EXPECT_EQ(stats.rdma_error, "");
}

TEST(TransportChoice, AutoGoesOverTcpWhereNothingElseIs) {
  if (HasRdma()) GTEST_SKIP() << "this machine has RDMA";
  LiveServer server({{"shm", "no"}});
  auto client = server.Connect();
  std::string value(100'000, 'x'), got;
  ASSERT_TRUE(client->RegisterBuffer(value.data(), value.size()).ok());
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Get("k", &got).ok());
  EXPECT_TRUE(got == value);
  EXPECT_EQ(client->transport(), Transport::kTcp);
  EXPECT_EQ(client->stats().tcp.values_read, 1u);
  EXPECT_TRUE(client->UnregisterBuffer(value.data()).ok());
  EXPECT_EQ(client->UnregisterBuffer(value.data()).code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace moonpool::client
