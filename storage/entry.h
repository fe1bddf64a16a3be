// One key with its value, in one heap block:
//
//   | Entry (16 B) | expiry, ms since 1970 (8 B, if kHasExpiry) | key | value |
//
// The value is the bytes themselves, the BulkValue* that owns an extent (kBulk), or where the bytes
// are on the SSD (kOnSsd).
// Threads: an entry is read and written under the lock of the stripe that holds it.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "storage/heap.h"

namespace moonpool::storage {

class BulkValue;

// One version of a value on the SSD.  An id of 0: none.
struct SsdPlace {
  uint64_t id = 0;
  uint64_t length : 48 = 0;      // bytes of the value
  uint64_t partition : 8 = 0;    // the slot it counts in; true of what an entry or its value holds
  uint64_t chunk_shift : 8 = 0;  // it is stored in chunks of 2^chunk_shift bytes

  // `chunk_bytes`: a power of two.
  static SsdPlace At(uint64_t id, uint64_t length, uint32_t chunk_bytes) {
    SsdPlace place;
    place.id = id;
    place.length = length & ((uint64_t{1} << 48) - 1);
    place.chunk_shift = static_cast<uint8_t>(std::bit_width(chunk_bytes) - 1);
    return place;
  }
  explicit operator bool() const { return id != 0; }
  uint8_t slot() const { return static_cast<uint8_t>(partition); }
  uint32_t chunk_bytes() const { return uint32_t{1} << chunk_shift; }
};
static_assert(sizeof(SsdPlace) == 16);

struct Entry {
  enum Flag : uint8_t {
    kHasExpiry = 1,
    kBulk = 2,
    kPinned = 4,  // the stripe's pin map says how
    kOnSsd = 8,
  };

  uint32_t key_bytes;
  uint32_t value_bytes;  // of the inline value, or sizeof(BulkValue*), or sizeof(SsdPlace)
  uint32_t hash;         // the low half of the key's hash
  uint32_t access : 24;  // last access or use counter, see access_clock.h
  uint32_t flags : 8;

  static size_t Bytes(size_t key_bytes, size_t value_bytes, uint8_t flags) {
    return sizeof(Entry) + (flags & kHasExpiry ? sizeof(int64_t) : 0) + key_bytes + value_bytes;
  }
  // Allocates; the caller fills in the value.  `access` starts at 0.
  static Entry* Create(std::string_view key, uint64_t hash, size_t value_bytes, uint8_t flags) {
    auto* entry = static_cast<Entry*>(HeapAllocate(Bytes(key.size(), value_bytes, flags)));
    entry->key_bytes = static_cast<uint32_t>(key.size());
    entry->value_bytes = static_cast<uint32_t>(value_bytes);
    entry->hash = static_cast<uint32_t>(hash);
    entry->access = 0;
    entry->flags = flags;
    std::copy(key.begin(), key.end(), entry->key_data());
    return entry;
  }
  // Frees the block only; the owner of a bulk value has let go of it before.
  static void Destroy(Entry* entry) { HeapFree(entry, entry->bytes()); }

  size_t bytes() const { return Bytes(key_bytes, value_bytes, flags); }
  size_t block_bytes() const { return HeapBlockBytes(bytes()); }
  bool has(Flag flag) const { return (flags & flag) != 0; }
  // The value is in the block itself.
  bool is_inline() const { return (flags & (kBulk | kOnSsd)) == 0; }

  std::string_view key() const { return {const_cast<Entry*>(this)->key_data(), key_bytes}; }
  std::string_view value() const { return {const_cast<Entry*>(this)->value_data(), value_bytes}; }
  char* value_data() { return key_data() + key_bytes; }

  BulkValue* bulk() const {
    BulkValue* value;
    std::memcpy(&value, const_cast<Entry*>(this)->value_data(), sizeof(value));
    return value;
  }
  void set_bulk(BulkValue* value) { std::memcpy(value_data(), &value, sizeof(value)); }

  SsdPlace place() const {
    SsdPlace place;
    std::memcpy(static_cast<void*>(&place), const_cast<Entry*>(this)->value_data(), sizeof(place));
    return place;
  }
  void set_place(const SsdPlace& place) { std::memcpy(value_data(), &place, sizeof(place)); }

  int64_t expiry_ms() const {
    int64_t at;
    std::memcpy(&at, this + 1, sizeof(at));
    return at;
  }
  void set_expiry_ms(int64_t at) { std::memcpy(static_cast<void*>(this + 1), &at, sizeof(at)); }
  bool expired(int64_t now_ms) const { return has(kHasExpiry) && expiry_ms() <= now_ms; }

 private:
  char* key_data() {
    return reinterpret_cast<char*>(this + 1) + (has(kHasExpiry) ? sizeof(int64_t) : 0);
  }
};
static_assert(sizeof(Entry) == 16);

}  // namespace moonpool::storage
