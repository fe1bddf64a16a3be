// Decides how the bytes of a batch go, and puts that into streams.  copy_batch.h says which way is
// taken when.
//
// Threads: one at a time.  What it borrows goes to an InFlight, which must stay until the work is
// done.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/device.h"
#include "gpu/place_cache.h"
#include "gpu/staging.h"

namespace moonpool::gpu {

// What work in streams uses.
struct InFlight {
  std::vector<std::pair<Device*, std::unique_ptr<Stream>>> streams;
  std::vector<std::unique_ptr<HostBlock>> host_blocks;
  std::vector<std::unique_ptr<DeviceBlock>> device_blocks;
  std::unique_ptr<CheckBlock> checks;
};

class CopyRoutes {
 public:
  CopyRoutes(Worker main, const CopyLimits& limits, InFlight* in_flight)
      : main_(main), limits_(limits), places_(main.device), in_flight_(*in_flight) {}

  // Everything is done when the main stream's next event is reached.  `behind` becomes empty when
  // it is done with the copy.
  Status Copy(std::span<const Piece> pieces, Checks* behind);
  Status CopyPages(const PageCopy& copy);

  PlaceCache& places() { return places_; }

 private:
  struct Side;

  bool Far(const Place& place) const;
  Status SendMany(const std::vector<Piece>& pieces, bool host, Checks* behind);
  Status SendFar(const Piece& piece, const Place& from, const Place& to);
  Result<Side> PagesSide(const Pages& pages, const PageCopy& copy, const char* name);
  Status SendPages(const PageCopy& copy, const Worker& filler, const Worker& emptier,
                   bool through_host);
  // The worker that reaches `place`; another device's waits for what is in the main stream.
  Result<Worker> WorkerFor(const Place& place);
  Result<Worker> NewWorker(Device* device);
  Result<std::vector<char*>> Chunks(uint64_t bytes, bool in_host_memory);

  const Worker main_;
  const CopyLimits& limits_;
  PlaceCache places_;
  InFlight& in_flight_;
};

}  // namespace moonpool::gpu
