// Streams, events and blocks of memory of one device, kept for their next use: to make them takes
// from a microsecond (an event) to milliseconds (pinned memory).
//
// Threads: any; mu_ is a leaf lock.  REQUIRES: everything taken was given
// back before it is destroyed.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gpu/cuda_context.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::gpu {

class CudaPools {
 public:
  explicit CudaPools(CudaContext* context) : context_(context) {}
  ~CudaPools();

  struct Block {
    char* data = nullptr;
    uint64_t bytes = 0;
  };
  enum class Where : uint8_t { kHost, kDevice };

  Result<cudaStream_t> TakeStream();
  void GiveBack(cudaStream_t stream);
  Result<cudaEvent_t> TakeEvent();
  void GiveBack(cudaEvent_t event);
  // At least so many bytes.
  Result<Block> TakeBlock(Where where, uint64_t bytes);
  void GiveBack(Where where, const Block& block);
  // A word of device memory that is 0 as long as nobody has it.
  Result<uint32_t*> TakeZero();
  void GiveBack(uint32_t* zero);

 private:
  static constexpr size_t kClasses = 40;  // powers of two

  void Free(Where where, const Block& block);

  CudaContext* const context_;
  Mutex mu_;
  std::vector<cudaStream_t> streams_ GUARDED_BY(mu_);
  std::vector<cudaEvent_t> events_ GUARDED_BY(mu_);
  std::array<std::vector<Block>, kClasses> blocks_[2] GUARDED_BY(mu_);
  uint64_t kept_bytes_[2] GUARDED_BY(mu_) = {0, 0};
  std::vector<uint32_t*> zeros_ GUARDED_BY(mu_);
  std::vector<void*> slabs_ GUARDED_BY(mu_);  // that the zeros are in
};

}  // namespace moonpool::gpu
