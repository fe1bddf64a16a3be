// Random numbers to sample with: xorshift64* (S. Vigna, "An experimental exploration of
// Marsaglia's xorshift generators, scrambled", 2016), one generator per thread.  Nearly free, and
// nothing that must not be guessed may rest on them.
#pragma once

#include <cstdint>
#include <random>

namespace moonpool::storage {

inline uint64_t FastRandom() {
  thread_local uint64_t state = uint64_t{std::random_device{}()} << 32 | 1;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 2685821657736338717ull;
}

}  // namespace moonpool::storage
