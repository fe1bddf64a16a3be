// Numbers and keys as the SSD's databases hold them: big-endian, so that they sort by number.
#pragma once

#include <rocksdb/slice.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moonpool::storage {

template <typename T>
T BigEndian(T value) {
  static_assert(std::endian::native == std::endian::little);
  if constexpr (sizeof(T) == 8) return __builtin_bswap64(value);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
}

template <typename T>
void StoreBigEndian(char* to, T value) {
  value = BigEndian(value);
  std::memcpy(to, &value, sizeof(value));
}

template <typename T>
T LoadBigEndian(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return BigEndian(value);
}

// Of one chunk in the payload database.
class ChunkKey {
 public:
  ChunkKey(uint64_t id, uint32_t chunk) {
    StoreBigEndian(bytes_, id);
    StoreBigEndian(bytes_ + 8, chunk);
  }
  const char* data() const { return bytes_; }
  size_t size() const { return sizeof(bytes_); }
  operator rocksdb::Slice() const { return {bytes_, sizeof(bytes_)}; }  // NOLINT: is one

 private:
  char bytes_[12];
};

// What else there is of a version has numbers that no chunk has.
inline constexpr uint32_t kFirstChecksums = uint32_t{1} << 31;
inline constexpr uint32_t kChecksumsPerEntry = 256;
inline ChunkKey ChecksumsKey(uint64_t id, uint32_t chunk) {
  return {id, kFirstChecksums + chunk / kChecksumsPerEntry};
}
inline ChunkKey CompleteKey(uint64_t id) { return {id, ~uint32_t{0}}; }

}  // namespace moonpool::storage
