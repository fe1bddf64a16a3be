// Traces of LLM serving in the open Mooncake format: one JSON object per line,
//   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [id, ...]}
// where hash_ids are the prompt's blocks in order, and an id stands for its block and the whole
// prefix up to it.  (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces)
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "tools/bench/report.h"

namespace moonpool::bench {

struct TraceRequest {
  uint64_t timestamp_ms = 0;
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  std::vector<uint64_t> blocks;
};
using Trace = std::vector<TraceRequest>;

// Throw Failure, which names the line, when the text is not in the format.
Trace ParseTrace(std::istream& text, const std::string& name);
Trace ReadTrace(const std::string& path);
void WriteTrace(const Trace& trace, std::ostream& out);

// What makes one trace like another, for a cache.
struct TraceStats {
  uint64_t requests = 0;
  double seconds = 0;  // from the first request to the last
  uint64_t accesses = 0;  // of blocks
  uint64_t distinct = 0;
  // Of the accesses, those that a cache which forgets nothing answers.
  double infinite_hit_ratio = 0;
  double mean_input_tokens = 0, median_input_tokens = 0, p90_input_tokens = 0;
  double mean_blocks = 0, p90_blocks = 0;
  double mean_output_tokens = 0;
  // Requests that share more than their first block with an earlier one, and of those: the time
  // since the last request that had the deepest shared block, and the blocks that are new.
  double continued_share = 0;
  double median_reuse_s = 0, p90_reuse_s = 0;
  double mean_new_blocks = 0;
  // Distinct blocks that are used twice or more, and the most used one but for the first.
  double reused_share = 0;
  uint64_t most_uses = 0;
};

TraceStats StatsOf(const Trace& trace);
Json ToJson(const TraceStats& stats);
std::string Describe(const TraceStats& stats);

}  // namespace moonpool::bench
