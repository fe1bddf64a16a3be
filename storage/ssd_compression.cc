#include "storage/ssd_compression.h"

#include <lz4.h>
#include <zstd.h>

#include <algorithm>
#include <climits>
#include <memory>

namespace moonpool::storage {

namespace {

// What must be saved: less is not worth the reader's work.
constexpr size_t kLeastSaving = 64;
constexpr size_t kLeastShare = 16;

ZSTD_CCtx* Compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(),
                                                                                ZSTD_freeCCtx);
  return context.get();
}

ZSTD_DCtx* Decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(),
                                                                                ZSTD_freeDCtx);
  return context.get();
}

}  // namespace

bool SsdCompress(SsdCompression codec, std::string_view from, std::string* to) {
  const size_t saving = std::max(kLeastSaving, from.size() / kLeastShare);
  if (codec == SsdCompression::kNone || from.size() <= saving || from.size() > INT_MAX)
    return false;
  // The codecs give up when there is no more room: what will not shrink costs less than all of it.
  const size_t most = from.size() - saving;
  to->resize(most);
  size_t used = 0;
  if (codec == SsdCompression::kLz4) {
    used = static_cast<size_t>(LZ4_compress_default(
        from.data(), to->data(), static_cast<int>(from.size()), static_cast<int>(most)));
  } else if (ZSTD_CCtx* const context = Compressor()) {
    used =
        ZSTD_compressCCtx(context, to->data(), most, from.data(), from.size(), ZSTD_CLEVEL_DEFAULT);
    if (ZSTD_isError(used)) used = 0;
  }
  to->resize(used);
  return used > 0;
}

bool SsdDecompress(SsdCompression codec, std::string_view from, char* to, size_t bytes) {
  if (from.size() > INT_MAX || bytes > INT_MAX) return false;
  switch (codec) {
    case SsdCompression::kNone:
      return false;
    case SsdCompression::kLz4:
      return LZ4_decompress_safe(from.data(), to, static_cast<int>(from.size()),
                                 static_cast<int>(bytes)) == static_cast<int>(bytes);
    case SsdCompression::kZstd: {
      ZSTD_DCtx* const context = Decompressor();
      return context != nullptr &&
             ZSTD_decompressDCtx(context, to, bytes, from.data(), from.size()) == bytes;
    }
  }
  return false;  // a number that is no codec
}

}  // namespace moonpool::storage
