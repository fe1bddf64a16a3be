// The bytes of test values: every 64-bit word follows from (id, version, position), so a reader
// can prove that what it got is one whole version of the value it asked for.
//
//   word 0 = id, word 1 = version, word i = mix(id, version) + i * constant
//
// Writing and checking run at about the speed of memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moonpool::bench {

inline constexpr size_t kLeastPatternBytes = 16;

// `bytes` is at least kLeastPatternBytes.
void FillPattern(void* to, size_t bytes, uint64_t id, uint64_t version);
// False when any byte is not what FillPattern(.., id, v) wrote for some v, which goes to
// *version when that is not null.
bool CheckPattern(const void* from, size_t bytes, uint64_t id, uint64_t* version = nullptr);

// A good 64-bit hash of two numbers (the finalizer of SplitMix64).
uint64_t Mix(uint64_t a, uint64_t b);

}  // namespace moonpool::bench
