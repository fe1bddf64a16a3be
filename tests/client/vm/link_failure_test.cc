// NICs that fail while libmoonpool moves values over them.  Run last and alone: see
// tests/rdma/vm/link_failure_test.cc.
#include <cstdlib>
#include <sstream>

#include "tests/client/vm/server_process.h"

namespace moonpool::client::test {
namespace {

std::vector<std::string> Interfaces() {
  const char* const text = std::getenv("RDMA_NETDEVS");
  std::istringstream words(text == nullptr ? "" : text);
  std::vector<std::string> names;
  for (std::string name; words >> name;) names.push_back(name);
  return names;
}

bool TakeDown(const std::string& interface) {
  return std::system(("ip link set " + interface + " down").c_str()) == 0;
}

TEST(VmClientLinkFailure, OneNicThenTheOther) {
  const std::vector<std::string> interfaces = Interfaces();
  if (interfaces.size() != 2) GTEST_SKIP() << "two NICs that may be taken down are needed";
  ServerProcess server;
  auto client = server.Connect("timeout_ms=20000&connections=1");
  Block block(64 << 20);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillBytes(block.data(), block.size(), 1);
  ASSERT_TRUE(PutOne(*client, "k", block.data(), block.size()).ok());
  const auto get = [&] {
    std::memset(block.data(), 0, block.size());
    const KeyResult got = GetOne(*client, "k", block.data(), block.size());
    EXPECT_TRUE(got.ok()) << got.message;
    EXPECT_TRUE(AreBytes(block.data(), block.size(), 1));
    return got;
  };
  const uint64_t usual_ns = get().elapsed_ns;
  std::thread first([&] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(usual_ns / 3));
    EXPECT_TRUE(TakeDown(interfaces[1]));
  });
  EXPECT_EQ(get().transport, Transport::kRdma);
  first.join();
  EXPECT_EQ(get().transport, Transport::kRdma);
  const KeyResult put = PutOne(*client, "k", block.data(), block.size());
  EXPECT_TRUE(put.ok()) << put.message;
  EXPECT_EQ(put.transport, Transport::kRdma);
  EXPECT_EQ(client->stats().fallbacks, 0u);

  std::thread second([&] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(usual_ns / 3));
    EXPECT_TRUE(TakeDown(interfaces[0]));
  });
  get();
  second.join();
  EXPECT_EQ(get().transport, Transport::kTcp);
  EXPECT_GE(client->stats().fallbacks, 1u);
  EXPECT_TRUE(PutOne(*client, "k", block.data(), block.size()).ok());
  EXPECT_EQ(client->transport(), Transport::kTcp);
}

}  // namespace
}  // namespace moonpool::client::test
