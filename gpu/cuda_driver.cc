#include "gpu/cuda_driver.h"

#include <dlfcn.h>

#include <string>

namespace moonpool::gpu {

namespace {

#define MOONPOOL_TEXT_OF(name) #name
#define MOONPOOL_TEXT(name) MOONPOOL_TEXT_OF(name)

Result<CudaDriver> Load() {
  // Never closed: the runtime library keeps it open too.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Fail(ErrorCode::kUnavailable,
                "no NVIDIA driver: libcuda.so.1 is not there (install the driver; in a container, "
                "start it with its GPUs)");
  }
  CudaDriver driver;
  const char* missing = nullptr;
#define MOONPOOL_LOAD(name)                                                                   \
  driver.name = reinterpret_cast<decltype(driver.name)>(dlsym(library, MOONPOOL_TEXT(name))); \
  if (driver.name == nullptr) missing = MOONPOOL_TEXT(name);
  MOONPOOL_CUDA_DRIVER_FUNCTIONS(MOONPOOL_LOAD)
#undef MOONPOOL_LOAD
  if (missing != nullptr) {
    return Fail(ErrorCode::kUnavailable, std::string("the NVIDIA driver is too old: it has no ") +
                                             missing + " (install one for CUDA 12.4 or newer)");
  }
  if (const CUresult result = driver.cuInit(0); result != CUDA_SUCCESS) {
    const char* text = nullptr;
    driver.cuGetErrorString(result, &text);
    return Fail(ErrorCode::kUnavailable, std::string("no GPU to use: ") +
                                             (text != nullptr ? text : "cuInit failed") +
                                             " (see nvidia-smi and CUDA_VISIBLE_DEVICES)");
  }
  return driver;
}

}  // namespace

Result<const CudaDriver*> LoadCudaDriver() {
  // Never destroyed: devices that others leave to the end of the process still call it then.
  static const auto& driver = *new Result<CudaDriver>(Load());
  if (!driver) return tl::unexpected(driver.error());
  return &*driver;
}

}  // namespace moonpool::gpu
