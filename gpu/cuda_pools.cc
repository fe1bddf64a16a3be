#include "gpu/cuda_pools.h"

#include <algorithm>
#include <bit>

namespace moonpool::gpu {

namespace {

constexpr size_t kMostStreams = 32;
constexpr size_t kMostEvents = 4096;
// Of each kind of memory: three staging chunks of the largest size several times over.
constexpr uint64_t kMostKeptBytes = 256ull << 20;
constexpr uint64_t kLeastBlock = 4096;
constexpr size_t kSlabBytes = 4096;
constexpr size_t kZeroBytes = 64;  // each in cache lines of its own

template <typename T>
bool TakeLast(std::vector<T>* from, T* taken) {
  if (from->empty()) return false;
  *taken = from->back();
  from->pop_back();
  return true;
}

}  // namespace

CudaPools::~CudaPools() {
  MutexLock lock(mu_);
  if (streams_.empty() && events_.empty() && slabs_.empty() &&
      kept_bytes_[0] + kept_bytes_[1] == 0) {
    return;
  }
  const ContextScope scope(context_);
  if (!scope.status()) return;
  for (cudaStream_t stream : streams_) (void)cudaStreamDestroy(stream);
  for (cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  for (void* slab : slabs_) (void)cudaFree(slab);
  for (const Where where : {Where::kHost, Where::kDevice}) {
    for (const auto& blocks : blocks_[static_cast<size_t>(where)]) {
      for (const Block& block : blocks) Free(where, block);
    }
  }
}

Result<cudaStream_t> CudaPools::TakeStream() {
  cudaStream_t stream = nullptr;
  {
    MutexLock lock(mu_);
    if (TakeLast(&streams_, &stream)) return stream;
  }
  const ContextScope scope(context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  Status status = CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                             "cudaStreamCreateWithFlags");
  if (!status) return tl::unexpected(status.error());
  return stream;
}

void CudaPools::GiveBack(cudaStream_t stream) {
  {
    MutexLock lock(mu_);
    if (streams_.size() < kMostStreams) {
      streams_.push_back(stream);
      return;
    }
  }
  const ContextScope scope(context_);
  if (scope.status()) (void)CudaStatus(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

Result<cudaEvent_t> CudaPools::TakeEvent() {
  cudaEvent_t event = nullptr;
  {
    MutexLock lock(mu_);
    if (TakeLast(&events_, &event)) return event;
  }
  const ContextScope scope(context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  Status status = CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                             "cudaEventCreateWithFlags");
  if (!status) return tl::unexpected(status.error());
  return event;
}

void CudaPools::GiveBack(cudaEvent_t event) {
  {
    MutexLock lock(mu_);
    if (events_.size() < kMostEvents) {
      events_.push_back(event);
      return;
    }
  }
  const ContextScope scope(context_);
  if (scope.status()) (void)CudaStatus(cudaEventDestroy(event), "cudaEventDestroy");
}

Result<CudaPools::Block> CudaPools::TakeBlock(Where where, uint64_t bytes) {
  Block block{nullptr, std::bit_ceil(std::max(bytes, kLeastBlock))};
  const auto size_class = static_cast<size_t>(std::countr_zero(block.bytes));
  if (size_class >= kClasses) return Fail(ErrorCode::kInvalidArgument, "a block too large to hold");
  {
    MutexLock lock(mu_);
    if (TakeLast(&blocks_[static_cast<size_t>(where)][size_class], &block)) {
      kept_bytes_[static_cast<size_t>(where)] -= block.bytes;
      return block;
    }
  }
  const ContextScope scope(context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  void* data = nullptr;
  Status status = where == Where::kHost
                      ? CudaStatus(cudaHostAlloc(&data, block.bytes,
                                                 cudaHostAllocPortable | cudaHostAllocMapped),
                                   "cudaHostAlloc")
                      : CudaStatus(cudaMalloc(&data, block.bytes), "cudaMalloc");
  if (!status) return tl::unexpected(status.error());
  block.data = static_cast<char*>(data);
  return block;
}

void CudaPools::GiveBack(Where where, const Block& block) {
  {
    MutexLock lock(mu_);
    uint64_t& kept = kept_bytes_[static_cast<size_t>(where)];
    if (kept + block.bytes <= kMostKeptBytes) {
      kept += block.bytes;
      const auto size_class = static_cast<size_t>(std::countr_zero(block.bytes));
      blocks_[static_cast<size_t>(where)][size_class].push_back(block);
      return;
    }
  }
  const ContextScope scope(context_);
  if (scope.status()) Free(where, block);
}

Result<uint32_t*> CudaPools::TakeZero() {
  uint32_t* zero = nullptr;
  {
    MutexLock lock(mu_);
    if (TakeLast(&zeros_, &zero)) return zero;
  }
  const ContextScope scope(context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  void* slab = nullptr;
  Status status = CudaStatus(cudaMalloc(&slab, kSlabBytes), "cudaMalloc");
  if (!status) return tl::unexpected(status.error());
  // Not in the default stream, which waits for the program's, however long those take.
  const Result<cudaStream_t> stream = TakeStream();
  status = stream ? CudaStatus(cudaMemsetAsync(slab, 0, kSlabBytes, *stream), "cudaMemsetAsync")
                  : tl::unexpected(stream.error());
  if (status) status = CudaStatus(cudaStreamSynchronize(*stream), "cudaStreamSynchronize");
  if (stream) GiveBack(*stream);
  if (!status) {
    (void)cudaFree(slab);
    return tl::unexpected(status.error());
  }
  MutexLock lock(mu_);
  slabs_.push_back(slab);
  for (size_t at = 0; at < kSlabBytes; at += kZeroBytes) {
    zeros_.push_back(reinterpret_cast<uint32_t*>(static_cast<char*>(slab) + at));
  }
  TakeLast(&zeros_, &zero);
  return zero;
}

void CudaPools::GiveBack(uint32_t* zero) {
  MutexLock lock(mu_);
  zeros_.push_back(zero);
}

void CudaPools::Free(Where where, const Block& block) {
  if (where == Where::kHost) {
    (void)CudaStatus(cudaFreeHost(block.data), "cudaFreeHost");
  } else {
    (void)CudaStatus(cudaFree(block.data), "cudaFree");
  }
}

}  // namespace moonpool::gpu
