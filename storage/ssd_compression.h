// The codecs that chunks of the SSD tier's payload may be compressed with.
//
// Threads: any.  Own working memory: one context of zstd per thread and direction (1 to 2 MB for
// chunks of 1 MiB), kept for the thread's life.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace moonpool::storage {

// The numbers are on disk.
enum class SsdCompression : uint8_t { kNone = 0, kLz4 = 1, kZstd = 2 };

// Compresses `from` into `to`, which it makes as large as that needs.  False when it would not save
// a sixteenth (and 64 bytes): `from` is to be stored as it is, which costs its readers nothing.
bool SsdCompress(SsdCompression codec, std::string_view from, std::string* to);

// Exactly `bytes` bytes into `to`.  False when `from` is not what such a codec made of so many, or
// `codec` is none: then `to` holds anything.
bool SsdDecompress(SsdCompression codec, std::string_view from, char* to, size_t bytes);

}  // namespace moonpool::storage
