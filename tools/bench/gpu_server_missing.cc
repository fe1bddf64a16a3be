// `moonpool-bench gpu-server` in builds without CUDA.
#include "gpu/cuda.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu_server.h"

namespace moonpool::bench {

int GpuServer(const GpuServerModeOptions&) {
  throw Failure("gpu-server measures nothing: " + gpu::CudaDevices::Open().error().message);
}

}  // namespace moonpool::bench
