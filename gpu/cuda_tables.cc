#include "gpu/cuda_tables.h"

namespace moonpool::gpu {

CudaTables::~CudaTables() {
  MutexLock lock(mu_);
  if (slots_.empty()) return;
  const ContextScope scope(context_);
  for (const Slot& slot : slots_) {
    (void)cudaEventSynchronize(slot.used);
    pools_->GiveBack(slot.used);
    pools_->GiveBack(slot.sent);
    pools_->GiveBack(CudaPools::Where::kHost, slot.host);
    pools_->GiveBack(CudaPools::Where::kDevice, slot.device);
  }
  if (stream_ != nullptr) pools_->GiveBack(stream_);
}

Result<CudaTables::Slot> CudaTables::Take(uint64_t bytes) {
  {
    MutexLock lock(mu_);
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].host.bytes < bytes) continue;
      const cudaError_t state = cudaEventQuery(slots_[i].used);
      if (state != cudaSuccess) {
        (void)cudaGetLastError();
        continue;
      }
      const Slot slot = slots_[i];
      slots_[i] = slots_.back();
      slots_.pop_back();
      return slot;
    }
  }
  Slot slot;
  Result<CudaPools::Block> host = pools_->TakeBlock(CudaPools::Where::kHost, bytes);
  if (!host) return tl::unexpected(std::move(host.error()));
  slot.host = *host;
  Result<CudaPools::Block> device = pools_->TakeBlock(CudaPools::Where::kDevice, bytes);
  Result<cudaEvent_t> sent = pools_->TakeEvent();
  Result<cudaEvent_t> used = pools_->TakeEvent();
  if (device && sent && used) {
    slot.device = *device;
    slot.sent = *sent;
    slot.used = *used;
    return slot;
  }
  Error error = !device ? device.error() : !sent ? sent.error() : used.error();
  pools_->GiveBack(CudaPools::Where::kHost, slot.host);
  if (device) pools_->GiveBack(CudaPools::Where::kDevice, *device);
  if (sent) pools_->GiveBack(*sent);
  if (used) pools_->GiveBack(*used);
  return tl::unexpected(std::move(error));
}

Status CudaTables::Send(const Slot& slot, uint64_t bytes, cudaStream_t stream) {
  cudaStream_t own = nullptr;
  {
    MutexLock lock(mu_);
    own = stream_;
  }
  if (own == nullptr) {
    const Result<cudaStream_t> taken = pools_->TakeStream();
    if (!taken) return tl::unexpected(taken.error());
    own = *taken;
    MutexLock lock(mu_);
    if (stream_ == nullptr) {
      stream_ = own;
    } else {
      pools_->GiveBack(own);
      own = stream_;
    }
  }
  Status status = CudaStatus(
      cudaMemcpyAsync(slot.device.data, slot.host.data, bytes, cudaMemcpyHostToDevice, own),
      "cudaMemcpyAsync of a table");
  if (status) status = CudaStatus(cudaEventRecord(slot.sent, own), "cudaEventRecord");
  if (status) status = CudaStatus(cudaStreamWaitEvent(stream, slot.sent, 0), "cudaStreamWaitEvent");
  return status;
}

Status CudaTables::GiveBack(const Slot& slot, cudaStream_t stream) {
  Status status = CudaStatus(cudaEventRecord(slot.used, stream), "cudaEventRecord");
  MutexLock lock(mu_);
  slots_.push_back(slot);
  return status;
}

}  // namespace moonpool::gpu
