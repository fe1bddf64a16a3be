// What the rows about GPU memory work with: a region of another process, memory of this one's, a
// pool as the server has it, and the raw calls that everything is measured beside.
//
// Threads: one at a time.  Throws Failure.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/cuda.h"
#include "protocol/unique_fd.h"
#include "tools/bench/failure.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/raw_copies.h"

namespace moonpool::bench {

// Throws Failure when it is an error.
template <typename T>
T Expect(Result<T> result, std::string_view what) {
  if (!result) throw Failure(std::string(what) + ": " + result.error().message);
  return std::move(*result);
}
void Expect(const Status& status, std::string_view what);

// A process that allocates a region of its own on a device and gives it away; ends with this.
class GpuOwner {
 public:
  // Forks: before CUDA is used.
  GpuOwner();
  ~GpuOwner();
  GpuOwner(const GpuOwner&) = delete;

  struct Given {
    gpu::RegionHandle handle;
    UniqueFd fd;
  };
  Given Allocate(const gpu::Uuid& device, uint64_t bytes);

 private:
  pid_t pid_ = -1;
  UniqueFd socket_;
};

class RawCuda : public RawCopies {
 public:
  explicit RawCuda(int ordinal);
  ~RawCuda() override;
  RawCuda(const RawCuda&) = delete;

  // cudaMalloc, cudaHostAlloc, cudaMemcpyAsync, and an event that is waited for.
  char* DeviceMemory(uint64_t bytes) override;
  char* PinnedMemory(uint64_t bytes) override;
  void Poison(char* to, uint64_t bytes) override;
  void Copy(void* to, const void* from, uint64_t bytes) override;
  void Wait() override;
  void* stream() override { return stream_; }
  // cudaMemcpyBatchAsync: false where there is none (before CUDA 12.8).
  bool CopyBatch(const std::vector<gpu::Piece>& pieces);

 private:
  std::vector<void*> device_;
  std::vector<void*> pinned_;
  void* stream_ = nullptr;
  void* event_ = nullptr;
};

// The ordinal of a device among `devices`: by its UUID, or the first when that is empty.
size_t OrdinalOf(const gpu::CudaDevices& devices, const std::string& uuid);

struct GpuSetup {
  // `uuid`: empty: the first device.
  GpuSetup(const std::string& uuid, uint64_t bytes);

  std::string Fetch(const char* from, uint64_t bytes);

  GpuOwner owner;  // first: it forks
  std::unique_ptr<gpu::CudaDevices> devices;
  gpu::Device* device = nullptr;
  const uint64_t bytes;  // of each memory below
  std::unique_ptr<RawCuda> raw;
  std::unique_ptr<gpu::DeviceRegion> region;  // the other process's, filled
  char* target = nullptr;                     // device memory; the raw calls use it too
  char* raw_source = nullptr;
  char* raw_gathered = nullptr;
  char* raw_pinned = nullptr;
  MemoryBlock pool;  // as the server's, filled, pinned
  std::unique_ptr<gpu::PinnedRegion> pinned_pool;
  MemoryBlock counters;
  std::unique_ptr<gpu::PinnedRegion> pinned_counters;
  std::unique_ptr<gpu::Stream> stream;
};

}  // namespace moonpool::bench
