// Memory of devices (dma-buf): registered where a NIC takes it, and never touched by the processor.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "rdma/buffer_cache.h"
#include "tests/rdma/engine_rig.h"
#include "tests/rdma/fake_peer.h"

namespace moonpool::rdma {
namespace {

using test::EngineRig;
using test::FakePeer;
using test::FillKnown;
using test::FirstWrong;

constexpr uint64_t kBytes = 4 << 20;
constexpr uint32_t kAccess = kReadTarget | kRemoteRead;

class PeerMemoryTest : public testing::Test {
 protected:
  PeerMemoryTest() : rig(2, 1), peer(std::make_shared<FakePeer>(kBytes)) {}

  std::unique_ptr<Registration> Registered(uint64_t slice_bytes = kDefaultSliceBytes) {
    auto made =
        Registration::CreatePeer(peer, *rig.client, peer->data(), kBytes, kAccess, slice_bytes);
    EXPECT_TRUE(made) << made.error().message;
    return std::move(*made);
  }
  // Values of `bytes` into the device's memory from `at` on.
  Transfer* Read(const Registration& keys, size_t count, uint64_t bytes, uint64_t at = 0) {
    std::vector<TransferItem> items;
    pieces.resize(count);
    for (uint32_t i = 0; i < count; ++i) {
      FillKnown(rig.region.data() + i * bytes, bytes, i);
      pieces[i].clear();
      for (uint64_t done = 0; done < bytes;) {
        const uint64_t offset = at + i * bytes + done;
        const Registration::Part part = keys.At(offset);
        const uint64_t length = std::min(bytes - done, part.offset + part.length - offset);
        pieces[i].push_back({peer->data() + offset, length, part.keys});
        done += length;
      }
      items.push_back(
          {EngineRig::kRegion, i * bytes, bytes, pieces[i], true, i, rig.generations[i]});
    }
    transfer = std::make_unique<Transfer>(Transfer::Direction::kRead, std::move(items));
    rig.engine->Start(transfer.get());
    return transfer.get();
  }
  void ExpectThere(size_t count, uint64_t bytes, uint64_t at = 0) {
    for (uint32_t i = 0; i < count; ++i) {
      EXPECT_EQ(transfer->outcome(i), Outcome::kDone) << transfer->error();
      EXPECT_EQ(FirstWrong(peer->view() + at + i * bytes, bytes, i), std::nullopt) << i;
    }
  }

