// `moonpool-bench replay`: a serving trace through a server, as an inference engine would do it.
//
// For every request: how many leading blocks are there (KV.MATCH), read those, write the others.
// Every byte read is compared with what was written under that key.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/options.h"
#include "tools/bench/trace.h"

namespace moonpool::bench {

struct ReplayOptions {
  CommonOptions common;
  std::string trace;         // a file; empty: generate
  uint64_t requests = 0;     // the first so many; 0: all of the file, or the generator's number
  uint64_t seed = 1;
  std::string save_trace;    // write the trace to this file as well
  bool dry_run = false;      // only say what the trace is like
  int clients = 0;           // threads; 0: the cores
  std::string speed = "fast";  // fast, realtime, or how many times real time
  std::string transport = "auto";  // auto, shm, tcp, or several separated by commas
  uint64_t bytes_per_token = 128 << 10;
  uint64_t block_tokens = 512;
  std::string scale = "fit";  // how many times smaller than real the blocks are
  std::string capacity;       // maxmemory of the server we start
  bool warm = true;           // fault the pool in before the clock starts
  bool warm_url = false;      // so too on a server that was running
  bool verify = true;
  std::string model = "llama-3-8b";
};

int Replay(const ReplayOptions& options);

}  // namespace moonpool::bench
