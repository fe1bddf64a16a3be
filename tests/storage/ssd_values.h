// Options and values that the tests of the SSD store share with the process that they kill.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "storage/ssd_store.h"

namespace moonpool::storage {

// Small, so that tests flush and compact.
inline SsdOptions SmallSsd(const std::string& directory) {
  SsdOptions options;
  options.directory = directory;
  options.chunk_bytes = 64 << 10;
  options.write_buffer_bytes = 1 << 20;
  return options;
}

// Bytes that no other id has.
inline std::string SsdValue(uint64_t id, uint64_t length) {
  std::string value((length + 7) / 8 * 8, '\0');
  uint64_t x = id * 0x9e3779b97f4a7c15u + 1;
  for (size_t at = 0; at < value.size(); at += 8) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    std::memcpy(value.data() + at, &x, 8);
  }
  value.resize(length);
  return value;
}

}  // namespace moonpool::storage
