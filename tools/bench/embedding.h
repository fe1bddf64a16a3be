// `moonpool-bench embedding`: gathers of many small rows, as embedding tables are read.
//
// Three ways: a key per row, gathered with BatchGetInto; many rows in each value, read through
// views without a copy of what is not asked for; and MGET on redis-server with hiredis.
#pragma once

#include <cstdint>
#include <vector>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct EmbeddingOptions {
  CommonOptions common;
  uint64_t gather_rows = 100'000;
  uint64_t table_rows = 0;  // 0: twice as many as are gathered
  std::vector<uint64_t> sizes = {512, 1024, 2048, 4096};
  int reps = 0;  // 0: 5, or 1 with --quick
};

int Embedding(const EmbeddingOptions& options);

}  // namespace moonpool::bench
