// What maxmemory-policy may be, and how it is written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace moonpool::storage {

enum class MaxmemoryPolicy : uint8_t {
  kNoEviction,
  kAllKeysLru,
  kAllKeysLfu,
  kAllKeysS3Fifo,
  kAllKeysPrefix,
  kAllKeysRandom,
  kVolatileLru,
  kVolatileLfu,
  kVolatileRandom,
  kVolatileTtl,
};

// In their order.
inline constexpr std::array<std::string_view, 10> kMaxmemoryPolicyNames = {
    "noeviction",     "allkeys-lru",  "allkeys-lfu",  "allkeys-s3fifo",  "allkeys-prefix",
    "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"};

constexpr std::string_view NameOf(MaxmemoryPolicy policy) {
  return kMaxmemoryPolicyNames[static_cast<size_t>(policy)];
}

constexpr std::optional<MaxmemoryPolicy> ParseMaxmemoryPolicy(std::string_view name) {
  for (size_t i = 0; i < kMaxmemoryPolicyNames.size(); ++i) {
    if (kMaxmemoryPolicyNames[i] == name) return static_cast<MaxmemoryPolicy>(i);
  }
  return std::nullopt;
}

constexpr bool VolatileOnly(MaxmemoryPolicy policy) {
  return policy >= MaxmemoryPolicy::kVolatileLru;
}

}  // namespace moonpool::storage
