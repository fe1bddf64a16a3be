// `moonpool-bench rdma`: batched reads beside the device's own READ loop, in one run.
//
// Values are read by libmoonpool from a server process that it starts; the raw loop, and the rows
// about the engine alone, read a pool in this process with the same values.  Both sides read in the
// same order.
#pragma once

#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct RdmaModeOptions {
  CommonOptions common;
  std::string devices;  // as the server's rdma-devices
  std::string exclude;
  std::string rows;      // a regular expression; empty: all
  std::string fail_nic;  // network interface to take down for the row about recovery; empty: none
  int reps = 0;          // 0: 5, or 3 with --quick
  bool list = false;
};

int Rdma(const RdmaModeOptions& options);

}  // namespace moonpool::bench
