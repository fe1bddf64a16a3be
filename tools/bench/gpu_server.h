// `moonpool-bench gpu-server`: values in GPU memory and in the host pool of a server, moved by
// libmoonpool to and from this process's GPU memory, beside the raw CUDA calls.
#pragma once

#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct GpuServerModeOptions {
  CommonOptions common;
  std::string rows;         // a regular expression; empty: all
  std::string device;       // a UUID; empty: the first
  int reps = 0;             // 0: 5, or 3 with --quick
  double most_seconds = 0;  // no row begins after so long; 0: all do
  bool list = false;
};

int GpuServer(const GpuServerModeOptions& options);

}  // namespace moonpool::bench
