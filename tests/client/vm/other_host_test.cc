// A server on another host, whose URL is in MOONPOOL_URL.
#include <cstdlib>

#include "tests/client/stamped_block.h"
#include "tests/client/vm/server_process.h"

namespace moonpool::client::test {
namespace {

TEST(VmOtherHost, AutoTakesRdma) {
  const char* const url = std::getenv("MOONPOOL_URL");
  if (url == nullptr) GTEST_SKIP() << "MOONPOOL_URL names no server";
  std::unique_ptr<Client> client;
  // It may be about to start.
  ASSERT_TRUE(Eventually([&] { return Client::Connect(url, {}, &client).ok(); }));
  EXPECT_EQ(client->transport(), Transport::kRdma) << client->stats().rdma_error;
  Block from(8 << 20), into(8 << 20);
  ASSERT_TRUE(client->RegisterBuffer(from.data(), from.size()).ok());
  ASSERT_TRUE(client->RegisterBuffer(into.data(), into.size()).ok());
  for (uint64_t version = 1; version <= 20; ++version) {
    const size_t bytes = version % 2 == 0 ? from.size() : 70'000 + version * 8;
    FillStamped(from.data(), bytes, {1, version});
    const KeyResult put = PutOne(*client, "k", from.data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Transport::kRdma);
    const KeyResult got = GetOne(*client, "k", into.data(), into.size());
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kRdma);
    Stamp stamp;
    EXPECT_EQ(CheckStamped(into.data(), got.bytes, 1, &stamp), "");
    EXPECT_EQ(stamp.version, version);
  }
  EXPECT_EQ(client->stats().fallbacks, 0u);
  EXPECT_EQ(client->stats().attach_failures, 0u);
}

}  // namespace
}  // namespace moonpool::client::test
