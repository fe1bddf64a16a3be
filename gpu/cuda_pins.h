// Which host memory this process has pinned through Moonpool: each range once, however many ask.
//
// Threads: any; mu_ is held across the registration itself, which takes milliseconds, so that
// nobody sees a range that is not pinned yet.
#pragma once

#include <cstdint>
#include <map>

#include "gpu/memory.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::gpu {

class CudaPins {
 public:
  // REQUIRES: a context is current, here and below.  Where the range begins that holds all of it.
  Result<uintptr_t> Pin(void* data, uint64_t bytes, Access access);
  void Unpin(uintptr_t begin);

 private:
  struct Range {
    uintptr_t end = 0;
    int users = 0;
    Access access = Access::kReadWrite;
  };

  Mutex mu_;
  std::map<uintptr_t, Range> ranges_ GUARDED_BY(mu_);  // by where they begin; they do not overlap
};

}  // namespace moonpool::gpu
