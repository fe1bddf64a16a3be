// One pass of a trace through one server over one transport.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "client/moonpool/client.h"
#include "tools/bench/histogram.h"
#include "tools/bench/trace.h"

namespace moonpool::bench {

struct RunSettings {
  std::string url;
  std::string transport;      // auto, shm or tcp
  std::string key_prefix;     // keys are "<prefix>:<block id>"
  uint64_t block_bytes = 0;
  int clients = 1;
  double speed = 0;           // times real time; 0: as fast as possible
  bool verify = true;
  uint64_t warm_bytes = 0;    // written and removed before the clock starts
};

// One kind of call.
struct OperationFigures {
  Histogram calls;           // durations
  uint64_t blocks = 0;
  uint64_t bytes = 0;
  uint64_t busy_ns = 0;      // sum of the calls' durations over all clients
  void Merge(const OperationFigures& other);
  // While in the call, one client moves so many GB per second.
  double GbPerSecond() const;
};

struct RunFigures {
  enum Operation { kMatch, kRead, kExists, kWrite, kOperations };
  // By operation, and by how the bytes moved (client::Transport).
  std::array<std::array<OperationFigures, client::kTransports>, kOperations> operations;
  uint64_t requests = 0;
  uint64_t accesses = 0;       // of blocks
  uint64_t prefix_hits = 0;    // blocks read: the leading ones that were there
  uint64_t stranded_hits = 0;  // blocks that were there, but behind one that was not
  uint64_t lost = 0;           // there when asked, gone when read
  uint64_t verified_bytes = 0;
  uint64_t wrong_blocks = 0;
  uint64_t errors = 0;
  std::string first_error;
  Histogram late;              // behind the trace's own time, when replayed in (scaled) real time
  double seconds = 0;
  client::Stats library;
  void Merge(const RunFigures& other);
};

// Calls `progress(done, total)` about once a second.  Throws Failure when it cannot begin.
template <typename Progress>
RunFigures RunTrace(const Trace& trace, const RunSettings& settings, Progress&& progress);

// What RunTrace is made of.
class TraceRun {
 public:
  TraceRun(const Trace& trace, const RunSettings& settings);
  ~TraceRun();
  // Faults the pool in by writing to it.
  void Warm();
  void Start();
  // Waits up to a second; true when all requests are done.
  bool Wait();
  uint64_t done() const;
  RunFigures Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename Progress>
RunFigures RunTrace(const Trace& trace, const RunSettings& settings, Progress&& progress) {
  TraceRun run(trace, settings);
  run.Warm();
  run.Start();
  while (!run.Wait()) progress(run.done(), trace.size());
  return run.Finish();
}

}  // namespace moonpool::bench
