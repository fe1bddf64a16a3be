// A client of the fake network that sends connection requests as they stand, and requests that the
// library would not make.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/rdma/session_rig.h"

namespace moonpool::rdma::test {

// What the server says to a request as it stands.
class RawClient {
 public:
  explicit RawClient(SessionRig& rig) : rig_(rig) {
    events_ = *rig.client_nics->verbs().NewConnectionEvents();
  }
  ~RawClient() { lane_ = nullptr; }

  ConnectionEvent Ask(const std::string& private_data) {
    lane_ = nullptr;
    auto connection = *events_->NewConnection();
    EXPECT_TRUE(connection->ResolveAddress("10.0.0.1", "10.0.0.2", rig_.service->port(), 1000));
    EXPECT_TRUE(connection->ResolveRoute(1000));
    lane_ = *Lane::Create(std::move(connection), *rig_.domains, nullptr, {});
    ConnectParameters parameters;
    parameters.reads_made = 16;
    parameters.private_data = private_data;
    EXPECT_TRUE(lane_->connection().Connect(parameters));
    for (int i = 0; i < test::kPatienceMs; ++i) {
      while (auto event = events_->Next()) {
        if (event->kind == ConnectionEvent::Kind::kEstablished ||
            event->kind == ConnectionEvent::Kind::kRejected) {
          return std::move(*event);
        }
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ADD_FAILURE() << "no answer";
    return {};
  }
  // What becomes of such a request on the queue pair that was had last.
  Completion::Status Do(WorkRequest::Kind kind, const ConnectAccept& accept, uint64_t address,
                        uint32_t key) {
    lane_->Open(accept.limits, nullptr);
    std::vector<char> memory(64);
    const auto keys =
        *Registration::Create(*rig_.domains, memory.data(), memory.size(), kReadTarget);
    const Piece piece{reinterpret_cast<uint64_t>(memory.data()), 64, keys->At(0).keys->on[0].local};
    lane_->Add(kind, std::span(&piece, 1), address, key, false, {this, 0, 64});
    lane_->Post();
    std::vector<Lane::End> ends;
    for (int i = 0; i < test::kPatienceMs && ends.empty(); ++i) {
      lane_->Poll(&ends, nullptr);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(ends.size(), 1u);
    return ends.empty() ? Completion::Status::kOther : ends[0].status;
  }
  RejectReason Refused(const std::string& private_data) {
    const ConnectionEvent event = Ask(private_data);
    EXPECT_EQ(event.kind, ConnectionEvent::Kind::kRejected);
    return DecodeReject(event.private_data)->reason;
  }

 private:
  SessionRig& rig_;
  std::unique_ptr<ConnectionEvents> events_;
  std::unique_ptr<Lane> lane_;
};

}  // namespace moonpool::rdma::test
