// The primary context of one device, made when it is first needed, and a scope that makes it
// current for the calling thread and gives back what was current before.
//
// Threads: any.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string_view>

#include "gpu/cuda_driver.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::gpu {

class CudaContext {
 public:
  CudaContext(const CudaDriver* driver, CUdevice device) : driver_(*driver), device_(device) {}
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  const CudaDriver& driver() const { return driver_; }
  CUdevice device() const { return device_; }
  Result<CUcontext> Get();

 private:
  const CudaDriver& driver_;
  const CUdevice device_;
  Mutex mu_;
  CUcontext context_ GUARDED_BY(mu_) = nullptr;
};

class ContextScope {
 public:
  explicit ContextScope(CudaContext* context);
  ~ContextScope();
  ContextScope(const ContextScope&) = delete;
  ContextScope& operator=(const ContextScope&) = delete;

  const Status& status() const { return status_; }

 private:
  const CudaDriver& driver_;
  Status status_;
};

// An error of the runtime library; does not leave it behind for cudaGetLastError() of the program.
Status CudaStatus(cudaError_t error, std::string_view what);
Status CudaStatus(CUresult result, std::string_view what);

}  // namespace moonpool::gpu
