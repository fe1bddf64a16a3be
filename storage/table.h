// A hash table of entries: 64-byte buckets of eight tagged pointers, grown and shrunk one bucket
// at a time.
//
// Buckets live in segments that double in size, so nothing is ever copied as a whole and no
// operation stalls for a rehash.  With 2^level <= n < 2^(level+1) buckets, an entry is in bucket
// hash mod 2^(level+1) if that exists and in hash mod 2^level if not (linear hashing: W. Litwin,
// VLDB 1980).  A ninth entry makes the last slot a pointer to an overflow bucket.  The table
// splits buckets from 8 entries per bucket down to 4, then rests: 11 to 20 bytes a key.
//
// Scan() walks with Redis's reverse-binary cursor: every entry that was in the table from the
// first call to the last is reported at least once, however the table grew or shrank meanwhile.
//
// Threads: none of its own; the stripe's lock.  Owns the entries' place, not what a bulk entry
// points to: the owner empties the table first.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "storage/entry.h"

namespace moonpool::storage {

class Table {
 public:
  // Where an entry is; valid until the next Insert or Erase.
  class Slot {
   public:
    Slot() = default;
    explicit operator bool() const { return word_ != nullptr; }
    Entry* entry() const { return Unpack(*word_); }

   private:
    friend class Table;
    explicit Slot(uint64_t* word) : word_(word) {}
    uint64_t* word_ = nullptr;
  };

  Table();
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  Slot Find(uint64_t hash, std::string_view key) const {
    return FindIf(hash, [key](const Entry& entry) { return entry.key() == key; });
  }
  // The first entry with that hash for which match(const Entry&) holds.
  template <typename Match>
  Slot FindIf(uint64_t hash, Match&& match) const;
  // REQUIRES: no entry with that key is there.
  void Insert(uint64_t hash, Entry* entry);
  // Puts another entry with the same key in its place, or re-reads the flags of the same one.
  void Replace(Slot slot, Entry* entry);
  // Takes the entry out and returns it.
  Entry* Erase(uint64_t hash, Slot slot);

  void Swap(Table& other);

  size_t size() const { return size_; }
  // Of the buckets, not of the entries.
  size_t bytes() const { return bytes_; }

  // Calls visit(Entry*) for a few entries and returns the next cursor, 0 at the end.
  // visit must not change the table.
  template <typename Visit>
  uint64_t Scan(uint64_t cursor, Visit&& visit) const;
  // The same for entries that may have an expiry; the others are not even read.
  template <typename Visit>
  uint64_t ScanExpiring(uint64_t cursor, Visit&& visit) const;
  // Calls visit(Entry*) for the entries of one bucket picked by `random`.
  template <typename Visit>
  void Sample(uint64_t random, Visit&& visit) const;

  // Hints for the processor.  PrefetchBucket may be called without the stripe's lock.
  void PrefetchBucket(uint64_t hash) const;
  void PrefetchEntry(uint64_t hash) const;

 private:
  static constexpr int kSlots = 8;
  static constexpr int kMaxSegments = 34;
  // Word: bit 63 overflow pointer, bit 62 has an expiry, bits 48..61 hash, low 48 the address.
  static constexpr uint64_t kOverflow = 1ull << 63;
  static constexpr uint64_t kExpiry = 1ull << 62;
  static constexpr uint64_t kAddress = (1ull << 48) - 1;
  static constexpr uint64_t kTag = ((1ull << 14) - 1) << 48;

  struct alignas(64) Bucket {
    uint64_t words[kSlots];
  };

  static uint64_t TagOf(uint64_t hash) { return (hash << 8) & kTag; }  // hash bits 40..53
  static Entry* Unpack(uint64_t word) { return reinterpret_cast<Entry*>(word & kAddress); }
  static Bucket* Overflow(uint64_t word) {
    return (word & kOverflow) != 0 ? reinterpret_cast<Bucket*>(word & kAddress) : nullptr;
  }
  static uint64_t Pack(uint64_t tag, Entry* entry) {
    return (tag & kTag) | (entry->has(Entry::kHasExpiry) ? kExpiry : 0) |
           reinterpret_cast<uint64_t>(entry);
  }
  static int SegmentOf(uint64_t index) {
    return index == 0 ? 0 : 64 - __builtin_clzll(index);
  }

