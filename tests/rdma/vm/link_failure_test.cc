// A NIC that fails while bytes move over it.
//
// Run last and alone: soft-RoCE's own queue pair for connection requests does not survive its link
// going down (Linux 6.12), so that the device is of no further use.  That a NIC comes back is
// tested on the double (session_test.cc).
#include <cstdlib>
#include <thread>

#include "tests/rdma/vm/fixture.h"

namespace moonpool::rdma::test {
namespace {

using Clock = std::chrono::steady_clock;

class VmLinkFailure : public VmTest {};

// The network interface of the second device; empty where there is none that may be taken down.
std::string SecondInterface() {
  const char* const text = std::getenv("RDMA_NETDEVS");
  if (text == nullptr) return {};
  const std::string names = text;
  const size_t blank = names.find(' ');
  return blank == std::string::npos ? "" : names.substr(blank + 1);
}

void SetLink(const std::string& interface, const std::string& state) {
  ASSERT_EQ(std::system(("ip link set " + interface + " " + state).c_str()), 0);
}

TEST_F(VmLinkFailure, OneOfTwoNicsInMidTransfer) {
  const std::string interface = SecondInterface();
  if (interface.empty()) GTEST_SKIP() << "there is no second NIC that may be taken down";
  auto client = Connected(1);
  ASSERT_TRUE(RepairAll(client->endpoint(), 2));
  ClientBuffer buffer(64 << 20);
  ASSERT_TRUE(client->cache().Declare(buffer.data(), buffer.bytes()));
  const storage::ValueRef value = pool_->Put(buffer.bytes(), 8);
  const LiveClient::Want want(value->extent(), buffer.data());
  const auto read = [&] {
    std::memset(buffer.data(), 0, buffer.bytes());
    const auto start = Clock::now();
    EXPECT_EQ(client->Read({want})[0], Outcome::kDone) << client->error();
    const auto took = Clock::now() - start;
    EXPECT_EQ(FirstWrong(buffer.data(), buffer.bytes(), 8), std::nullopt);
    return std::chrono::duration<double, std::milli>(took).count();
  };
  read();
  const double before = read();
  for (const LaneInfo& lane : client->endpoint().lanes()) EXPECT_GT(lane.bytes, 1u << 20);
  std::thread failure([&] {
    usleep(static_cast<useconds_t>(before * 1000 / 3));
    SetLink(interface, "down");
  });
  const double during = read();
  failure.join();
  const double after = read();
  std::printf("64 MiB: %.0f ms over two, %.0f ms while one failed, %.0f ms over the other\n",
              before, during, after);
  RecordProperty("recovery_ms", static_cast<int>(during - before));
  EXPECT_LT(during - std::max(before, after), 2000);
  EXPECT_EQ(OpenLanes(client->endpoint()), 1u);
  SetLink(interface, "up");
}

}  // namespace
}  // namespace moonpool::rdma::test
