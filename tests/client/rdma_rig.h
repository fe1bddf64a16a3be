// A server and clients over RDMA on a double of the NICs, two on each side, all in this process.
//
// Threads: one at a time, but for what Connect() gives.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rdma/ibverbs.h"
#include "tests/client/live_server.h"
#include "tests/client/one_value.h"
#include "tests/rdma/fake_verbs.h"

namespace moonpool::client {

class RdmaTransportTest : public testing::Test {
 protected:
  RdmaTransportTest() {
    for (const char* n : {"0", "1"}) {
      const std::string net = "10.0." + std::string(n) + ".";
      fabric_.AddDevice("client", "c" + std::string(n), net + "1");
      fabric_.AddDevice("server", "s" + std::string(n), net + "2");
    }
  }
  ~RdmaTransportTest() override { rdma::ReplaceVerbs(nullptr); }

  // `gpus`: the server's.
  void StartServer(LiveServer::Settings settings = {}, int port = 0,
                   std::vector<gpu::Device*> gpus = {}) {
    rdma::ReplaceVerbs(
        [this]() -> Result<std::unique_ptr<rdma::Verbs>> { return fabric_.Host("server"); });
    server_ = std::make_unique<LiveServer>(settings, port, nullptr, std::move(gpus));
    rdma::ReplaceVerbs(
        [this]() -> Result<std::unique_ptr<rdma::Verbs>> { return fabric_.Host("client"); });
    AwaitRegistered();
  }
  // Until then what is in new regions goes over tcp.  Those of GPUs are other tests' concern.
  void AwaitRegistered() {
    EXPECT_TRUE(Eventually([this] {
      const auto regions = server_->tenant().pool().Regions();
      return !regions.empty() &&
             std::all_of(regions.begin(), regions.end(), [](const storage::RegionInfo& region) {
               return region.exported || region.draining || !region.device.empty();
             });
    }));
  }
  std::unique_ptr<Client> Connect(const std::string& options = "") {
    return server_->Connect("transport=rdma" + (options.empty() ? "" : "&" + options));
  }
  rdma::test::FakeFabric fabric_{rdma::test::FakeFabric::Moves::kByThread};
  std::unique_ptr<LiveServer> server_;
};

}  // namespace moonpool::client
