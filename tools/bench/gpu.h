// `moonpool-bench gpu`: copies to, from and within GPU memory beside the raw CUDA calls.
#pragma once

#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct GpuModeOptions {
  CommonOptions common;
  std::string rows;    // a regular expression; empty: all
  std::string device;  // a UUID; empty: the first
  int reps = 0;        // 0: 7, or 3 with --quick
  bool list = false;
};

// REQUIRES: CUDA was not used in this process before; a child is forked.
int Gpu(const GpuModeOptions& options);

}  // namespace moonpool::bench
