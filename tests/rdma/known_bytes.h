// Bytes that say which value they are of: any length, every 64-bit word of its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>

namespace moonpool::rdma::test {

inline uint64_t KnownWord(uint64_t value, uint64_t index) {
  uint64_t x = value * 0x9e3779b97f4a7c15u + index * 0x165667b19e3779f9u;
  x ^= x >> 29;
  return x * 0xff51afd7ed558ccdu;
}

inline void FillKnown(char* to, uint64_t bytes, uint64_t value) {
  for (uint64_t at = 0; at < bytes; at += 8) {
    const uint64_t word = KnownWord(value, at / 8);
    std::memcpy(to + at, &word, bytes - at < 8 ? bytes - at : 8);
  }
}

// Where the first byte is that is not of that value; empty when all are.
inline std::optional<uint64_t> FirstWrong(const char* from, uint64_t bytes, uint64_t value) {
  for (uint64_t at = 0; at < bytes; at += 8) {
    const uint64_t word = KnownWord(value, at / 8);
    if (std::memcmp(from + at, &word, bytes - at < 8 ? bytes - at : 8) != 0) return at;
  }
  return std::nullopt;
}

}  // namespace moonpool::rdma::test
