// The NICs of this host: which there are, which may be used, and how near they are to each other
// and to memory.
//
// A Nic is one port of a device with the addresses that lead to it.  Left out, with the reason
// told: ports that are down, that have no address, or that the filter names. Threads: any; nothing
// is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "rdma/verbs.h"

namespace moonpool::rdma {

// Glob patterns on "device" or "device:port", as in "mlx5_*" or "mlx5_0:2".
struct NicFilter {
  std::vector<std::string> only;     // empty: all
  std::vector<std::string> exclude;  // has the last word
};
// From lists with commas or blanks.
NicFilter ParseNicFilter(const std::string& only, const std::string& exclude);

struct Nic {
  std::shared_ptr<Device> device;
  uint8_t port = 1;
  Protocol protocol = Protocol::kInfiniBand;
  std::vector<std::string> addresses;  // numeric; IPv4 first
  std::vector<GidEntry> gids;
  DeviceAttributes attributes;
  uint64_t speed_mbps = 0;
  uint32_t mtu_bytes = 0;
  int numa_node = -1;    // -1: unknown, or the same distance from all
  std::string pci_path;  // below /sys/devices; empty for software devices

  std::string name() const { return device->name() + ":" + std::to_string(port); }
};

struct Discovery {
  struct LeftOut {
    std::string name;
    std::string why;
  };
  std::vector<Nic> nics;  // fastest first, else by name
  std::vector<LeftOut> left_out;
};

// `sysfs`: where the kernel tells about devices; tests have a copy.
Result<Discovery> DiscoverNics(Verbs& verbs, const NicFilter& filter,
                               const std::string& sysfs = "/sys");

// Bridges between two devices, both ways: 0 for functions of one device; kFar when they share no
// root, or when either is unknown.
inline constexpr int kFar = 1000;
int PciDistance(const std::string& a, const std::string& b);

// One line for people: "mlx5_0:1 RoCE v2, 100 Gb/s, MTU 4096, NUMA node 0, 10.0.0.1".
std::string Describe(const Nic& nic);

}  // namespace moonpool::rdma
