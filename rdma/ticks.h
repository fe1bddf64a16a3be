// A clock to compare durations with that costs a few nanoseconds everywhere, also where asking the
// kernel is slow (virtual machines).  Its unit is its own; it may jump when a thread moves between
// processors of an old machine, so nothing but estimates may rest on it.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#else
#include <chrono>
#endif

namespace moonpool::rdma {

inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}

}  // namespace moonpool::rdma
