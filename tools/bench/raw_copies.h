// The raw calls that copies of GPU memory are measured beside, on a stream of their own: CUDA's
// (gpu_setup.h), or a double's in tests.
//
// Threads: one at a time.  Throw Failure.  Memory lasts as long as this.
#pragma once

#include <cstdint>

namespace moonpool::bench {

class RawCopies {
 public:
  virtual ~RawCopies() = default;

  virtual char* DeviceMemory(uint64_t bytes) = 0;
  virtual char* PinnedMemory(uint64_t bytes) = 0;
  // Device memory is overwritten by bytes that no pattern has.
  virtual void Poison(char* to, uint64_t bytes) = 0;
  virtual void Copy(void* to, const void* from, uint64_t bytes) = 0;
  // For what has been given so far.
  virtual void Wait() = 0;
  // The stream: a cudaStream_t.
  virtual void* stream() = 0;
};

}  // namespace moonpool::bench
