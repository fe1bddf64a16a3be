// `moonpool-bench policy`: hit ratios of the eviction policies over a trace, without any bytes,
// beside Belady's optimum, which nobody can reach who does not know the future.
//
// What counts is the prefix hit: a block of a prompt helps only if all blocks before it are there.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct PolicyOptions {
  CommonOptions common;
  std::string trace;                      // a file; empty: generate
  std::string generate = "conversation";  // kinds separated by commas, or "all"
  uint64_t requests = 0;  // the first so many; 0: all of the file, or the generator's number
  uint64_t seed = 1;
  // Separated by commas: shares of the distinct blocks (at most 1, with a point) or bytes.
  std::string capacity = "0.02,0.05,0.1";
  uint64_t block_bytes = 64ull << 20;
};

int ComparePolicies(const PolicyOptions& options);

}  // namespace moonpool::bench
