#pragma once

#include <cstddef>
#include <cstdint>

namespace moonpool::protocol {

// CRC-32C (Castagnoli), as in descriptors and KV.COMMIT: the value of "123456789" is 0xe3069283.
// `crc` is the checksum of what came before, 0 at the start.  About 20 GB/s (ISA-L).
uint32_t Crc32c(uint32_t crc, const void* data, size_t bytes);

}  // namespace moonpool::protocol
