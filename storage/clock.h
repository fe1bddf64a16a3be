// The time of day, and one that never jumps.  Threads: any.
#pragma once

#include <chrono>
#include <cstdint>

namespace moonpool::storage {

// Milliseconds since 1970.
inline int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Milliseconds since some time before the start.
inline int64_t MonotonicMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace moonpool::storage
