// The primary context of one device, made when it is first needed, and a scope that makes it
// current for the calling thread and gives back what was current before.
//
// A program that captures a stream into a graph has forbidden all threads whatever the driver
// thinks unsafe then (cuStreamBeginCapture, CU_STREAM_CAPTURE_MODE_GLOBAL): to allocate, to ask for
// an event. Such a call fails, and the capture with it.  What is done in a scope has to do with no
// stream that is captured, so that the scope lifts this for its thread.
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
  void Pop();

  const CudaDriver& driver_;
  Status status_;
  CUstreamCaptureMode capture_mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;  // then what it was before
};

// An error of the runtime library; does not leave it behind for cudaGetLastError() of the program.
Status CudaStatus(cudaError_t error, std::string_view what);
Status CudaStatus(CUresult result, std::string_view what);

}  // namespace moonpool::gpu
