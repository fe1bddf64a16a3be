#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#else
#include <ctime>
#endif

namespace moonpool::server {

// A cheap clock for durations; TickRate() says how fast it runs.
inline uint64_t Ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
#endif
}

// Ticks per microsecond, measured once (the first call takes about 10 ms).
double TickRate();

}  // namespace moonpool::server
