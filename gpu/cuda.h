// The GPUs of this machine, through CUDA.  The one door to CUDA for the rest of the project.
//
// Works without a driver, without a GPU, and in builds without CUDA: then Open() says so.
// CUDA does not survive fork(): a child must not use what its parent opened.
// Threads: any.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "gpu/device.h"
#include "gpu/uuid.h"
#include "protocol/status.h"

namespace moonpool::gpu {

// Whether this build can use CUDA at all; a GPU may still be missing.
bool BuiltWithCuda();

class CudaDevices {
 public:
  // Every device that CUDA_VISIBLE_DEVICES lets this process see, MIG instances among them.
  // kUnavailable, with the reason, when there is none.  Makes no context yet: the first use of a
  // device does, which takes it some hundred megabytes and a quarter of a second.
  static Result<std::unique_ptr<CudaDevices>> Open();
  virtual ~CudaDevices() = default;

  virtual const std::vector<Device*>& all() const = 0;
  // Null when this process does not see it.
  Device* Find(const Uuid& uuid) const;
};

}  // namespace moonpool::gpu
