// What ssd_crash_test and the process that it kills share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace moonpool::storage {

// What the child has been told is so, in memory that outlives it.
struct Ledger {
  static constexpr size_t kMost = 1 << 16;
  enum State : uint8_t { kNone, kPut, kErased };
  std::atomic<uint64_t> count;
  std::atomic<uint64_t> largest_id;
  std::atomic<uint64_t> erased_below;
  struct Entry {
    std::atomic<uint64_t> id;
    uint64_t length;
    std::atomic<State> state;
  } entries[kMost];
};

}  // namespace moonpool::storage
