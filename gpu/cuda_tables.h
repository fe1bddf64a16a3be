// Tables that kernels read, too long to travel with the launch: copied into pinned memory at the
// call and from there to the device on the stream.
//
// Threads: any; mu_ is a leaf lock.  The pools must outlive it, and the work its end.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/cuda_pools.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::gpu {

class CudaTables {
 public:
  CudaTables(CudaContext* context, CudaPools* pools) : context_(context), pools_(pools) {}
  ~CudaTables();

  struct Slot {
    CudaPools::Block host;
    CudaPools::Block device;
    cudaEvent_t sent = nullptr;
    cudaEvent_t used = nullptr;  // behind the last kernel that reads it
  };
  // Room for a table; fill slot.host.
  Result<Slot> Take(uint64_t bytes);
  // What is put into the stream from now on finds the table on the device.  REQUIRES: a context is
  // current, here and below.
  Status Send(const Slot& slot, uint64_t bytes, cudaStream_t stream);
  // The slot is free when what is in the stream now is done.
  Status GiveBack(const Slot& slot, cudaStream_t stream);

 private:
  CudaContext* const context_;
  CudaPools* const pools_;
  Mutex mu_;
  std::vector<Slot> slots_ GUARDED_BY(mu_);
  cudaStream_t stream_ GUARDED_BY(mu_) = nullptr;
};

}  // namespace moonpool::gpu
