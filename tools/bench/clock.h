// Monotonic time, in nanoseconds and seconds.
#pragma once

#include <time.h>

#include <cstdint>

namespace moonpool::bench {

inline uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

inline double Seconds(uint64_t ns) { return static_cast<double>(ns) / 1e9; }
inline uint64_t Nanoseconds(double seconds) { return static_cast<uint64_t>(seconds * 1e9); }

// Time since it was made or restarted.
class Stopwatch {
 public:
  Stopwatch() : start_ns_(NowNs()) {}
  void Restart() { start_ns_ = NowNs(); }
  uint64_t ns() const { return NowNs() - start_ns_; }
  double seconds() const { return Seconds(ns()); }

 private:
  uint64_t start_ns_;
};

}  // namespace moonpool::bench
