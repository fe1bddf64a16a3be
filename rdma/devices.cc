#include "rdma/devices.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "protocol/glob.h"

namespace moonpool::rdma {

namespace {

namespace fs = std::filesystem;

std::vector<std::string> Words(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text + ",") {
    if (c != ',' && c != ' ') {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  return words;
}

bool Matches(const std::vector<std::string>& patterns, const std::string& device, uint8_t port) {
  const std::string with_port = device + ":" + std::to_string(port);
  return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
    return protocol::GlobMatch(pattern, device) || protocol::GlobMatch(pattern, with_port);
  });
}

// The protocol that connections to an address of the port speak.  RoCE v1 and v2 entries stand side
// by side where the NIC can do both; the connection manager uses v2 then, as kernels since 4.12 do.
Protocol ProtocolOf(const DeviceAttributes& device, const PortAttributes& port) {
  if (device.iwarp) return Protocol::kIwarp;
  if (!port.ethernet) return Protocol::kInfiniBand;
  const bool v2 = std::any_of(port.gids.begin(), port.gids.end(), [](const GidEntry& gid) {
    return gid.protocol == Protocol::kRoceV2;
  });
  return v2 ? Protocol::kRoceV2 : Protocol::kRoceV1;
}

// Where the device is in the tree of buses; empty when it is on none.
std::string PciPath(const std::string& sysfs, const std::string& device) {
  std::error_code error;
  const fs::path link = fs::path(sysfs) / "class/infiniband" / device / "device";
  const fs::path real = fs::canonical(link, error);
  if (error) return {};
  const fs::path root = fs::canonical(fs::path(sysfs) / "devices", error);
  if (error) return {};
  const fs::path relative = real.lexically_relative(root);
  return relative.string().rfind("pci", 0) == 0 ? relative.string() : std::string();
}

int NumaNode(const std::string& sysfs, const std::string& device) {
  std::ifstream file(fs::path(sysfs) / "class/infiniband" / device / "device/numa_node");
  int node = -1;
  return file >> node ? node : -1;
}

bool Is4(const std::string& address) {
  return address.find(':') == std::string::npos;
}

}  // namespace

NicFilter ParseNicFilter(const std::string& only, const std::string& exclude) {
  return {Words(only), Words(exclude)};
}

Result<Discovery> DiscoverNics(Verbs& verbs, const NicFilter& filter, const std::string& sysfs) {
  auto devices = verbs.Devices();
  if (!devices) return tl::unexpected<Error>(std::move(devices.error()));
  const std::vector<LocalAddress> addresses = verbs.Addresses();
  Discovery result;
  for (const auto& device : *devices) {
    auto attributes = device->Query();
    if (!attributes) {
      result.left_out.push_back({device->name(), attributes.error().message});
      continue;
    }
    for (const PortAttributes& port : attributes->ports) {
      Nic nic;
      nic.device = device;
      nic.port = port.number;
      const auto leave_out = [&](std::string why) {
        result.left_out.push_back({nic.name(), std::move(why)});
      };
      if (!filter.only.empty() && !Matches(filter.only, device->name(), port.number)) {
        leave_out("not in rdma-devices");
        continue;
      }
      if (Matches(filter.exclude, device->name(), port.number)) {
        leave_out("in rdma-exclude");
        continue;
      }
      if (!port.active) {
        leave_out("the port is down");
        continue;
      }
      for (const LocalAddress& address : addresses) {
        if (address.device == device->name() && address.port == port.number) {
          nic.addresses.push_back(address.address);
        }
      }
      if (nic.addresses.empty()) {
        leave_out(port.ethernet ? "its network interface has no address"
                                : "no IPoIB interface with an address leads to it");
        continue;
      }
      std::stable_partition(nic.addresses.begin(), nic.addresses.end(), Is4);
      nic.protocol = ProtocolOf(*attributes, port);
      nic.gids = port.gids;
      nic.attributes = *attributes;
      nic.speed_mbps = port.speed_mbps;
      nic.mtu_bytes = port.mtu_bytes;
      nic.pci_path = PciPath(sysfs, device->name());
      nic.numa_node = NumaNode(sysfs, device->name());
      result.nics.push_back(std::move(nic));
    }
  }
  std::stable_sort(result.nics.begin(), result.nics.end(), [](const Nic& a, const Nic& b) {
    return a.speed_mbps != b.speed_mbps ? a.speed_mbps > b.speed_mbps : a.name() < b.name();
  });
  return result;
}

int PciDistance(const std::string& a, const std::string& b) {
  if (a.empty() || b.empty()) return kFar;
  const fs::path one(a);
  const fs::path other(b);
  // Functions of one device differ in the digit behind the last point.
  const auto device = [](const fs::path& path) {
    return (path.parent_path() / path.stem()).string();
  };
  if (device(one) == device(other)) return 0;
  auto i = one.begin();
  auto j = other.begin();
  if (*i != *j) return kFar;
  while (i != one.end() && j != other.end() && *i == *j) {
    ++i;
    ++j;
  }
  return static_cast<int>(std::distance(i, one.end()) + std::distance(j, other.end()));
}

std::string Describe(const Nic& nic) {
  std::string text = nic.name() + " " + std::string(ProtocolName(nic.protocol));
  if (nic.speed_mbps > 0) {
    text += ", " + std::to_string(nic.speed_mbps / 1000) + "." +
            std::to_string(nic.speed_mbps % 1000 / 100) + " Gb/s";
  }
  text += ", MTU " + std::to_string(nic.mtu_bytes);
  if (nic.numa_node >= 0) text += ", NUMA node " + std::to_string(nic.numa_node);
  for (const std::string& address : nic.addresses) text += ", " + address;
  return text;
}

}  // namespace moonpool::rdma
