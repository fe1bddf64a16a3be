#include "gpu/cuda_pins.h"

#include <cuda_runtime_api.h>

#include <iterator>
#include <string>

#include "gpu/cuda_context.h"

namespace moonpool::gpu {

Result<uintptr_t> CudaPins::Pin(void* data, uint64_t bytes, Access access) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  MutexLock lock(mu_);
  auto next = ranges_.upper_bound(begin);
  if (next != ranges_.begin()) {
    const auto before = std::prev(next);
    if (begin + bytes <= before->second.end) {
      if (access == Access::kReadWrite && before->second.access == Access::kReadOnly) {
        return Fail(ErrorCode::kInvalidArgument,
                    "the memory is pinned read-only; unpin it to pin it for writing");
      }
      ++before->second.users;
      return before->first;
    }
    if (begin < before->second.end) next = before;
  }
  if (next != ranges_.end() && next->first < begin + bytes) {
    return Fail(ErrorCode::kInvalidArgument,
                "a part of the memory is pinned already; pin the whole of it at once");
  }
  unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped;
  if (access == Access::kReadOnly) flags |= cudaHostRegisterReadOnly;
  if (Status status = CudaStatus(cudaHostRegister(data, bytes, flags),
                                 "cudaHostRegister of " + std::to_string(bytes) + " bytes");
      !status) {
    return tl::unexpected(std::move(status.error()));
  }
  ranges_[begin] = {begin + bytes, 1, access};
  return begin;
}

void CudaPins::Unpin(uintptr_t begin) {
  MutexLock lock(mu_);
  const auto found = ranges_.find(begin);
  if (found == ranges_.end() || --found->second.users > 0) return;
  (void)CudaStatus(cudaHostUnregister(reinterpret_cast<void*>(begin)), "cudaHostUnregister");
  ranges_.erase(found);
}

}  // namespace moonpool::gpu
