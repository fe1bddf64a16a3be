// A client that uses its queue pair without the library, as a hostile one would.
//
// Threads: one at a time.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rdma/topology.h"
#include "tests/rdma/live_pool.h"

namespace moonpool::rdma::test {

class RawClient {
 public:
  // Connected over the nearest pair of NICs.
  RawClient(NicSet& nics, const EndpointTarget& target, const Token& token)
      : events_(Must(nics.verbs().NewConnectionEvents(), "events")),
        domains_(Must(Domains::Create(nics.devices()), "domains")),
        memory_(1 << 16, 0),
        keys_(Must(Registration::Create(*domains_, memory_.data(), memory_.size(), kReadTarget),
                   "memory")) {
    auto connection = Must(events_->NewConnection(), "connection");
    const NicPair pair = PairNics(nics.nics(), target.nics)[0];
    Connection* const raw = connection.get();
    EXPECT_TRUE(raw->ResolveAddress(pair.source, pair.destination, target.port, 2000));
    Expect(ConnectionEvent::Kind::kAddressResolved);
    EXPECT_TRUE(raw->ResolveRoute(2000));
    Expect(ConnectionEvent::Kind::kRouteResolved);
    lane_ = Must(Lane::Create(std::move(connection), *domains_, nullptr, {}), "lane");
    ConnectRequest request;
    request.epoch = target.epoch;
    request.session = target.session;
    request.token = token;
    const std::string data = Encode(request);
    ConnectParameters parameters;
    parameters.reads_made = 16;
    parameters.private_data = data;
    EXPECT_TRUE(raw->Connect(parameters));
    const ConnectionEvent event = Expect(ConnectionEvent::Kind::kEstablished);
    accept_ = Must(DecodeAccept(event.private_data), "acceptance");
    lane_->Open(accept_.limits, &remote_);
  }
  ~RawClient() {
    std::vector<Lane::End> ignored;
    lane_->Destroy(&ignored);
  }

  const ConnectAccept& accept() const { return accept_; }
  // What the server says of that byte of a region: kRegion with its key, or kUnknown.
  Message Ask(uint32_t region, uint64_t offset) {
    Message want;
    want.type = Message::kWant;
    want.id = region;
    want.offset = offset;
    EXPECT_TRUE(lane_->Send(want));
    std::vector<Message> messages;
    Poll([&] { return !messages.empty(); }, &messages);
    return messages.empty() ? Message() : messages[0];
  }
  // A READ of 4096 bytes to data(), or a WRITE of those.  One that fails costs the queue pair.
  Completion::Status Do(WorkRequest::Kind kind, uint64_t address, uint32_t key) {
    const Piece piece{reinterpret_cast<uint64_t>(memory_.data()), 4096,
                      keys_->At(0).keys->on[lane_->device()].local};
    lane_->Add(kind, std::span(&piece, 1), address, key, false, {this, 0, 4096});
    lane_->Post();
    ends_.clear();
    Poll([&] { return !ends_.empty(); }, nullptr);
    return ends_.empty() ? Completion::Status::kUnreachable : ends_[0].status;
  }
  const char* data() const { return memory_.data(); }

 private:
  template <typename Condition>
  void Poll(const Condition& until, std::vector<Message>* messages) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!until() && std::chrono::steady_clock::now() < end) lane_->Poll(&ends_, messages);
  }
  ConnectionEvent Expect(ConnectionEvent::Kind kind) {
    for (int i = 0; i < 2000; ++i) {
      if (auto event = events_->Next()) {
        EXPECT_EQ(event->kind, kind) << event->text;
        return std::move(*event);
      }
      usleep(1000);
    }
    ADD_FAILURE() << "no event";
    return {};
  }

  std::unique_ptr<ConnectionEvents> events_;
  std::unique_ptr<Domains> domains_;
  std::vector<char> memory_;
  std::unique_ptr<Registration> keys_;
  ConnectAccept accept_;
  RemoteKeys remote_;
  std::vector<Lane::End> ends_;
  std::unique_ptr<Lane> lane_;
};

// What becomes of a request that the other side's device refuses.
inline Completion::Status Refused(const NicSet& nics) {
  return OverIwarp(nics) ? Completion::Status::kFlushed : Completion::Status::kRemoteRefused;
}

}  // namespace moonpool::rdma::test
