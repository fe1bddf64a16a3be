#include "storage/extent_allocator.h"

#include <algorithm>
#include <bit>

#include "protocol/status.h"

namespace moonpool::storage {

ExtentAllocator::ExtentAllocator(uint64_t region_bytes) : bins_(kBins, kNone) {
  MOONPOOL_CHECK(region_bytes > 0 && region_bytes % kAlignment == 0);
  MOONPOOL_CHECK(region_bytes / kAlignment < kHoleTag);
  free_pages_ = region_bytes / kAlignment;
  tags_.resize(free_pages_);
  Link(NewHole(), 0, static_cast<uint32_t>(free_pages_));
}

std::optional<uint64_t> ExtentAllocator::Allocate(uint64_t bytes) {
  MOONPOOL_CHECK(bytes > 0);
  if (bytes > free_bytes()) return std::nullopt;  // also keeps RoundUp from overflowing
  const auto pages = static_cast<uint32_t>(RoundUp(bytes) / kAlignment);
  const uint32_t hole = FindHole(pages);
  if (hole == kNone) return std::nullopt;

  Unlink(hole);
  const uint32_t first_page = holes_[hole].first_page;
  const uint32_t left_over = holes_[hole].pages - pages;
  if (left_over > 0) {
    Link(hole, first_page + pages, left_over);
  } else {
    DiscardHole(hole);
  }
  tags_[first_page + pages - 1] = kNoTag;
  tags_[first_page] = pages;
  free_pages_ -= pages;
  return first_page * kAlignment;
}

void ExtentAllocator::Free(uint64_t offset, uint64_t bytes) {
  MOONPOOL_CHECK(offset % kAlignment == 0 && offset < region_bytes());
  MOONPOOL_CHECK(bytes > 0 && bytes <= region_bytes() - offset);
  auto first_page = static_cast<uint32_t>(offset / kAlignment);
  auto pages = static_cast<uint32_t>(RoundUp(bytes) / kAlignment);
  MOONPOOL_CHECK(tags_[first_page] == pages);  // else: freed twice, or not a run of this length
  tags_[first_page] = kNoTag;
  free_pages_ += pages;

  uint32_t hole = kNone;
  const uint32_t after = HoleAt(uint64_t{first_page} + pages);
  if (first_page > 0) hole = HoleAt(first_page - 1);
  if (hole != kNone) {
    Unlink(hole);
    first_page = holes_[hole].first_page;
    pages += holes_[hole].pages;
  }
  if (after != kNone) {
    Unlink(after);
    pages += holes_[after].pages;
    if (hole == kNone) {
      hole = after;
    } else {
      DiscardHole(after);
    }
  }
  Link(hole != kNone ? hole : NewHole(), first_page, pages);
}

uint64_t ExtentAllocator::largest_free_bytes() const {
  uint32_t pages = 0;
  for (uint32_t hole = bins_[kBins - 1]; hole != kNone; hole = holes_[hole].next) {
    pages = std::max(pages, holes_[hole].pages);
  }
  for (uint32_t word = kWords; pages == 0 && word-- > 0;) {
    if (non_empty_[word] != 0) pages = word * 64 + std::bit_width(non_empty_[word]);
  }
  return pages * kAlignment;
}

uint32_t ExtentAllocator::FindHole(uint32_t pages) const {
  const uint32_t bin = NextNonEmptyBin(BinOf(pages));
  if (bin == kNone) return kNone;
  if (pages <= kBins) return bins_[bin];  // holes of one length, or all long enough
  // A region has few holes of 64 MiB and more, and few values need one.
  uint32_t best = kNone;
  for (uint32_t hole = bins_[bin]; hole != kNone; hole = holes_[hole].next) {
    if (holes_[hole].pages < pages) continue;
    if (best == kNone || holes_[hole].pages < holes_[best].pages) best = hole;
  }
  return best;
}

uint32_t ExtentAllocator::NextNonEmptyBin(uint32_t from) const {
  uint32_t word = from / 64;
  uint64_t bits = non_empty_[word] >> (from % 64);
  if (bits != 0) return from + std::countr_zero(bits);
  if (++word == kWords) return kNone;
  uint32_t group = word / 64;
  uint64_t words = non_empty_words_[group] >> (word % 64) << (word % 64);
  while (words == 0) {
    if (++group == non_empty_words_.size()) return kNone;
    words = non_empty_words_[group];
  }
  word = group * 64 + std::countr_zero(words);
  return word * 64 + std::countr_zero(non_empty_[word]);
}

uint32_t ExtentAllocator::HoleAt(uint64_t page) const {
  if (page >= tags_.size() || (tags_[page] & kHoleTag) == 0) return kNone;
  return tags_[page] & ~kHoleTag;
}

uint32_t ExtentAllocator::NewHole() {
  if (unused_holes_ == kNone) {
    holes_.emplace_back();
    return static_cast<uint32_t>(holes_.size() - 1);
  }
  const uint32_t hole = unused_holes_;
  unused_holes_ = holes_[hole].next;
  return hole;
}

void ExtentAllocator::DiscardHole(uint32_t hole) {
  holes_[hole].next = unused_holes_;
  unused_holes_ = hole;
}

void ExtentAllocator::Link(uint32_t hole, uint32_t first_page, uint32_t pages) {
  const uint32_t bin = BinOf(pages);
  const uint32_t next = bins_[bin];
  holes_[hole] = {.first_page = first_page, .pages = pages, .prev = kNone, .next = next};
  if (next != kNone) holes_[next].prev = hole;
  bins_[bin] = hole;
  non_empty_[bin / 64] |= uint64_t{1} << (bin % 64);
  non_empty_words_[bin / 64 / 64] |= uint64_t{1} << (bin / 64 % 64);
  tags_[first_page] = tags_[first_page + pages - 1] = kHoleTag | hole;
}

void ExtentAllocator::Unlink(uint32_t hole) {
  const uint32_t bin = BinOf(holes_[hole].pages);
  const uint32_t prev = holes_[hole].prev;
  const uint32_t next = holes_[hole].next;
  if (next != kNone) holes_[next].prev = prev;
  if (prev != kNone) {
    holes_[prev].next = next;
    return;
  }
  bins_[bin] = next;
  if (next != kNone) return;
  non_empty_[bin / 64] &= ~(uint64_t{1} << (bin % 64));
  if (non_empty_[bin / 64] != 0) return;
  non_empty_words_[bin / 64 / 64] &= ~(uint64_t{1} << (bin / 64 % 64));
}

}  // namespace moonpool::storage
