// What devices did not finish within Options::timeout_ms.  Nobody waits for it any more, but what
// it touches must not be unmapped, unpinned, freed or given to others before the devices are done.
//
// Threads: any; mu_ is a leaf lock, and nothing is asked of a device under it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "gpu/copy_batch.h"
#include "protocol/mutex.h"

namespace moonpool::client {

// One batch on one device.
struct ParkedWork {
  // Mappings, staged memory, and the sessions whose extents are written.
  std::vector<std::shared_ptr<const void>> held;
  size_t values = 0;
  bool on_callers_stream = false;
  gpu::Completion completion;  // goes first
};

class GpuParked {
 public:
  // `wake` is called when there is something to look at.  Full with `most` batches.
  GpuParked(size_t most, std::function<void()> wake) : most_(most), wake_(std::move(wake)) {}

  void Add(ParkedWork work);
  // Lets go of what devices are done with; does not wait.
  void Look();
  // Until there is nothing, or the time is over: false.
  bool WaitUntil(std::chrono::steady_clock::time_point deadline);
  // Keeps what is left, and `more`, as long as the process: the devices may touch it for all we
  // know.
  void Leak(std::vector<std::shared_ptr<const void>> more);

  uint64_t values() const { return values_.load(std::memory_order_acquire); }
  // So much is left on streams of the library's that no more should be given to devices.
  bool full() const { return batches_.load(std::memory_order_relaxed) >= most_; }

 private:
  const size_t most_;
  const std::function<void()> wake_;
  std::atomic<uint64_t> values_{0};
  std::atomic<uint64_t> batches_{0};  // on streams of the library's
  Mutex mu_;
  std::vector<ParkedWork> works_ GUARDED_BY(mu_);
};

}  // namespace moonpool::client
