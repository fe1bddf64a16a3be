// Regions on devices, read by clients' NICs where they are: RdmaExporter with pools on a double of
// devices, on a double of NICs.
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rdma/rdma_exporter.h"
#include "storage/extent_pool.h"
#include "tests/rdma/raw_client.h"
#include "tests/rdma/session_rig.h"
#include "tests/storage/fake_device.h"
#include "tests/storage/store.h"

namespace moonpool::rdma {
namespace {

using storage::Eventually;
using storage::FakeDevice;
using storage::kMiB;
using test::FillKnown;
using test::FirstWrong;
using test::RawClient;
using test::SessionRig;

// A tenant whose pool has two devices, and nothing else.
class VramTenant {
 public:
  VramTenant(Service& service, uint8_t first_device)
      : devices{FakeDevice(first_device), FakeDevice(static_cast<uint8_t>(first_device + 1))} {
    pool = std::move(*storage::ExtentPool::Create(
        storage::SmallPool(), &budget_, nullptr,
        {{&devices[0], &device_budgets_[0]}, {&devices[1], &device_budgets_[1]}}));
    exporter = std::move(*RdmaExporter::Create(service, pool->generations(), 3 * kMiB));
  }

  // A value there, in a region that nobody has exported yet.
  storage::ValueRef Put(size_t device, uint64_t bytes, uint64_t value) {
    storage::ValueRef put;
    EXPECT_TRUE(Eventually([&] {
      auto handle = pool->ReserveOnDevice(device, bytes, storage::kNoSession, true);
      if (!handle) return false;
      std::vector<char> known(bytes);
      FillKnown(known.data(), bytes, value);
      EXPECT_TRUE(devices[device].Copy(handle->extent().address(), known.data(), bytes));
      put = std::move(*handle).Publish();
      return true;
    }));
    return put;
  }
  Status Export(const storage::ValueRef& value) {
    return exporter->Export(pool->FindRegion(value->extent().region->id()));
  }

  FakeDevice devices[2];

 private:
  storage::MemoryBudget budget_{8 * kMiB};
  storage::MemoryBudget device_budgets_[2]{storage::MemoryBudget(256 * kMiB),
                                           storage::MemoryBudget(256 * kMiB)};

 public:
  std::unique_ptr<storage::ExtentPool> pool;
  std::unique_ptr<RdmaExporter> exporter;
};

class DeviceExportTest : public testing::Test {
 protected:
  std::unique_ptr<Endpoint> Client(uint64_t session, VramTenant& tenant) {
    rig_.service->BeginSession(session, tenant.exporter->memory());
    auto client = rig_.Client(
        session, [this, session]() -> Result<Token> { return rig_.service->IssueToken(session); });
    const Status opened = client->Open();
    EXPECT_TRUE(opened) << opened.error().message;
    EXPECT_TRUE(rig_.WaitFor([&] {
      client->Pump();
      size_t open = 0;
      for (const LaneInfo& lane : client->lanes()) open += lane.open ? 1 : 0;
      return open == 2;
    }));
    return client;
  }
  // As its descriptor tells; the bytes are in to_.
  Outcome Read(Endpoint& client, const storage::ValueRef& value) {
    const storage::Extent& extent = value->extent();
    to_.assign(extent.length, '\xee');
    const LocalPiece piece{to_.data(), extent.length, nullptr};
    TransferItem item{extent.region->id(),  extent.offset, extent.length,
                      std::span(&piece, 1), true,          extent.slot,
                      extent.generation};
    Transfer transfer(Transfer::Direction::kRead, {item});
    client.Run(&transfer, Endpoint::Clock::now() + std::chrono::milliseconds(test::kPatienceMs));
    return transfer.outcome(0);
  }

