// `moonpool-bench rdma`: batched reads of a pool beside the device's own READ loop, in one run.
//
// Pool, service and reader are in this process: nothing but descriptors is left out of what a
// client on another host does.  Both sides read the same bytes in the same order.
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
