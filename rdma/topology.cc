#include "rdma/topology.h"

#include <arpa/inet.h>

#include <algorithm>
#include <bit>
#include <optional>

namespace moonpool::rdma {

namespace {

std::vector<uint8_t> BytesOf(const std::string& address) {
  std::vector<uint8_t> bytes(16);
  if (inet_pton(AF_INET6, address.c_str(), bytes.data()) == 1) return bytes;
  bytes.resize(4);
  if (inet_pton(AF_INET, address.c_str(), bytes.data()) == 1) return bytes;
  return {};
}

bool CanTalk(Protocol a, Protocol b) {
  return a == b;
}

// The nearest addresses of the two; empty when they cannot talk.
std::optional<NicPair> Nearest(std::span<const Nic> local, size_t i,
                               std::span<const RemoteNic> remote, size_t j) {
  if (!CanTalk(local[i].protocol, remote[j].protocol)) return std::nullopt;
  NicPair best;
  best.common_bits = -1;
  for (const std::string& source : local[i].addresses) {
    for (const std::string& destination : remote[j].addresses) {
      const int bits = CommonBits(source, destination);
      // Of both families' best, the one whose unlike tail is shorter is the nearer.
      const int tail = bits < 0 ? 0 : static_cast<int>(BytesOf(source).size()) * 8 - bits;
      const int best_tail =
          best.common_bits < 0
              ? 0
              : static_cast<int>(BytesOf(best.source).size()) * 8 - best.common_bits;
      if (bits < 0 || (best.common_bits >= 0 && tail >= best_tail)) continue;
      best = {i, j, source, destination, bits, {}};
    }
  }
  if (best.common_bits < 0) return std::nullopt;
  best.why = local[i].name() + " - " + remote[j].name + ": " + best.source + " and " +
             best.destination + " have " + std::to_string(best.common_bits) + " bits in common, " +
             std::string(ProtocolName(local[i].protocol));
  return best;
}

int Tail(const NicPair& pair) {
  return (pair.source.find(':') == std::string::npos ? 32 : 128) - pair.common_bits;
}

}  // namespace

int CommonBits(const std::string& a, const std::string& b) {
  const std::vector<uint8_t> one = BytesOf(a);
  const std::vector<uint8_t> other = BytesOf(b);
  if (one.empty() || one.size() != other.size()) return -1;
  int bits = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    const auto unlike = static_cast<uint8_t>(one[i] ^ other[i]);
    bits += std::countl_zero(unlike);
    if (unlike != 0) break;
  }
  return bits;
}

std::vector<NicPair> PairNics(std::span<const Nic> local, std::span<const RemoteNic> remote) {
  std::vector<NicPair> candidates;
  for (size_t i = 0; i < local.size(); ++i) {
    for (size_t j = 0; j < remote.size(); ++j) {
      if (auto pair = Nearest(local, i, remote, j)) candidates.push_back(std::move(*pair));
    }
  }
  // The nearest first; of equals the fastest, then those at the same place of their lists.
  const auto speed = [&](const NicPair& pair) {
    return std::min(local[pair.local].speed_mbps, remote[pair.remote].speed_mbps);
  };
  const auto shift = [](const NicPair& pair) {
    return pair.local > pair.remote ? pair.local - pair.remote : pair.remote - pair.local;
  };
  std::stable_sort(candidates.begin(), candidates.end(), [&](const NicPair& a, const NicPair& b) {
    if (Tail(a) != Tail(b)) return Tail(a) < Tail(b);
    if (speed(a) != speed(b)) return speed(a) > speed(b);
    return shift(a) < shift(b);
  });
  std::vector<bool> local_used(local.size());
  std::vector<bool> remote_used(remote.size());
  std::vector<NicPair> pairs;
  const auto take = [&](const NicPair& pair) {
    pairs.push_back(pair);
    local_used[pair.local] = true;
    remote_used[pair.remote] = true;
  };
  for (const NicPair& pair : candidates) {
    if (!local_used[pair.local] && !remote_used[pair.remote]) take(pair);
  }
  for (const NicPair& pair : candidates) {
    if (!local_used[pair.local] || !remote_used[pair.remote]) take(pair);
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const NicPair& a, const NicPair& b) {
    return a.local != b.local ? a.local < b.local : a.remote < b.remote;
  });
  return pairs;
}

}  // namespace moonpool::rdma