  SessionRig rig_;
  VramTenant tenant_{*rig_.service, 0};
  std::vector<char> to_;
};

TEST_F(DeviceExportTest, ValuesAreReadWhereTheyAreOverEveryNic) {
  const auto first = tenant_.Put(0, 10 * kMiB + 5, 1), second = tenant_.Put(1, 100'000, 2);
  ASSERT_TRUE(tenant_.Export(first));
  ASSERT_TRUE(tenant_.Export(second));
  auto client = Client(1, tenant_);
  const uint64_t copies = tenant_.devices[0].copies();
  EXPECT_EQ(Read(*client, first), Outcome::kDone);
  EXPECT_EQ(FirstWrong(to_.data(), to_.size(), 1), std::nullopt);
  EXPECT_GT(rig_.fabric.counters().device_bytes["c0"], kMiB);
  EXPECT_GT(rig_.fabric.counters().device_bytes["c1"], kMiB);
  EXPECT_EQ(Read(*client, second), Outcome::kDone);
  EXPECT_EQ(FirstWrong(to_.data(), to_.size(), 2), std::nullopt);
  EXPECT_EQ(tenant_.devices[0].copies(), copies) << "the server moved nothing";
}

TEST_F(DeviceExportTest, WhatIsWithdrawnIsRegisteredNoMore) {
  const auto value = tenant_.Put(0, 100'000, 1);
  ASSERT_TRUE(tenant_.Export(value));
  auto client = Client(1, tenant_);
  EXPECT_EQ(Read(*client, value), Outcome::kDone);
  EXPECT_GT(rig_.fabric.counters().dmabufs, 0u);
  tenant_.exporter->Withdraw(value->extent().region->id());
  EXPECT_EQ(rig_.fabric.counters().dmabufs, 0u);
  EXPECT_EQ(Read(*client, value), Outcome::kNotThere);
}

// A value would be unreadable over the other one's lanes.
TEST_F(DeviceExportTest, OneNicThatRefusesSpeaksForAllAndIsAskedOnce) {
  rig_.fabric.RefuseDmabufs("s1", true);
  const auto value = tenant_.Put(0, 100'000, 1), more = tenant_.Put(0, 150 * kMiB, 2);
  const auto other = tenant_.Put(1, 100'000, 3);
  ASSERT_NE(value->extent().region, more->extent().region);
  const Status refused = tenant_.Export(value);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "s1 takes no dma-buf");
  EXPECT_EQ(rig_.fabric.counters().dmabufs, 0u) << "and none on the one that takes it";
  auto client = Client(1, tenant_);
  EXPECT_EQ(Read(*client, value), Outcome::kNotThere);
  rig_.fabric.RefuseDmabufs("s1", false);
  const uint64_t tries = rig_.fabric.counters().dmabuf_tries;
  const Status again = tenant_.Export(more);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().message, "s1 takes no dma-buf");
  EXPECT_EQ(rig_.fabric.counters().dmabuf_tries, tries);
  EXPECT_EQ(tenant_.devices[0].dmabufs(), 1u);
  // That says nothing of another device.
  ASSERT_TRUE(tenant_.Export(other));
  EXPECT_EQ(Read(*client, other), Outcome::kDone);
}

// Want of room, say: of that region alone.
TEST_F(DeviceExportTest, AFailureThatIsNoRefusalIsTheRegionsAlone) {
  const auto value = tenant_.Put(0, 100'000, 1), more = tenant_.Put(0, 150 * kMiB, 2);
  rig_.fabric.RefuseRegistrations("s0", true);
  EXPECT_FALSE(tenant_.Export(value));
  rig_.fabric.RefuseRegistrations("s0", false);
  tenant_.devices[0].RefuseDmabufs(true);
  EXPECT_FALSE(tenant_.Export(value));
  tenant_.devices[0].RefuseDmabufs(false);
  EXPECT_TRUE(tenant_.Export(more));
}

TEST_F(DeviceExportTest, TheServerWritesFromThereToItsClients) {
  const auto value = tenant_.Put(0, 700'001, 1);
  ASSERT_TRUE(tenant_.Export(value));
  auto client = Client(1, tenant_);
  std::vector<char> buffer(1 << 20, '\xee');
  const auto keys = *Registration::Create(*rig_.domains, buffer.data(), buffer.size(),
                                          kLocalWrite | kRemoteWrite);
  ASSERT_TRUE(client->Announce(2, *keys, kRemoteWrite));
  const auto move = [&] {
    const storage::Extent& extent = value->extent();
    std::optional<Outcome> outcome;
    rig_.service->Move({{1, 2, 100, extent.region->id(), extent.address(), extent.length,
                         Transfer::Direction::kWrite, true}},
                       [&](auto outcomes, const std::string&) {
                         std::lock_guard lock(rig_.mu);
                         outcome = outcomes[0];
                         rig_.changed.notify_all();
                       });
    EXPECT_TRUE(rig_.WaitFor([&] { return outcome.has_value(); }));
    return outcome;
  };
  EXPECT_EQ(move(), Outcome::kDone);
  EXPECT_EQ(FirstWrong(buffer.data() + 100, 700'001, 1), std::nullopt);
  EXPECT_EQ(buffer[99], '\xee');
  EXPECT_EQ(buffer[100 + 700'001], '\xee');
  // What is not registered is not staged: the processor must not touch it.
  tenant_.exporter->Withdraw(value->extent().region->id());
  EXPECT_EQ(move(), Outcome::kNotThere);
}

TEST_F(DeviceExportTest, AnotherTenantReachesNothingOfIt) {
  const auto value = tenant_.Put(0, 100'000, 1);
  ASSERT_TRUE(tenant_.Export(value));
  VramTenant other(*rig_.service, 2);
  const auto own = other.Put(0, 100'000, 2);
  ASSERT_TRUE(other.Export(own));
  auto client = Client(2, other);
  EXPECT_EQ(Read(*client, own), Outcome::kDone);
  EXPECT_EQ(Read(*client, value), Outcome::kNotThere) << "it is told of its own regions alone";
  // Nor with a key that it guessed; it cannot write to its own either.
  const uint32_t region = value->extent().region->id();
  const TenantMemory::Reach theirs = *tenant_.exporter->memory()->Find(region, 0, 0);
  const TenantMemory::Reach mine =
      *other.exporter->memory()->Find(own->extent().region->id(), 0, 0);
  RawClient raw(rig_);
  const auto attempt = [&](WorkRequest::Kind kind, const TenantMemory::Reach& at) {
    ConnectRequest request;
    request.epoch = SessionRig::kEpoch;
    request.session = 2;
    request.token = rig_.service->IssueToken(2);
    const auto accept = DecodeAccept(raw.Ask(Encode(request)).private_data);
    return raw.Do(kind, *accept, at.address, at.key);
  };
  EXPECT_EQ(attempt(WorkRequest::Kind::kRead, mine), Completion::Status::kOk);
  EXPECT_EQ(attempt(WorkRequest::Kind::kRead, theirs), Completion::Status::kRemoteRefused);
  EXPECT_EQ(attempt(WorkRequest::Kind::kWrite, mine), Completion::Status::kRemoteRefused);
}

}  // namespace
}  // namespace moonpool::rdma
