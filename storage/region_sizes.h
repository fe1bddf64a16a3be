// How large regions are, and the ids they get.
//
// Threads: any.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "protocol/status.h"
#include "storage/memory_budget.h"
#include "storage/region.h"

namespace moonpool::storage {

// Of CXL memory, and of a device's.
inline constexpr uint64_t kLeastRegions = 16;

inline uint64_t RoundUpTo(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// So that there are at least kLeastRegions.
inline uint64_t LargestOf(const MemoryBudget& budget) {
  return std::max(budget.limit() / kLeastRegions / kHugePageBytes * kHugePageBytes, kHugePageBytes);
}

// For a region: the usual bytes, or an eighth where there is no room for so much, but
// `least_bytes`. `spare` more must be left.
inline Result<uint64_t> TakeRegion(MemoryBudget& budget, uint64_t usual, uint64_t least_bytes,
                                   uint64_t spare, const char* limit) {
  const uint64_t least = RoundUpTo(least_bytes, kHugePageBytes);
  uint64_t bytes = std::max(usual, least);
  if (budget.TakeRegion(bytes, spare)) return bytes;
  bytes = std::max(RoundUpTo(usual / 8, kHugePageBytes), least);
  if (budget.TakeRegion(bytes, spare)) return bytes;
  return Fail(ErrorCode::kOutOfMemory, std::string(limit) + " leaves no room for a region of " +
                                           std::to_string(bytes) + " bytes");
}

}  // namespace moonpool::storage
