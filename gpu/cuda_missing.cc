// Stands in for CUDA in builds without it.
#include "gpu/cuda.h"

namespace moonpool::gpu {

bool BuiltWithCuda() {
  return false;
}

Result<std::unique_ptr<CudaDevices>> CudaDevices::Open() {
  return Fail(ErrorCode::kUnavailable,
              "this build has no CUDA; build with -DMOONPOOL_CUDA=ON and CUDA 12.4 or newer");
}

}  // namespace moonpool::gpu
