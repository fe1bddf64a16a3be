#include "gpu/cuda.h"

namespace moonpool::gpu {

Device* CudaDevices::Find(const Uuid& uuid) const {
  for (Device* device : all()) {
    if (device->info().uuid == uuid) return device;
  }
  return nullptr;
}

}  // namespace moonpool::gpu
