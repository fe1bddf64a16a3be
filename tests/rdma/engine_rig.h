// Two hosts on a fake network, a pool on one of them, and an engine with lanes on the other: for
// tests that decide themselves when what moves.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "rdma/transfer_engine.h"
#include "tests/rdma/fake_verbs.h"
#include "tests/rdma/known_bytes.h"

namespace moonpool::rdma::test {

class EngineRig {
 public:
  static constexpr uint32_t kRegion = 3;
  static constexpr uint64_t kRegionBytes = 16 << 20;
  static constexpr uint32_t kSlots = 4096;

  EngineRig(size_t nics, uint64_t seed, const EngineOptions& options = {},
            uint64_t registration_bytes = kRegionBytes)
      : fabric(FakeFabric::Moves::kBySteps, seed),
        region(kRegionBytes),
        generations(kSlots, 1),
        local(kRegionBytes, '\xee') {
    for (size_t i = 0; i < nics; ++i) {
      fabric.AddDevice("client", "c" + std::to_string(i), Address(i, 1));
      fabric.AddDevice("server", "s" + std::to_string(i), Address(i, 2));
    }
    client_verbs = fabric.Host("client");
    server_verbs = fabric.Host("server");
    client = std::move(*Domains::Create(*client_verbs->Devices()));
    server = std::move(*Domains::Create(*server_verbs->Devices()));
    region_keys =
        Registered(*server, region.data(), region.size(), kRemoteRead, registration_bytes);
    generation_keys = Registered(*server, reinterpret_cast<char*>(generations.data()),
                                 generations.size() * 8, kRemoteRead, generations.size() * 8);
    local_keys = Registered(*client, local.data(), local.size(), kReadTarget, local.size());
    engine = std::make_unique<TransferEngine>(*client, options);
    client_events = std::move(*client_verbs->NewConnectionEvents());
    server_events = std::move(*server_verbs->NewConnectionEvents());
    listener = std::move(*server_events->NewConnection());
    EXPECT_TRUE(listener->Listen("", 0, 10));
    for (size_t i = 0; i < nics; ++i) AddLane(i);
  }
  ~EngineRig() {
    for (auto& lane : lanes) engine->Destroy(lane.get());
  }

  static std::string Address(size_t nic, int host) {
    return "10.0." + std::to_string(nic) + "." + std::to_string(host);
  }
  static std::unique_ptr<Registration> Registered(const Domains& domains, char* data,
                                                  uint64_t bytes, uint32_t access,
                                                  uint64_t slice_bytes) {
    return std::move(*Registration::Create(domains, data, bytes, access, slice_bytes));
  }

  // Connects one more queue pair over that pair of NICs.
  Lane* AddLane(size_t nic, bool knows_region = true) {
    auto connection = std::move(*client_events->NewConnection());
    EXPECT_TRUE(connection->ResolveAddress(Address(nic, 1), Address(nic, 2), listener->port(), 10));
    Connection* const raw = connection.get();
    auto lane = std::move(*Lane::Create(std::move(connection), *client, nullptr, limits));
    ConnectParameters parameters;
    EXPECT_TRUE(raw->Connect(parameters));
    while (client_events->Next()) {
    }
    auto request = server_events->Next();
    EXPECT_EQ(request->kind, ConnectionEvent::Kind::kRequest);
    auto other = std::move(*Lane::Create(std::move(request->incoming), *server, nullptr, limits));
    EXPECT_TRUE(other->connection().Accept(parameters));
    while (client_events->Next()) {
    }
    while (server_events->Next()) {
    }
    remote.push_back(std::make_unique<RemoteKeys>());
    RemoteKeys& keys = *remote.back();
    const Registration::Part table = generation_keys->At(0);
    keys.generations = {0, table.length, reinterpret_cast<uint64_t>(generations.data()),
                        table.keys->on[nic].remote, kRemoteRead};
    if (knows_region) TellRegion(&keys, nic);
    lane->Open(limits, &keys);
    other->Open(limits, nullptr);
    engine->AddLane(lane.get());
    lanes.push_back(std::move(lane));
    server_lanes.push_back(std::move(other));
    return lanes.back().get();
  }
  void TellRegion(RemoteKeys* keys, size_t nic) {
    for (uint64_t at = 0; at < kRegionBytes;) {
      const Registration::Part part = region_keys->At(at);
      keys->Add(kRegion,
                {part.offset, part.length, reinterpret_cast<uint64_t>(region.data() + part.offset),
                 part.keys->on[nic].remote, kRemoteRead});
      at = part.offset + part.length;
    }
  }

