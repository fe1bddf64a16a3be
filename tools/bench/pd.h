// `moonpool-bench pd`: prefill writers hand the blocks of a prompt to decode readers, layer by
// layer, through one server.
//
// Two phases over each transport: as fast as possible (throughput), and paced (each layer is
// written when a prefill of the given speed would have computed it; hand-over latency counts from
// then until the reader has every byte of the layer).
//
// The modelled time to first token, with C = prompt / prefill speed / layers and x(l) the median
// hand-over of layer l:
//   layer by layer       t(l) = max((l + 1) C, t(l - 1)) + x(l), and t of the last layer
//   after the prefill    layers * C + sum of x(l)
//   recomputed           layers * C, by the decode side itself
//   found in the pool    sum of the median reads of all layers: nothing is computed
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/options.h"

namespace moonpool::bench {

struct PdOptions {
  CommonOptions common;
  std::string model = "llama-3-8b";
  int writers = 1;
  int readers = 1;
  int requests = 0;  // per phase; 0: 8, or 2 with --quick
  uint64_t tokens = 1024;
  uint64_t block_tokens = 256;
  int layers = 0;  // 0: the model's
  double scale = 1;
  double prefill_tokens_per_s = 10000;
  int poll_us = 20;
};

int HandOver(const PdOptions& options);

}  // namespace moonpool::bench
