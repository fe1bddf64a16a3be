#include "rdma/devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "rdma/nic_set.h"
#include "rdma/topology.h"
#include "tests/rdma/fake_verbs.h"

namespace moonpool::rdma {
namespace {

using test::FakeFabric;
using testing::ElementsAre;
namespace fs = std::filesystem;

std::vector<std::string> Names(const Discovery& discovery) {
  std::vector<std::string> names;
  for (const Nic& nic : discovery.nics) names.push_back(nic.name());
  return names;
}

class Devices : public testing::Test {
 protected:
  Devices() : fabric_(FakeFabric::Moves::kAtOnce) {
    fabric_.AddDevice("a", "mlx5_0", "10.0.0.1");
    fabric_.AddDevice("a", "mlx5_1", "10.0.1.1");
    fabric_.AddDevice("a", "bnxt_0", "fd00::1");
    fabric_.AddDevice("b", "mlx5_9", "10.0.0.2");
    verbs_ = fabric_.Host("a");
  }
  FakeFabric fabric_;
  std::unique_ptr<Verbs> verbs_;
};

TEST_F(Devices, OfThisHostInOrder) {
  const auto found = DiscoverNics(*verbs_, {});
  ASSERT_TRUE(found);
  EXPECT_THAT(Names(*found), ElementsAre("bnxt_0:1", "mlx5_0:1", "mlx5_1:1"));
  EXPECT_EQ(found->nics[1].protocol, Protocol::kRoceV2);
  EXPECT_THAT(found->nics[1].addresses, ElementsAre("10.0.0.1"));
}

TEST_F(Devices, FilteredByName) {
  auto found = DiscoverNics(*verbs_, ParseNicFilter("mlx5_*", ""));
  EXPECT_THAT(Names(*found), ElementsAre("mlx5_0:1", "mlx5_1:1"));
  ASSERT_EQ(found->left_out.size(), 1u);
  EXPECT_EQ(found->left_out[0].why, "not in rdma-devices");
  found = DiscoverNics(*verbs_, ParseNicFilter("", "mlx5_1, bnxt_0:1"));
  EXPECT_THAT(Names(*found), ElementsAre("mlx5_0:1"));
  found = DiscoverNics(*verbs_, ParseNicFilter("mlx5_0,mlx5_1", "mlx5_0"));
  EXPECT_THAT(Names(*found), ElementsAre("mlx5_1:1"));
}

TEST_F(Devices, PortsThatAreDownAreLeftOut) {
  fabric_.SetPort("mlx5_0", false);
  const auto found = DiscoverNics(*verbs_, ParseNicFilter("mlx5_*", ""));
  EXPECT_THAT(Names(*found), ElementsAre("mlx5_1:1"));
  EXPECT_EQ(found->left_out[0].why, "the port is down");
}

TEST_F(Devices, NoneLeftSaysWhy) {
  const auto set = NicSet::Open(fabric_.Host("a"), ParseNicFilter("mlx5_0", "mlx5_0"));
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(set.error().message, testing::HasSubstr("mlx5_0:1: in rdma-exclude"));
}

TEST_F(Devices, WhatComesAndGoesIsSeen) {
  const auto set = NicSet::Open(fabric_.Host("a"), ParseNicFilter("mlx5_*", ""));
  ASSERT_TRUE(set);
  fabric_.SetPort("mlx5_1", false);
  (*set)->Watch();
  EXPECT_TRUE((*set)->up(0));
  EXPECT_FALSE((*set)->up(1));
  fabric_.SetPort("mlx5_1", true);
  (*set)->Watch();
  EXPECT_TRUE((*set)->up(1));
}

TEST_F(Devices, PlacesFromSysfs) {
  const fs::path root = fs::path(testing::TempDir()) / "moonpool-sysfs";
  fs::remove_all(root);
  const fs::path pci = root / "devices/pci0000:16/0000:16:02.0/0000:17:00.0";
  fs::create_directories(pci);
  std::ofstream(pci / "numa_node") << "1\n";
  fs::create_directories(root / "class/infiniband/mlx5_0");
  fs::create_symlink(pci, root / "class/infiniband/mlx5_0/device");
  const auto found = DiscoverNics(*verbs_, ParseNicFilter("mlx5_*", ""), root);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->nics[0].numa_node, 1);
  EXPECT_EQ(found->nics[0].pci_path, "pci0000:16/0000:16:02.0/0000:17:00.0");
  EXPECT_EQ(found->nics[1].numa_node, -1);
  EXPECT_EQ(found->nics[1].pci_path, "");
  fs::remove_all(root);
}

TEST(PciDistance, CountsTheWayBetween) {
  const std::string nic = "pci0000:16/0000:16:02.0/0000:17:00.0";
  EXPECT_EQ(PciDistance(nic, nic), 0);
  EXPECT_EQ(PciDistance(nic, "pci0000:16/0000:16:02.0/0000:17:00.1"), 0);
  EXPECT_EQ(PciDistance(nic, "pci0000:16/0000:16:02.0/0000:18:00.0"), 2);
  EXPECT_EQ(PciDistance(nic, "pci0000:16/0000:16:04.0/0000:19:00.0"), 4);
  EXPECT_EQ(PciDistance(nic, "pci0000:97/0000:97:02.0/0000:98:00.0"), kFar);
  EXPECT_EQ(PciDistance(nic, ""), kFar);
}

// --- who talks to whom ---------------------------------------------------------------------

Nic Local(std::string address, Protocol protocol = Protocol::kRoceV2) {
  static FakeFabric fabric(FakeFabric::Moves::kAtOnce);
  static const bool added = [] {
    fabric.AddDevice("here", "nic", "192.0.2.1");
    return true;
  }();
  EXPECT_TRUE(added);
  Nic nic;
  nic.device = (*fabric.Host("here")->Devices())[0];
  nic.addresses = {std::move(address)};
  nic.protocol = protocol;
  nic.speed_mbps = 100000;
  return nic;
}

RemoteNic Remote(std::string address, Protocol protocol = Protocol::kRoceV2) {
  return {"there", {std::move(address)}, protocol, 100000};
}

std::vector<std::pair<size_t, size_t>> Pairs(const std::vector<Nic>& local,
                                             const std::vector<RemoteNic>& remote) {
  std::vector<std::pair<size_t, size_t>> result;
  for (const NicPair& pair : PairNics(local, remote)) result.emplace_back(pair.local, pair.remote);
  return result;
}

using P = std::pair<size_t, size_t>;

TEST(Topology, RailsByTheirSubnets) {
  EXPECT_THAT(
      Pairs({Local("10.0.1.1"), Local("10.0.2.1")}, {Remote("10.0.2.9"), Remote("10.0.1.9")}),
      ElementsAre(P(0, 1), P(1, 0)));
}

TEST(Topology, OneToOneOnOneSubnet) {
  EXPECT_THAT(
      Pairs({Local("10.0.0.1"), Local("10.0.0.2")}, {Remote("10.0.0.129"), Remote("10.0.0.130")}),
      ElementsAre(P(0, 0), P(1, 1)));
}

TEST(Topology, EveryNicOfEitherSideIsUsed) {
  EXPECT_THAT(Pairs({Local("10.0.0.1")}, {Remote("10.0.0.2"), Remote("10.0.1.2")}),
              ElementsAre(P(0, 0), P(0, 1)));
  EXPECT_THAT(Pairs({Local("10.0.0.1"), Local("10.0.1.1")}, {Remote("10.0.1.2")}),
              ElementsAre(P(0, 0), P(1, 0)));
}

TEST(Topology, OnlyThoseThatCanTalk) {
  EXPECT_TRUE(Pairs({Local("10.0.0.1", Protocol::kIwarp)}, {Remote("10.0.0.2")}).empty());
  EXPECT_TRUE(Pairs({Local("10.0.0.1")}, {Remote("fd00::1")}).empty());
  EXPECT_THAT(Pairs({Local("fd00::1")}, {Remote("fd00::2")}), ElementsAre(P(0, 0)));
}

TEST(Topology, CommonBits) {
  EXPECT_EQ(CommonBits("10.0.0.1", "10.0.0.1"), 32);
  EXPECT_EQ(CommonBits("10.0.0.0", "10.0.0.1"), 31);
  EXPECT_EQ(CommonBits("10.0.0.0", "138.0.0.0"), 0);
  EXPECT_EQ(CommonBits("fd00::", "fd00::1"), 127);
  EXPECT_EQ(CommonBits("fd00::", "10.0.0.1"), -1);
  EXPECT_EQ(CommonBits("what", "10.0.0.1"), -1);
}

}  // namespace
}  // namespace moonpool::rdma
