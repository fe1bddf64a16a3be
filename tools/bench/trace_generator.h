// Makes traces that look to a cache like the conversation trace of the FAST'25 Mooncake paper
// (12,031 requests of one hour; 288,500 block accesses, 36.6 % of them hits in an infinite cache).
//
// The model, with every number measured from that trace:
//   - Every 3 s a number of conversations begins (Poisson).  All prompts share one first block
//     (the system prompt); the rest of a first prompt is new.
//   - After each turn a conversation goes on with a probability that grows with its age, after a
//     pause.  The next prompt has the last one's blocks but for the last, which was not full,
//     and some new ones.
//   - One continuation in seven branches off instead: it keeps only a part of the blocks (the
//     same document or the same start, another question).
// Lengths and pauses are drawn from the trace's own quantiles, interpolated.
#pragma once

#include <cstdint>

#include "tools/bench/trace.h"

namespace moonpool::bench {

struct GeneratorOptions {
  uint64_t requests = 12031;
  uint64_t seed = 1;
  uint64_t block_tokens = 512;
};

Trace GenerateTrace(const GeneratorOptions& options);

}  // namespace moonpool::bench
