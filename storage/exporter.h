// What makes a tenant's memory reachable from outside, other than through its files: a NIC, a GPU.
//
// A region is exported once its memory was faulted in, and withdrawn when it is empty: no value is
// in it, and nothing of the server refers to it.  Withdraw() returns when nothing outside can reach
// the memory any more, whatever a client does; until then the kernel may hold its pages, so that
// sealing an arena against writers (Region::ProveNoWriters) fails before.
//
// Threads: any.  Regions in host memory are upkeep's, one at a time; one on a device is that device's
// own thread's (DeviceGrowth), as its driver is called.  Both may block, for about 0.1 s per GiB and
// for a second, or on a device as long as its driver does.
#pragma once

#include <cstdint>
#include <memory>

#include "protocol/status.h"
#include "storage/region.h"

namespace moonpool::storage {

class Exporter {
 public:
  virtual ~Exporter() = default;
  // A region that cannot be exported is served in other ways: the error is for people.
  virtual Status Export(const std::shared_ptr<Region>& region) = 0;
  // Of a region that was not exported: nothing.
  virtual void Withdraw(uint32_t region) = 0;
};

}  // namespace moonpool::storage
