// The driver's functions that the runtime library has no equal of, found when they are first
// needed: a binary with this in it starts on machines without a driver.
//
// Threads: any.
#pragma once

#include <cuda.h>

#include "protocol/status.h"

namespace moonpool::gpu {

// Every function under the name that cuda.h gives it (which a macro may map to a later version).
#define MOONPOOL_CUDA_DRIVER_FUNCTIONS(F) \
  F(cuInit)                               \
  F(cuDriverGetVersion)                   \
  F(cuGetErrorName)                       \
  F(cuGetErrorString)                     \
  F(cuDeviceGetCount)                     \
  F(cuDeviceGet)                          \
  F(cuDeviceGetName)                      \
  F(cuDeviceGetUuid_v2)                   \
  F(cuDeviceTotalMem)                     \
  F(cuDeviceGetAttribute)                 \
  F(cuDeviceGetP2PAttribute)              \
  F(cuDeviceCanAccessPeer)                \
  F(cuDevicePrimaryCtxRetain)             \
  F(cuDevicePrimaryCtxRelease)            \
  F(cuCtxPushCurrent)                     \
  F(cuCtxPopCurrent)                      \
  F(cuCtxEnablePeerAccess)                \
  F(cuThreadExchangeStreamCaptureMode)    \
  F(cuFlushGPUDirectRDMAWrites)           \
  F(cuMemGetInfo)                         \
  F(cuMemGetAddressRange)                 \
  F(cuMemGetHandleForAddressRange)        \
  F(cuMemGetAllocationGranularity)        \
  F(cuMemCreate)                          \
  F(cuMemRelease)                         \
  F(cuMemAddressReserve)                  \
  F(cuMemAddressFree)                     \
  F(cuMemMap)                             \
  F(cuMemUnmap)                           \
  F(cuMemSetAccess)                       \
  F(cuMemExportToShareableHandle)         \
  F(cuMemImportFromShareableHandle)       \
  F(cuPointerGetAttributes)

struct CudaDriver {
#define MOONPOOL_MEMBER(name) decltype(&::name) name = nullptr;
  MOONPOOL_CUDA_DRIVER_FUNCTIONS(MOONPOOL_MEMBER)
#undef MOONPOOL_MEMBER
};

// The driver, initialised.  kUnavailable with the reason when there is none.
Result<const CudaDriver*> LoadCudaDriver();

}  // namespace moonpool::gpu
