#pragma once

#include <cstdint>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace moonpool::storage {

// Drawn once per process, so that nobody can prepare keys that all fall into one bucket.
extern const uint64_t kHashSeed;

// Keyed XXH3 (https://github.com/Cyan4973/xxHash).
inline uint64_t HashKey(std::string_view key) {
  return XXH3_64bits_withSeed(key.data(), key.size(), kHashSeed);
}

}  // namespace moonpool::storage
