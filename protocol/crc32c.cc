#include "protocol/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace moonpool::protocol {

uint32_t Crc32c(uint32_t crc, const void* data, size_t bytes) {
  // ISA-L counts in ints and leaves the inversions to the caller.
  constexpr size_t kMost = 1 << 30;
  auto* p = static_cast<unsigned char*>(const_cast<void*>(data));
  crc = ~crc;
  while (bytes > 0) {
    const size_t part = std::min(bytes, kMost);
    crc = crc32_iscsi(p, static_cast<int>(part), crc);
    p += part;
    bytes -= part;
  }
  return ~crc;
}

}  // namespace moonpool::protocol
