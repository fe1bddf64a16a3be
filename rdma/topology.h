// Which NIC of ours talks to which of the other side.
//
// Both must speak the same protocol and have addresses of one family.  Addresses with more leading
// bits in common are nearer: NICs of one rail are on one subnet.  Each NIC, of either side, is in a
// pair, each at most once while that is possible; the rest share the nearest partner.
// Threads: any; nothing is kept.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "rdma/devices.h"

namespace moonpool::rdma {

// A NIC of the other side, as it tells about it.
struct RemoteNic {
  std::string name;
  std::vector<std::string> addresses;
  Protocol protocol = Protocol::kRoceV2;
  uint64_t speed_mbps = 0;
};

struct NicPair {
  size_t local = 0;  // in the list of each side
  size_t remote = 0;
  std::string source;  // addresses
  std::string destination;
  int common_bits = 0;  // of these
  std::string why;      // for people
};

std::vector<NicPair> PairNics(std::span<const Nic> local, std::span<const RemoteNic> remote);

// Leading bits two numeric addresses have in common; -1 when they are of different families.
int CommonBits(const std::string& a, const std::string& b);

}  // namespace moonpool::rdma
