// `moonpool-bench gpu` in builds without CUDA.
#include "gpu/cuda.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu.h"

namespace moonpool::bench {

int Gpu(const GpuModeOptions&) {
  throw Failure("gpu measures nothing: " + gpu::CudaDevices::Open().error().message);
}

}  // namespace moonpool::bench
