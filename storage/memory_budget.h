// What one tenant's memory is spent on, and how much there may be.
//
// Threads: any; plain counters.  "Region bytes" is address space faulted in or about to be,
// whether values live there or not; "extent bytes" is what reservations and values use of it,
// those in quarantine included.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace moonpool::storage {

class MemoryBudget {
 public:
  explicit MemoryBudget(uint64_t limit_bytes) : limit_(limit_bytes) {}

  uint64_t limit() const { return limit_.load(std::memory_order_relaxed); }
  void set_limit(uint64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }

  uint64_t inline_bytes() const { return Read(inline_); }
  uint64_t region_bytes() const { return Read(region_); }
  uint64_t extent_bytes() const { return Read(extent_); }
  // What counts against the watermarks.
  uint64_t used_bytes() const { return inline_bytes() + extent_bytes(); }
  // Extents that no key refers to: reserved, or overwritten, deleted and evicted while somebody
  // still holds them.
  uint64_t unlinked_bytes() const {
    const uint64_t extents = extent_bytes();
    return extents - std::min(extents, Read(linked_));
  }

  void AddInline(int64_t bytes) { inline_.fetch_add(bytes, std::memory_order_relaxed); }
  void AddExtent(int64_t bytes) { extent_.fetch_add(bytes, std::memory_order_relaxed); }
  // A key began (or ceased) to refer to an extent.
  void AddLinked(int64_t bytes) { linked_.fetch_add(bytes, std::memory_order_relaxed); }
  void ReleaseRegion(uint64_t bytes) {
    region_.fetch_sub(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  }
  // A region became larger (or smaller) than what was taken for it.
  void AdjustRegion(int64_t bytes) { region_.fetch_add(bytes, std::memory_order_relaxed); }
  // False when a region of that size would not leave `spare_bytes` of the limit free.
  bool TakeRegion(uint64_t bytes, uint64_t spare_bytes = 0) {
    int64_t current = region_.load(std::memory_order_relaxed);
    do {
      if (static_cast<uint64_t>(std::max<int64_t>(current, 0)) + bytes + spare_bytes +
              inline_bytes() >
          limit()) {
        return false;
      }
    } while (!region_.compare_exchange_weak(current, current + static_cast<int64_t>(bytes),
                                            std::memory_order_relaxed));
    return true;
  }

 private:
  // Stripes report their changes late and in any order; a sum may dip below zero for a moment.
  static uint64_t Read(const std::atomic<int64_t>& counter) {
    return static_cast<uint64_t>(std::max<int64_t>(counter.load(std::memory_order_relaxed), 0));
  }

  std::atomic<uint64_t> limit_;
  std::atomic<int64_t> inline_{0};
  std::atomic<int64_t> region_{0};
  std::atomic<int64_t> extent_{0};
  std::atomic<int64_t> linked_{0};
};

}  // namespace moonpool::storage
