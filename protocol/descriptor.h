// What a client needs to pull one version of one value, and its form in RESP.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "protocol/reply_buffer.h"

namespace moonpool::protocol {

// Where the bytes of a value in memory are.
enum class Tier : uint8_t { kDram, kCxl, kGpu };
inline constexpr size_t kTiers = 3;

std::string_view TierName(Tier tier);
std::optional<Tier> ParseTier(std::string_view name);

struct Descriptor {
  // lease_ms of a hold: no deadline.
  static constexpr int64_t kHold = -1;
  // Elements of the array a descriptor is in RESP.
  static constexpr size_t kFields = 9;

  uint32_t region = 0;         // unique within the server's epoch
  uint64_t offset = 0;         // bytes from the start of the region
  uint64_t length = 0;         // bytes
  uint32_t slot = 0;           // index in the tenant's generation table
  uint64_t generation = 0;     // what that slot holds while the bytes are this version
  std::optional<uint32_t> crc; // crc32c of the bytes, when the writer gave one
  Tier tier = Tier::kDram;
  uint64_t lease = 0;          // for KV.RENEW and KV.RELEASE; 0: none was granted
  int64_t lease_ms = 0;        // how long it lasts, 0 for none, kHold for a hold
};

// Appends [region, offset, length, slot, generation, crc|null, tier, lease, lease_ms].
void AppendDescriptor(ReplyBuffer& out, const Descriptor& descriptor);

}  // namespace moonpool::protocol
