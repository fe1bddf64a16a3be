// `moonpool-bench ssd`: the SSD tier beside what the same disk does without it.
#pragma once

#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct SsdModeOptions {
  CommonOptions common;
  std::string directory;  // on the disk to measure; empty: the system's temporary one
  std::string rows;       // a regular expression; empty: all
  std::string trace;      // for the rows about restarts; empty: generated
  int reps = 0;           // 0: 5, or 1 with --quick
  bool list = false;
};

int Ssd(const SsdModeOptions& options);

}  // namespace moonpool::bench