  EngineRig rig;
  std::shared_ptr<FakePeer> peer;
  std::vector<std::vector<LocalPiece>> pieces;
  std::unique_ptr<Transfer> transfer;
};

TEST_F(PeerMemoryTest, ReadsLandThereOverEveryLane) {
  const auto keys = Registered();
  EXPECT_EQ(keys->peer(), peer.get());
  EXPECT_EQ(peer->exports, 1);
  rig.RunToEnd(Read(*keys, 3, 1'000'001, 77));
  ExpectThere(3, 1'000'001, 77);
  EXPECT_GT(rig.fabric.counters().device_bytes["c0"], 500'000u);
  EXPECT_GT(rig.fabric.counters().device_bytes["c1"], 500'000u);
  EXPECT_EQ(rig.engine->counters().staged_bytes, 0u);
}

TEST_F(PeerMemoryTest, SlicesOfOneFileLieWhereTheyAre) {
  const auto keys = Registered(96 << 10);
  EXPECT_EQ(peer->exports, 1);
  rig.RunToEnd(Read(*keys, 3, 1 << 20, 5));
  ExpectThere(3, 1 << 20, 5);
}

TEST_F(PeerMemoryTest, OnlyNicsThatTookItCarryIt) {
  rig.fabric.RefuseDmabufs("c1", true);
  std::string refused;
  auto keys =
      Registration::CreatePeer(peer, *rig.client, peer->data(), kBytes, kAccess, kDefaultSliceBytes,
                               [&](const std::string& why) { refused += why; });
  ASSERT_TRUE(keys);
  EXPECT_EQ(refused, "c1 takes no dma-buf");
  rig.RunToEnd(Read(**keys, 3, 1 << 20));
  ExpectThere(3, 1 << 20);
  EXPECT_GT(rig.fabric.counters().device_bytes["c0"], 3u << 20);
  // The other lane is open, and of no use for this.
  rig.fabric.BreakQueuePairs("c0");
  while (rig.lanes.size() == 2) rig.Progress();
  rig.RunToEnd(Read(**keys, 3, 1 << 20));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(transfer->outcome(i), Outcome::kUnreachable);
  EXPECT_EQ(rig.engine->counters().staged_bytes, 0u);
}

// A value in host memory that the same NIC does not have, behind it in the pool: what they share
// must not pass through staging memory.
TEST_F(PeerMemoryTest, HostMemoryBesideItIsNotStagedWithIt) {
  rig.fabric.RefuseRegistrations("c1", true);
  std::vector<char> host(kBytes, '\xee');
  const auto host_keys =
      EngineRig::Registered(*rig.client, host.data(), kBytes, kReadTarget, kBytes);
  rig.fabric.RefuseRegistrations("c1", false);
  const auto keys = Registered();
  constexpr uint64_t kValue = 8192;
  std::vector<TransferItem> items;
  std::vector<LocalPiece> all;
  for (uint32_t i = 0; i < 32; ++i) {
    FillKnown(rig.region.data() + i * kValue, kValue, i);
    const bool on_device = i % 2 == 0;
    all.push_back({(on_device ? peer->data() : host.data()) + i * kValue, kValue,
                   (on_device ? keys : host_keys)->At(0).keys});
  }
  for (uint32_t i = 0; i < 32; ++i) {
    items.push_back({EngineRig::kRegion, i * kValue, kValue, std::span(all).subspan(i, 1), true, i,
                     rig.generations[i]});
  }
  Transfer mixed(Transfer::Direction::kRead, std::move(items));
  rig.engine->Start(&mixed);
  rig.RunToEnd(&mixed);
  for (uint32_t i = 0; i < 32; ++i) {
    EXPECT_EQ(mixed.outcome(i), Outcome::kDone);
    const char* const at = (i % 2 == 0 ? peer->view() : host.data()) + i * kValue;
    EXPECT_EQ(FirstWrong(at, kValue, i), std::nullopt) << i;
  }
}

TEST_F(PeerMemoryTest, ANicThatRefusesIsAskedOnce) {
  for (const char* nic : {"c0", "c1"}) rig.fabric.RefuseDmabufs(nic, true);
  BufferCache cache(*rig.client, kBytes, 1 << 20);
  ASSERT_TRUE(cache.Declare(peer->data(), kBytes, peer));
  for (int round = 0; round < 2; ++round) {
    std::vector<LocalPiece> described;
    BufferCache::Pins pins;
    cache.Describe(peer->data(), kBytes, &described, &pins);
    ASSERT_EQ(described.size(), 4u);
    for (const LocalPiece& piece : described) EXPECT_EQ(piece.keys, nullptr);
    EXPECT_EQ(cache.Pin(peer->data() + 5, 10), nullptr);
  }
  EXPECT_EQ(rig.fabric.counters().dmabuf_tries, 2u);
  EXPECT_EQ(peer->exports, 1);
  EXPECT_EQ(cache.counters().peer_refused, 4u);
  EXPECT_EQ(cache.counters().refused, 0u) << "there is room";
  EXPECT_EQ(cache.counters().bytes, 0u);
  EXPECT_EQ(cache.peer_error(), "c1 takes no dma-buf");
}

TEST_F(PeerMemoryTest, MemoryWithoutAFileIsAskedForOnce) {
  peer->exports_any = false;
  BufferCache cache(*rig.client, kBytes, kBytes);
  ASSERT_TRUE(cache.Declare(peer->data(), kBytes, peer));
  for (int round = 0; round < 3; ++round) EXPECT_EQ(cache.Pin(peer->data(), 10), nullptr);
  EXPECT_EQ(peer->exports, 1);
  EXPECT_EQ(cache.peer_error(), "this memory has no file");
  // That says nothing about other memory of the device.
  ASSERT_TRUE(cache.Withdraw(peer->data()));
  peer->exports_any = true;
  ASSERT_TRUE(cache.Declare(peer->data(), kBytes, peer));
  EXPECT_NE(cache.Pin(peer->data(), 10), nullptr);
}

TEST_F(PeerMemoryTest, GoesWithItsBuffer) {
  BufferCache cache(*rig.client, kBytes, 1 << 20);
  ASSERT_TRUE(cache.Declare(peer->data(), kBytes, peer));
  std::vector<LocalPiece> described;
  BufferCache::Pins pins;
  cache.Describe(peer->data() + 100, kBytes - 100, &described, &pins);
  EXPECT_EQ(rig.fabric.counters().dmabufs, 8u) << "four chunks on two NICs";
  EXPECT_EQ(cache.counters().bytes, kBytes);
  for (const LocalPiece& piece : described) EXPECT_TRUE(piece.keys != nullptr && piece.keys->peer);
  pins.clear();
  ASSERT_TRUE(cache.Withdraw(peer->data()));
  EXPECT_EQ(rig.fabric.counters().dmabufs, 0u);
}

}  // namespace
}  // namespace moonpool::rdma
