// A server, a client, and a device: the host double (which the library takes for a GPU of this
// process) or a GPU.
//
// Threads: one at a time, but for what Server() and Connect() give.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/gpu_devices.h"
#include "client/moonpool/client.h"
#include "tests/client/live_server.h"
#include "tests/client/one_value.h"
#include "tests/client/stamped_block.h"
#include "tests/gpu/device_under_test.h"

namespace moonpool::client {

class GpuClientTest : public gpu::DeviceTest {
 protected:
  void SetUp() override {
    gpu::DeviceTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam() == gpu::Kind::kDouble) ReplaceGpuDevices({device});
    StartServer({});
  }
  void TearDown() override {
    client = nullptr;
    server = nullptr;
    ReplaceGpuDevices({});
  }

  void StartServer(LiveServer::Settings settings) {
    client = nullptr;
    server = nullptr;
    server = std::make_unique<LiveServer>(settings);
    client = server->Connect();
  }

  // Of the double alone.
  gpu::HostDevice& Double() { return static_cast<gpu::HostDevice&>(*device); }

  // Device memory for `size` bytes, all poison.
  std::unique_ptr<gpu::DeviceBlock> Room(size_t size) { return OnDevice(Poison(size)); }
  static std::string Stamped(size_t bytes, uint64_t key, uint64_t version = 1) {
    std::vector<char> block(bytes);  // not a string: g++ 12 warns of its short ones, falsely
    FillStamped(block.data(), bytes, {key, version});
    return {block.begin(), block.end()};
  }
  // Whether the block has `bytes`, and behind them poison to its end at `size`.
  testing::AssertionResult Holds(const gpu::DeviceBlock& block, const std::string& bytes,
                                 size_t size) {
    const std::string got = Get(block.data(), size);
    if (got.compare(0, bytes.size(), bytes) != 0) {
      return testing::AssertionFailure() << "other bytes";
    }
    if (got.substr(bytes.size()) != Poison(size - bytes.size())) {
      return testing::AssertionFailure() << "bytes behind the value were written";
    }
    return testing::AssertionSuccess();
  }

  std::unique_ptr<LiveServer> server;
  std::unique_ptr<Client> client;
};

}  // namespace moonpool::client
