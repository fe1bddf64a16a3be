// Remembers, for one batch, which memory addresses are in: to ask the driver costs a microsecond.
//
// Threads: one at a time.  The device must outlive it.
#pragma once

#include <cstdint>
#include <vector>

#include "gpu/device.h"

namespace moonpool::gpu {

class PlaceCache {
 public:
  explicit PlaceCache(Device* device) : device_(device) {}

  // The place of [address, address + bytes), which must be one.
  Result<Place> Find(const void* address, uint64_t bytes);

 private:
  Device* const device_;
  std::vector<Place> known_;
  size_t last_ = 0;  // of known_, the one found last
};

// The address that the device uses for host address `address`.
inline char* ForDevice(const Place& place, const void* address) {
  return const_cast<char*>(static_cast<const char*>(address)) + place.device_offset;
}

}  // namespace moonpool::gpu
