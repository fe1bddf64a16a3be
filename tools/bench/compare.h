// `moonpool-bench compare`: the same work on Moonpool and on what it is measured against, side by
// side (A B A B ...), with medians of the pairs' ratios.
#pragma once

#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct CompareOptions {
  CommonOptions common;
  std::string rows;  // a regular expression; empty: all
  int reps = 0;      // 0: 5, or 1 with --quick
  std::string plot;
  std::string memory = "4gb";  // of every moonpool-server
  bool list = false;
};

int Compare(const CompareOptions& options);

}  // namespace moonpool::bench
