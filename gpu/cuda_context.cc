#include "gpu/cuda_context.h"

#include "gpu/cuda_errors.h"

namespace moonpool::gpu {

CudaContext::~CudaContext() {
  MutexLock lock(mu_);
  if (context_ != nullptr) driver_.cuDevicePrimaryCtxRelease(device_);
}

Result<CUcontext> CudaContext::Get() {
  MutexLock lock(mu_);
  if (context_ != nullptr) return context_;
  CUcontext context = nullptr;
  if (const CUresult result = driver_.cuDevicePrimaryCtxRetain(&context, device_);
      result != CUDA_SUCCESS) {
    return FailCuda(result, "cuDevicePrimaryCtxRetain");
  }
  context_ = context;
  return context;
}

ContextScope::ContextScope(CudaContext* context) : driver_(context->driver()) {
  const Result<CUcontext> primary = context->Get();
  if (!primary) {
    status_ = tl::unexpected(primary.error());
  } else {
    status_ = CudaStatus(driver_.cuCtxPushCurrent(*primary), "cuCtxPushCurrent");
  }
  if (status_) {
    status_ = CudaStatus(driver_.cuThreadExchangeStreamCaptureMode(&capture_mode_),
                         "cuThreadExchangeStreamCaptureMode");
    if (!status_) Pop();
  }
}

ContextScope::~ContextScope() {
  if (!status_) return;
  driver_.cuThreadExchangeStreamCaptureMode(&capture_mode_);
  Pop();
}

void ContextScope::Pop() {
  CUcontext ours = nullptr;
  driver_.cuCtxPopCurrent(&ours);
}

Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  return FailCuda(error, what);
}

Status CudaStatus(CUresult result, std::string_view what) {
  if (result == CUDA_SUCCESS) return {};
  return FailCuda(result, what);
}

}  // namespace moonpool::gpu