  struct Value {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t slot = 0;
    uint64_t to = 0;                 // in local
    std::optional<uint64_t> pieces;  // local pieces of so many bytes; else one
    bool registered = true;
  };
  // A transfer of these values; the pool has bytes of value `slot` in them.
  Transfer* Read(const std::vector<Value>& values) {
    std::vector<TransferItem> items;
    pieces.emplace_back(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const Value& value = values[i];
      FillKnown(region.data() + value.offset, value.length, value.slot);
      std::vector<LocalPiece>& mine = pieces.back()[i];
      for (uint64_t at = 0; at < value.length;) {
        const uint64_t length =
            std::min(value.length - at, value.pieces ? *value.pieces : value.length);
        // With a gap of one byte between pieces, so that none can be taken for one with the next.
        const uint64_t gap = value.pieces ? at / *value.pieces : 0;
        mine.push_back({local.data() + value.to + at + gap, length,
                        value.registered ? local_keys->At(0).keys : nullptr});
        at += length;
      }
      items.push_back(
          {kRegion, value.offset, value.length, mine, true, value.slot, generations[value.slot]});
    }
    transfers.push_back(std::make_unique<Transfer>(Transfer::Direction::kRead, std::move(items)));
    engine->Start(transfers.back().get());
    return transfers.back().get();
  }
  // Empty, or what is wrong with the value's bytes here.
  static std::string Wrong(const Transfer& transfer, size_t i) {
    std::string bytes;
    for (const LocalPiece& piece : transfer.items()[i].pieces) {
      bytes.append(piece.data, piece.length);
    }
    bytes.resize(transfer.items()[i].length);
    const auto wrong = FirstWrong(bytes.data(), bytes.size(), transfer.items()[i].slot);
    return wrong ? "byte " + std::to_string(*wrong) + " of value " + std::to_string(i) : "";
  }
  void Progress() {
    engine->Progress(&messages);
    messages.clear();
    for (size_t i = 0; i < lanes.size();) {
      if (lanes[i]->state() == Lane::State::kFenced) {
        engine->RemoveLane(lanes[i].get());
        dead_lanes.push_back(std::move(lanes[i]));
        lanes.erase(lanes.begin() + static_cast<ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
  }
  void RunToEnd(Transfer* transfer) {
    for (int i = 0; !transfer->done(); ++i) {
      ASSERT_LT(i, 1000000) << "it never ends";
      Progress();
      fabric.Step();
    }
  }

  FakeFabric fabric;
  LaneLimits limits;
  std::vector<char> region;
  std::vector<uint64_t> generations;
  std::vector<char> local;
  std::unique_ptr<Verbs> client_verbs;
  std::unique_ptr<Verbs> server_verbs;
  std::unique_ptr<Domains> client;
  std::unique_ptr<Domains> server;
  std::unique_ptr<Registration> region_keys;
  std::unique_ptr<Registration> generation_keys;
  std::unique_ptr<Registration> local_keys;
  std::unique_ptr<ConnectionEvents> client_events;
  std::unique_ptr<ConnectionEvents> server_events;
  std::unique_ptr<Connection> listener;
  std::vector<std::unique_ptr<RemoteKeys>> remote;
  std::unique_ptr<TransferEngine> engine;
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<std::unique_ptr<Lane>> server_lanes;
  std::vector<std::unique_ptr<Lane>> dead_lanes;
  std::vector<std::vector<std::vector<LocalPiece>>> pieces;
  std::vector<std::unique_ptr<Transfer>> transfers;
  TransferEngine::Messages messages;
};

}  // namespace moonpool::rdma::test
