// Device memory (of the host double) of a client that has values over RDMA (on the double of NICs).
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/gpu_devices.h"
#include "gpu/host_device.h"
#include "tests/client/rdma_rig.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {
namespace {

class GpuOverRdma : public RdmaTransportTest {
 protected:
  GpuOverRdma() : devices_(gpu::MakeHostDevices()) {
    ReplaceGpuDevices({devices_[0].get()});
    StartServer({{"maxmemory", "512mb"}});
    client = Connect();
  }
  ~GpuOverRdma() override {
    client = nullptr;
    server_ = nullptr;
    ReplaceGpuDevices({});
  }
  // All poison.
  std::unique_ptr<gpu::DeviceBlock> Room(size_t bytes) {
    auto block = devices_[0]->NewDeviceBlock(bytes);
    EXPECT_TRUE(block);
    std::memset((*block)->data(), 0xa5, bytes);
    return std::move(*block);
  }
  std::unique_ptr<gpu::DeviceBlock> Stamped(size_t bytes, uint64_t key) {
    auto block = Room(bytes);
    FillStamped(block->data(), bytes, {key, 1});
    return block;
  }

  std::vector<std::unique_ptr<gpu::HostDevice>> devices_;
  std::unique_ptr<Client> client;
};

TEST_F(GpuOverRdma, IsReadAndWritten) {
  for (const size_t bytes : {24u, 65536u, 3u << 20}) {
    SCOPED_TRACE(bytes);
    const Transport expected = bytes < 65536 ? Transport::kTcp : Transport::kRdma;
    const auto from = Stamped(bytes, 1), into = Room(bytes + 8);
    const KeyResult put = PutOne(*client, "k", from->data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, expected);
    const KeyResult got = GetOne(*client, "k", into->data(), bytes + 8);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, expected);
    EXPECT_EQ(CheckStamped(into->data(), bytes, 1), "");
    EXPECT_EQ(std::string(into->data() + bytes, 8), std::string(8, '\xa5'));
  }
  EXPECT_EQ(client->stats().gpu_values, 6u);
  EXPECT_EQ(client->stats().fallbacks, 0u);
}

// More than is staged at a time, and nothing of it comes.
TEST_F(GpuOverRdma, QueuePairsThatBreak) {
  constexpr size_t kSizes[] = {70 << 20, 1 << 20, 70 << 20, 100'000};
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
  std::vector<Buffer> into;
  const auto other = server_->Connect("transport=tcp&gpu=no");
  for (const size_t bytes : kSizes) {
    names.push_back(std::to_string(names.size()));
    std::vector<char> value(bytes);
    FillStamped(value.data(), bytes, {names.size(), 1});
    const KeyResult put = PutOne(*other, names.back(), value.data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    blocks.push_back(Room(bytes));
    into.push_back({blocks.back()->data(), bytes});
  }
  for (const std::string& name : names) keys.push_back(name);
  AwaitRegistered();
  for (const bool broken : {false, true}) {
    SCOPED_TRACE(broken);
    for (const char* nic : {"c0", "c1"}) fabric_.RefusePosts(nic, broken ? UINT32_MAX : 0);
    for (const auto& block : blocks) std::memset(block->data(), 0xa5, block->bytes());
    const auto results = client->BatchGetInto(keys, into);
    for (size_t i = 0; i < keys.size(); ++i) {
      EXPECT_TRUE(results[i].ok()) << results[i].message;
      EXPECT_EQ(results[i].transport, broken ? Transport::kTcp : Transport::kRdma) << i;
      EXPECT_EQ(CheckStamped(blocks[i]->data(), kSizes[i], i + 1), "");
    }
  }
  EXPECT_EQ(client->stats().gpu_staged_values, 2 * std::size(kSizes));
}

}  // namespace
}  // namespace moonpool::client
