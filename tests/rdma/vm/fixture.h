// Tests that need RDMA devices: they run inside tools/rdma-vm (or on a machine with NICs).
#pragma once

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "tests/rdma/live_pool.h"

namespace moonpool::rdma::test {

class VmTest : public testing::Test {
 protected:
  static constexpr uint64_t kEpoch = 77;

  VmTest() : server_nics_(OpenNics()), client_nics_(OpenNics()) {
    ServiceOptions options;
    options.epoch = kEpoch;
    options.log = [](const std::string& text) { std::printf("%s\n", text.c_str()); };
    options.on_lanes = [this](uint64_t session, size_t lanes) {
      if (lanes > 0) return;
      std::lock_guard lock(mu_);
      closed_.push_back(session);
      changed_.notify_all();
    };
    service_ = Must(Service::Start(*server_nics_, std::move(options)), "service");
    pool_ = std::make_unique<LivePool>(*service_);
  }
  ~VmTest() override {
    pool_ = nullptr;
    service_ = nullptr;
  }

  EndpointTarget Target(uint64_t session) const {
    return {kEpoch, session, service_->port(), Told(*server_nics_)};
  }
  // A session of that tenant, and a client in it.
  std::unique_ptr<LiveClient> Client(uint64_t session, LivePool& pool,
                                     const EndpointOptions& options = {}) {
    service_->BeginSession(session, pool.memory());
    return std::make_unique<LiveClient>(
        *client_nics_, Target(session),
        [this, session]() -> Result<Token> { return service_->IssueToken(session); }, options);
  }
  std::unique_ptr<LiveClient> Connected(uint64_t session) {
    auto client = Client(session, *pool_);
    const Status status = client->endpoint().Open();
    EXPECT_TRUE(status) << status.error().message;
    return client;
  }
  // Tries until so many lanes are open; false when that takes more than 10 s.
  static bool RepairAll(Endpoint& endpoint, size_t lanes) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (OpenLanes(endpoint) < lanes) {
      if (std::chrono::steady_clock::now() > end) return false;
      endpoint.Repair();
      usleep(5000);
      endpoint.Pump();
    }
    return true;
  }
  static size_t OpenLanes(const Endpoint& endpoint) {
    size_t open = 0;
    for (const LaneInfo& lane : endpoint.lanes()) open += lane.open ? 1 : 0;
    return open;
  }
  // False when that did not happen within 10 s.
  bool WaitClosed(uint64_t session) {
    std::unique_lock lock(mu_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] {
      return std::find(closed_.begin(), closed_.end(), session) != closed_.end();
    });
  }

  std::unique_ptr<NicSet> server_nics_;
  std::unique_ptr<NicSet> client_nics_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::vector<uint64_t> closed_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<LivePool> pool_;
};

}  // namespace moonpool::rdma::test
