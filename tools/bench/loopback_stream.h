// A plain TCP stream over loopback: the most a transport over TCP on one host can reach.
#pragma once

#include <cstdint>

namespace moonpool::bench {

// One thread writes `bytes` out of `from` (a buffer of `block_bytes`, again and again), another
// reads them into `to`, both `piece_bytes` at a time.  GB/s.  Throws Failure.
double LoopbackStream(const char* from, char* to, uint64_t block_bytes, uint64_t piece_bytes,
                      uint64_t bytes);

}  // namespace moonpool::bench
