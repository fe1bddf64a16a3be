// Blocks that say what they are: every 64-bit word depends on the key, the version and its own
// place, so any mixture of two versions, two keys or two offsets is seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace moonpool {

struct Stamp {
  uint64_t key = 0;
  uint64_t version = 0;
};

inline uint64_t StampedWord(const Stamp& stamp, uint64_t index) {
  uint64_t x = stamp.key * 0x9e3779b97f4a7c15u + stamp.version * 0xc2b2ae3d27d4eb4fu +
               index * 0x165667b19e3779f9u;
  x ^= x >> 31;
  return x * 0xff51afd7ed558ccdu;
}

// `bytes` must be a multiple of 8 and at least 24: [key][version][bytes][words...].
inline void FillStamped(void* to, size_t bytes, const Stamp& stamp) {
  auto* out = static_cast<char*>(to);
  const uint64_t header[3] = {stamp.key, stamp.version, bytes};
  std::memcpy(out, header, sizeof(header));
  for (size_t i = 3; i < bytes / 8; ++i) {
    const uint64_t word = StampedWord(stamp, i);
    std::memcpy(out + i * 8, &word, 8);
  }
}

// Empty when the bytes are exactly one version of that key; else what is wrong with them.
inline std::string CheckStamped(const void* from, size_t bytes, uint64_t key,
                                Stamp* found = nullptr) {
  const auto* in = static_cast<const char*>(from);
  if (bytes < 24 || bytes % 8 != 0) return "impossible length " + std::to_string(bytes);
  uint64_t header[3];
  std::memcpy(header, in, sizeof(header));
  const Stamp stamp{header[0], header[1]};
  if (stamp.key != key) {
    return "bytes of key " + std::to_string(stamp.key) + " under key " + std::to_string(key);
  }
  if (header[2] != bytes) {
    return "a version of " + std::to_string(header[2]) + " bytes read as " + std::to_string(bytes);
  }
  for (size_t i = 3; i < bytes / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, in + i * 8, 8);
    if (word != StampedWord(stamp, i)) {
      return "torn at word " + std::to_string(i) + " of " + std::to_string(bytes / 8);
    }
  }
  if (found != nullptr) *found = stamp;
  return "";
}

}  // namespace moonpool
