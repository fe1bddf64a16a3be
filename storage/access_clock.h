// The 24 bits in which an inline entry remembers how it was used, as Redis keeps them
// (redis/src/evict.c): for LRU the second of the last access modulo 2^24; for LFU 16 bits of the
// minute of the last decay and an 8-bit logarithmic use counter.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moonpool::storage {

inline constexpr uint32_t kAccessMask = (1u << 24) - 1;
inline constexpr uint32_t kLfuInitialUses = 5;  // a new key is not the first victim

struct LfuOptions {
  uint32_t log_factor = 10;   // lfu-log-factor
  uint32_t decay_minutes = 1;  // lfu-decay-time; 0: never
};

inline uint32_t LruNow(int64_t now_ms) { return static_cast<uint32_t>(now_ms / 1000) & kAccessMask; }
inline uint64_t LruIdleSeconds(uint32_t access, int64_t now_ms) {
  return (LruNow(now_ms) - access) & kAccessMask;
}

inline uint32_t LfuMinutes(int64_t now_ms) {
  return static_cast<uint32_t>(now_ms / 60000) & 0xffff;
}
inline uint32_t LfuNew(int64_t now_ms) { return LfuMinutes(now_ms) << 8 | kLfuInitialUses; }
// The use counter after the decay that is due.
inline uint32_t LfuUses(uint32_t access, int64_t now_ms, const LfuOptions& options) {
  const uint32_t uses = access & 0xff;
  if (options.decay_minutes == 0) return uses;
  const uint32_t minutes = (LfuMinutes(now_ms) - (access >> 8)) & 0xffff;
  return uses - std::min(uses, minutes / options.decay_minutes);
}
// One use more, counted with probability 1 / ((uses - initial) * log_factor + 1).
inline uint32_t LfuTouched(uint32_t access, int64_t now_ms, const LfuOptions& options,
                           uint32_t random) {
  uint32_t uses = LfuUses(access, now_ms, options);
  if (uses < 255) {
    const uint64_t base = uses > kLfuInitialUses ? uses - kLfuInitialUses : 0;
    if (random < UINT32_MAX / (base * options.log_factor + 1)) ++uses;
  }
  return LfuMinutes(now_ms) << 8 | uses;
}

}  // namespace moonpool::storage
