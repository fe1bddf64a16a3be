// A service and its clients on a fake network that moves by itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "rdma/endpoint.h"
#include "rdma/service.h"
#include "tests/rdma/fake_verbs.h"
#include "tests/rdma/known_bytes.h"

namespace moonpool::rdma::test {

// Memory of one tenant: a region and a generation table.
struct FakeTenant {
  static constexpr uint64_t kRegionBytes = 8 << 20;
  explicit FakeTenant(const NicSet& nics) : region(kRegionBytes), generations(1024, 1) {
    memory = *TenantMemory::Create(nics, reinterpret_cast<char*>(generations.data()),
                                   generations.size() * 8);
  }
  void Show(uint32_t id) { ASSERT_TRUE(memory->Add(id, region.data(), region.size(), true)); }

  std::vector<char> region;
  std::vector<uint64_t> generations;
  std::shared_ptr<TenantMemory> memory;
};

// As long as it takes on a busy machine.
inline constexpr int kPatienceMs = 180'000;

// A client whose lanes do not fail because the thread that moves the bytes has no processor.
inline EndpointOptions Patient() {
  EndpointOptions options;
  options.connect_timeout_ms = kPatienceMs;
  options.answer_ms = kPatienceMs;
  options.engine.stall_ms = 2000;
  return options;
}

class SessionRig {
 public:
  static constexpr uint64_t kEpoch = 5;

  explicit SessionRig(size_t nics = 2, ServiceOptions options = {},
                      Protocol protocol = Protocol::kRoceV2)
      : fabric(FakeFabric::Moves::kByThread) {
    for (size_t i = 0; i < nics; ++i) {
      const std::string net = "10.0." + std::to_string(i) + ".";
      fabric.AddDevice("client", "c" + std::to_string(i), net + "1", protocol);
      fabric.AddDevice("server", "s" + std::to_string(i), net + "2", protocol);
    }
    server_nics = *NicSet::Open(fabric.Host("server"), {});
    client_nics = *NicSet::Open(fabric.Host("client"), {});
    domains = *Domains::Create(client_nics->devices());
    options.epoch = kEpoch;
    options.engine.stall_ms = 2000;
    options.on_lanes = [this](uint64_t session, size_t lanes) {
      if (lanes > 0) return;
      std::lock_guard lock(mu);
      closed.push_back(session);
      changed.notify_all();
    };
    options.log = [this](const std::string& text) {
      std::lock_guard lock(mu);
      log.push_back(text);
    };
    service = *Service::Start(*server_nics, std::move(options));
  }

  std::vector<RemoteNic> Told() const {
    std::vector<RemoteNic> told;
    for (const Nic& nic : server_nics->nics()) {
      told.push_back({nic.name(), nic.addresses, nic.protocol, nic.speed_mbps});
    }
    return told;
  }
  EndpointTarget Target(uint64_t session) const {
    return {kEpoch, session, service->port(), Told()};
  }
  std::unique_ptr<Endpoint> Client(uint64_t session, Endpoint::Tokens tokens,
                                   const EndpointOptions& options = Patient()) {
    return std::make_unique<Endpoint>(*client_nics, *domains, Target(session), std::move(tokens),
                                      options);
  }
  // One whose session is begun.
  std::unique_ptr<Endpoint> Client(uint64_t session, const FakeTenant& tenant,
                                   const EndpointOptions& options = Patient()) {
    service->BeginSession(session, tenant.memory);
    return Client(
        session,
        [this, session]() -> Result<Token> {
          ++tokens_asked;
          return service->IssueToken(session);
        },
        options);
  }
  // Reads so many bytes of the region into `to`; the pool has bytes of value `slot` there.
  Outcome Read(Endpoint& endpoint, FakeTenant& tenant, uint32_t region, uint64_t bytes,
               uint32_t slot, std::vector<char>* to, int timeout_ms = kPatienceMs) {
    FillKnown(tenant.region.data(), bytes, slot);
    to->assign(bytes, 0);
    const LocalPiece piece{to->data(), bytes, nullptr};
    TransferItem item{region, 0, bytes, std::span(&piece, 1), true, slot, tenant.generations[slot]};
    Transfer transfer(Transfer::Direction::kRead, {item});
    endpoint.Run(&transfer, Endpoint::Clock::now() + std::chrono::milliseconds(timeout_ms));
    error = transfer.error();
    if (transfer.outcome(0) == Outcome::kDone) {
      EXPECT_EQ(FirstWrong(to->data(), bytes, slot), std::nullopt);
    }
    return transfer.outcome(0);
  }
  bool WaitFor(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    std::unique_lock lock(mu);
    while (!condition() && std::chrono::steady_clock::now() < end) {
      changed.wait_for(lock, std::chrono::milliseconds(10));
    }
    return condition();
  }
  bool WaitClosed(uint64_t session) {
    return WaitFor(
        [&] { return std::find(closed.begin(), closed.end(), session) != closed.end(); });
  }

  FakeFabric fabric;
  std::unique_ptr<NicSet> server_nics;
  std::unique_ptr<NicSet> client_nics;
  std::unique_ptr<Domains> domains;
  std::mutex mu;
  std::condition_variable changed;
  std::vector<uint64_t> closed;
  std::vector<std::string> log;
  std::atomic<int> tokens_asked{0};
  std::string error;
  std::unique_ptr<Service> service;
};

}  // namespace moonpool::rdma::test
