#include "storage/table.h"

#include <utility>

#include "protocol/status.h"

namespace moonpool::storage {

namespace {

constexpr size_t kSplitAbove = 8;  // entries per bucket at which a growth step begins
constexpr size_t kSplitUntil = 4;  // and ends
constexpr size_t kMergeBelow = 2;

}  // namespace

Table::Table() {
  segments_[0].store(NewBuckets(1), std::memory_order_relaxed);
  buckets_.store(1, std::memory_order_relaxed);
}

Table::~Table() {
  for (uint64_t i = 0; i < buckets(); ++i) {
    Bucket* bucket = BucketAt(i);
    VisitBucket(bucket, 0, [](Entry* entry) { Entry::Destroy(entry); });
    for (Bucket* next = Overflow(bucket->words[kSlots - 1]); next != nullptr;) {
      Bucket* after = Overflow(next->words[kSlots - 1]);
      FreeBuckets(next, 1);
      next = after;
    }
  }
  for (size_t s = 0; s < segments_.size(); ++s) {
    if (Bucket* segment = segments_[s].load(std::memory_order_relaxed)) {
      FreeBuckets(segment, s == 0 ? 1 : uint64_t{1} << (s - 1));
    }
  }
}

Table::Bucket* Table::NewBuckets(uint64_t count) {
  bytes_ += count * sizeof(Bucket);
  auto* buckets = static_cast<Bucket*>(HeapAllocateAligned(count * sizeof(Bucket)));
  MOONPOOL_CHECK(buckets != nullptr);
  // A segment's other buckets are cleared when they come into use.
  if (count == 1) *buckets = Bucket{};
  return buckets;
}

void Table::FreeBuckets(Bucket* buckets, uint64_t count) {
  bytes_ -= count * sizeof(Bucket);
  HeapFree(buckets, count * sizeof(Bucket));
}

void Table::Append(Bucket* bucket, uint64_t word) {
  for (;;) {
    uint64_t& last = bucket->words[kSlots - 1];
    if (Bucket* next = Overflow(last)) {
      bucket = next;
      continue;
    }
    for (uint64_t& free : bucket->words) {
      if (free != 0) continue;
      free = word;
      return;
    }
    Bucket* next = NewBuckets(1);
    next->words[0] = last;
    next->words[1] = word;
    last = kOverflow | reinterpret_cast<uint64_t>(next);
    return;
  }
}

void Table::Insert(uint64_t hash, Entry* entry) {
  Append(BucketAt(IndexOf(hash)), Pack(TagOf(hash), entry));
  ++size_;
  const auto resting = [this] { return (buckets() & (buckets() - 1)) == 0; };
  if (size_ > buckets() * (resting() ? kSplitAbove : kSplitUntil)) {
    SplitOne();
    if (!resting()) SplitOne();  // past the power of two there would be no rest
  }
}

void Table::Replace(Slot slot, Entry* entry) { *slot.word_ = Pack(*slot.word_, entry); }

Entry* Table::Erase(uint64_t hash, Slot slot) {
  Entry* entry = slot.entry();
  // The last entry of the chain takes the freed place, so that chains stay packed.
  Bucket* before = nullptr;
  Bucket* tail = BucketAt(IndexOf(hash));
  while (Bucket* next = Overflow(tail->words[kSlots - 1])) {
    before = tail;
    tail = next;
  }
  int last = kSlots - 1;
  while (tail->words[last] == 0) --last;
  *slot.word_ = tail->words[last];
  tail->words[last] = 0;
  if (last == 0 && before != nullptr) {
    FreeBuckets(tail, 1);
    before->words[kSlots - 1] = 0;
  }
  --size_;
  if (size_ < buckets() * kMergeBelow && buckets() > 1) {
    MergeOne();
    if (buckets() > 1) MergeOne();
  }
  return entry;
}

void Table::Swap(Table& other) {
  const auto swap = [](auto& a, auto& b) {
    const auto kept = a.load(std::memory_order_relaxed);
    a.store(b.load(std::memory_order_relaxed), std::memory_order_relaxed);
    b.store(kept, std::memory_order_relaxed);
  };
  swap(buckets_, other.buckets_);
  for (size_t s = 0; s < segments_.size(); ++s) swap(segments_[s], other.segments_[s]);
  std::swap(size_, other.size_);
  std::swap(bytes_, other.bytes_);
}

void Table::SplitOne() {
  const uint64_t added = buckets();
  const uint64_t level = uint64_t{1} << (63 - __builtin_clzll(added));
  const auto segment = static_cast<size_t>(SegmentOf(added));
  MOONPOOL_CHECK(segment < segments_.size());
  if (segments_[segment].load(std::memory_order_relaxed) == nullptr) {
    segments_[segment].store(NewBuckets(level), std::memory_order_relaxed);
  }
  Bucket* to = BucketAt(added);
  *to = Bucket{};
  buckets_.store(added + 1, std::memory_order_relaxed);

  Bucket* from = BucketAt(added - level);
  Bucket old = *from;
  *from = Bucket{};
  Bucket* chain = &old;
  while (chain != nullptr) {
    Bucket* next = Overflow(chain->words[kSlots - 1]);
    for (const uint64_t word : chain->words) {
      if ((word & kOverflow) != 0 || word == 0) continue;
      Append((Unpack(word)->hash & level) != 0 ? to : from, word);
    }
    if (chain != &old) FreeBuckets(chain, 1);
    chain = next;
  }
}

void Table::MergeOne() {
  const uint64_t removed = buckets() - 1;
  const uint64_t level = uint64_t{1} << (63 - __builtin_clzll(removed));
  Bucket* to = BucketAt(removed - level);
  Bucket* chain = BucketAt(removed);
  bool first = true;
  while (chain != nullptr) {
    Bucket* next = Overflow(chain->words[kSlots - 1]);
    for (const uint64_t word : chain->words) {
      if ((word & kOverflow) == 0 && word != 0) Append(to, word);
    }
    if (!first) FreeBuckets(chain, 1);
    first = false;
    chain = next;
  }
  buckets_.store(removed, std::memory_order_relaxed);
  // Keep the segment just left for the next growth; free the one above it.
  const auto above = static_cast<size_t>(SegmentOf(removed)) + 1;
  if (above < segments_.size()) {
    if (Bucket* spare = segments_[above].load(std::memory_order_relaxed)) {
      segments_[above].store(nullptr, std::memory_order_relaxed);
      FreeBuckets(spare, uint64_t{1} << (above - 1));
    }
  }
}

}  // namespace moonpool::storage
