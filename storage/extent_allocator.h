// Hands out runs of bytes inside one region: best fit, coalescing at once, in constant time.
// Bookkeeping only: it deals in offsets and never touches the region's memory.
//
// Units: offsets and sizes in bytes; every run starts and ends on a 4 KiB page.
// Threads: no lock of its own; the owner serialises all calls.
// Errors: no room is std::nullopt.  Wrong use (a size of zero, freeing anything but exactly one
//     live run) is a bug and aborts; Free() sees every such call.
// Time: tens of nanoseconds; only runs over 64 MiB look at every hole of that length.
// Memory: 4 bytes per page of the region (0.1 %), 16 bytes per hole, 66 KiB fixed.
//
// Algorithm: boundary tags (Knuth, The Art of Computer Programming vol. 1, 2.5, algorithm C) and a
// bin for every length of hole.  Live runs never move, so a full region stays usable only if no
// hole is cut while another fits better.  Rounded size classes (TLSF, OffsetAllocator) pass over
// the very hole that a value of the same size left: on a churned mix of 4 KiB, 256 KiB and 3.1 MB
// values they fail at 0.65 of the region, exact fit at 0.98.  Which hole among equals, small and
// large sizes at different ends, slabs for small sizes: each within a point of this on that mix.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace moonpool::storage {

class ExtentAllocator {
 public:
  static constexpr uint64_t kAlignment = 4096;

  // bytes at most 2^64 - 4096.
  static constexpr uint64_t RoundUp(uint64_t bytes) {
    return (bytes + kAlignment - 1) & ~(kAlignment - 1);
  }

  // REQUIRES: region_bytes is a positive multiple of 4 KiB below 8 TiB.
  explicit ExtentAllocator(uint64_t region_bytes);

  ExtentAllocator(const ExtentAllocator&) = delete;
  ExtentAllocator& operator=(const ExtentAllocator&) = delete;

  // The offset of a run of RoundUp(bytes), or nothing if no hole is that long (free_bytes() may
  // still be larger: then it lies in pieces).  Any size may be asked for.  REQUIRES: bytes > 0.
  std::optional<uint64_t> Allocate(uint64_t bytes);

  // Gives back a whole run.  REQUIRES: offset came from Allocate(bytes), with the same bytes after
  // rounding, and was not freed since.
  void Free(uint64_t offset, uint64_t bytes);

  uint64_t region_bytes() const { return tags_.size() * kAlignment; }
  uint64_t free_bytes() const { return free_pages_ * kAlignment; }
  // The largest size that Allocate() would grant now.
  uint64_t largest_free_bytes() const;

 private:
  // Bin i holds the holes of exactly i + 1 pages; the last bin all holes of 64 MiB or more.
  static constexpr uint32_t kBins = 16384;
  static constexpr uint32_t kWords = kBins / 64;
  static constexpr uint32_t kNone = UINT32_MAX;

  // A maximal free run: the pages on both sides of it are live or outside the region.
  struct Hole {
    uint32_t first_page;
    uint32_t pages;
    uint32_t prev;  // neighbours in the list of its bin, as indices into holes_
    uint32_t next;  // (also chains unused entries of holes_)
  };

  // What is known at a page.  First page of a live run: its length in pages; its last page (of two
  // or more): kNoTag.  First and last page of a hole: kHoleTag | its index in holes_.  The pages
  // between may hold stale hole tags, never a stale length: that makes Free()'s check exact.
  using Tag = uint32_t;
  static constexpr Tag kNoTag = 0;
  static constexpr Tag kHoleTag = 1u << 31;

  static uint32_t BinOf(uint32_t pages) { return (pages < kBins ? pages : kBins) - 1; }

  uint32_t FindHole(uint32_t pages) const;        // the best fit, or kNone
  uint32_t NextNonEmptyBin(uint32_t from) const;  // the first at or above `from`, or kNone
  uint32_t HoleAt(uint64_t page) const;  // the hole that starts or ends at a page, or kNone
  uint32_t NewHole();                    // an unused entry of holes_
  void DiscardHole(uint32_t hole);       // back to the unused ones; must be unlinked
  void Link(uint32_t hole, uint32_t first_page, uint32_t pages);  // into its bin and the tags
  void Unlink(uint32_t hole);                                     // out of its bin

  std::vector<Tag> tags_;  // one per page
  std::vector<Hole> holes_;
  uint32_t unused_holes_ = kNone;
  std::vector<uint32_t> bins_;                           // first hole of each bin, or kNone
  std::array<uint64_t, kWords> non_empty_{};             // bit i: bin i has a hole
  std::array<uint64_t, kWords / 64> non_empty_words_{};  // bit i: non_empty_[i] is not 0
  uint64_t free_pages_;
};

}  // namespace moonpool::storage
