// How a chunk lies in the blob that RocksDB stores for it.
//
//   whole sectors  zeros | bytes | zeros: the bytes begin at a page of the blob file, if all blobs
//                  before are such ones, and the blob holds the whole of their last page
//   as it is       bytes: of values so small that a page each would be felt
//   compressed     compressed bytes | codec (1 byte): shorter than the bytes
//
// The lengths tell them apart.  Format 2 knew the latter two, each with crc32c(key, blob) (4 bytes)
// at its end.
#pragma once

#include <cstdint>

namespace moonpool::storage {

// Direct I/O into an extent works in these: the memory of extents is aligned to them, and disks'
// sectors are as large or smaller.
inline constexpr uint64_t kSsdPageBytes = 4096;

// What RocksDB writes before a blob (db/blob/blob_log_format.h): at the start of a file, and with
// each blob beside its key of 12 bytes.  Nothing but the speed of reads depends on it.
inline constexpr uint64_t kBlobFileHeaderBytes = 30;
inline constexpr uint64_t kBlobHeaderBytes = 32 + 12;

// Values of fewer bytes are stored as they are.
inline constexpr uint64_t kLeastAlignedBytes = 32 << 10;

constexpr uint64_t SsdPages(uint64_t bytes) {
  return (bytes + kSsdPageBytes - 1) / kSsdPageBytes * kSsdPageBytes;
}

// Zeros before the bytes; then bytes up to a whole page, and zeros again, so that the next blob's
// header lies in its page as the first one's does in the file's first page.
inline constexpr uint64_t kChunkLeadBytes =
    kSsdPageBytes - kBlobFileHeaderBytes - kBlobHeaderBytes;
constexpr uint64_t ChunkTailBytes(uint64_t bytes) {
  return SsdPages(bytes) - bytes + kBlobFileHeaderBytes;
}
constexpr uint64_t AlignedChunkBytes(uint64_t bytes) {
  return kChunkLeadBytes + bytes + ChunkTailBytes(bytes);
}

}  // namespace moonpool::storage