  uint64_t IndexOf(uint64_t hash) const {
    const uint64_t buckets = buckets_.load(std::memory_order_relaxed);
    const uint64_t level = uint64_t{1} << (63 - __builtin_clzll(buckets));
    const uint64_t index = hash & (level * 2 - 1);
    return index < buckets ? index : index & (level - 1);
  }
  Bucket* BucketAt(uint64_t index) const {
    const int segment = SegmentOf(index);
    const uint64_t first = segment == 0 ? 0 : uint64_t{1} << (segment - 1);
    return segments_[static_cast<size_t>(segment)].load(std::memory_order_relaxed) +
           (index - first);
  }
  uint64_t buckets() const { return buckets_.load(std::memory_order_relaxed); }

  template <typename Visit>
  static void VisitBucket(const Bucket* bucket, uint64_t mask, Visit&& visit);
  template <typename Visit>
  uint64_t ScanWith(uint64_t cursor, uint64_t mask, Visit&& visit) const;

  Bucket* NewBuckets(uint64_t count);
  void FreeBuckets(Bucket* buckets, uint64_t count);
  void Append(Bucket* bucket, uint64_t word);
  void SplitOne();
  void MergeOne();

  // Relaxed atomics because PrefetchBucket reads them without the lock.
  std::atomic<uint64_t> buckets_{0};
  std::array<std::atomic<Bucket*>, kMaxSegments> segments_{};
  size_t size_ = 0;
  size_t bytes_ = 0;
};

inline void Table::PrefetchBucket(uint64_t hash) const {
  __builtin_prefetch(BucketAt(IndexOf(hash)));
}

inline void Table::PrefetchEntry(uint64_t hash) const {
  const Bucket* bucket = BucketAt(IndexOf(hash));
  const uint64_t tag = TagOf(hash);
  for (const uint64_t word : bucket->words) {
    if ((word & (kTag | kOverflow)) != tag) continue;
    __builtin_prefetch(reinterpret_cast<const void*>(word & kAddress));
    __builtin_prefetch(reinterpret_cast<const void*>((word & kAddress) + 64));
    return;
  }
  if (const Bucket* next = Overflow(bucket->words[kSlots - 1])) __builtin_prefetch(next);
}

template <typename Match>
Table::Slot Table::FindIf(uint64_t hash, Match&& match) const {
  const uint64_t tag = TagOf(hash);
  for (Bucket* bucket = BucketAt(IndexOf(hash)); bucket != nullptr;
       bucket = Overflow(bucket->words[kSlots - 1])) {
    for (uint64_t& word : bucket->words) {
      if ((word & (kTag | kOverflow)) != tag || word == 0) continue;
      const Entry* entry = Unpack(word);
      if (entry->hash == static_cast<uint32_t>(hash) && match(*entry)) return Slot(&word);
    }
  }
  return Slot();
}

template <typename Visit>
void Table::VisitBucket(const Bucket* bucket, uint64_t mask, Visit&& visit) {
  for (; bucket != nullptr; bucket = Overflow(bucket->words[kSlots - 1])) {
    for (const uint64_t word : bucket->words) {
      if ((word & kOverflow) == 0 && word != 0 && (word & mask) == mask) visit(Unpack(word));
    }
  }
}

template <typename Visit>
uint64_t Table::ScanWith(uint64_t cursor, uint64_t mask, Visit&& visit) const {
  const uint64_t count = buckets();
  const uint64_t level = uint64_t{1} << (63 - __builtin_clzll(count));
  const uint64_t index = cursor & (level - 1);
  VisitBucket(BucketAt(index), mask, visit);
  if (index + level < count) VisitBucket(BucketAt(index + level), mask, visit);
  // Increment the reversed cursor (Pieter Noordhuis's algorithm, redis/src/dict.c).
  const auto reverse = [](uint64_t v) {
    v = __builtin_bswap64(v);
    v = ((v >> 4) & 0x0f0f0f0f0f0f0f0full) | ((v & 0x0f0f0f0f0f0f0f0full) << 4);
    v = ((v >> 2) & 0x3333333333333333ull) | ((v & 0x3333333333333333ull) << 2);
    return ((v >> 1) & 0x5555555555555555ull) | ((v & 0x5555555555555555ull) << 1);
  };
  return reverse(reverse(cursor | ~(level - 1)) + 1);
}

template <typename Visit>
uint64_t Table::Scan(uint64_t cursor, Visit&& visit) const {
  return ScanWith(cursor, 0, visit);
}

template <typename Visit>
uint64_t Table::ScanExpiring(uint64_t cursor, Visit&& visit) const {
  return ScanWith(cursor, kExpiry, visit);
}

template <typename Visit>
void Table::Sample(uint64_t random, Visit&& visit) const {
  VisitBucket(BucketAt(IndexOf(random)), 0, visit);
}

}  // namespace moonpool::storage
