// The rows of `moonpool-bench gpu-server`, over any server that has a GPU tier and over any raw
// calls: tests give a server and a GPU that are doubles.
//
// Threads: one at a time.  Throw Failure: also for values that have other bytes than were written,
// or that came another way than the row is about.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/moonpool/client.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/raw_copies.h"

namespace moonpool::bench {

const std::vector<Row>& GpuServerRowTable();

// How much is moved, and for how long.
struct GpuServerShape {
  uint64_t small_bytes = 1 << 20;
  uint64_t medium_bytes = 16 << 20;
  uint64_t large_bytes = 100'000'000;
  // Of each size so many bytes lie in the server, and move round: more than caches hold.
  uint64_t bytes_per_size = 512ull << 20;
  double seconds = 0.05;  // one figure
  int calls = 200;        // one figure of a single call's time
  int reps = 5;
  double most_seconds = 0;  // no row begins after so long; 0: all do
};

struct GpuServerSide {
  std::string url;                      // without options
  std::function<double()> cpu_seconds;  // that the server has spent
};

class GpuServerRows {
 public:
  // All outlive this.  The server has no keys that begin as the bench's ("gpu-bench:").
  GpuServerRows(const GpuServerShape& shape, const GpuServerSide& server, RawCopies& raw,
                MeasuredRows& rows);
  ~GpuServerRows();

  // Those that are wanted.  What fails, or is too late, costs its own row: the text says which, and
  // why; empty when none did.
  std::string Run();

 private:
  enum class Tier { kGpu, kDram };
  class Values;
  // One side of a measurement: rounds that are put into a stream, or done when they return.
  struct Side {
    std::function<void(uint64_t round)> round;
    std::function<void()> wait = [] {};
  };
  // What else is told of a row, of its last measurement.
  struct Cost {
    double cpu_s_per_gb = 0;
    double ours_us = 0;
    double raw_us = 0;
  };

  void Pull(std::string_view id, uint64_t value_bytes, size_t batch);
  void GetInto(std::string_view id, Tier from, uint64_t value_bytes, size_t batch);
  void PutFrom(std::string_view id, Tier to, uint64_t value_bytes, size_t batch);
  void Added(std::string_view id, size_t batch);
  void Processor(std::string_view id);

  // GB/s, and what the server spends meanwhile.
  double Rate(uint64_t bytes, const Side& side, Cost* cost) const;
  // The row of `ours` beside `raw`, which both move `bytes` a round.
  void Measure(std::string_view id, uint64_t bytes, const Side& ours, const Side& raw);
  // The values, put there by a client of their own, and their bytes checked.  Made once.
  Values& Filled(Tier tier, uint64_t value_bytes, size_t batch);
  // Poisons the target, reads all of them with `read`, and compares every byte.
  void VerifyReads(const Values& values, const std::function<void(uint64_t round)>& read,
                   const std::function<void()>& wait, std::string_view what);
  Json Troubles() const;

  const GpuServerShape& shape_;
  const GpuServerSide& server_;
  RawCopies& raw_;
  MeasuredRows& rows_;
  std::unique_ptr<client::Client> client_;  // shm, and GPU memory by way of it
  std::unique_ptr<client::Client> plain_;   // tcp, as any Redis client
  char* target_ = nullptr;                  // device memory of this process's
  char* source_ = nullptr;                  // the same, with the bytes of the values
  char* raw_memory_ = nullptr;  // what raw copies read, or write, in place of the server's
  char* raw_pinned_ = nullptr;  // the same in host memory
  char* staging_ = nullptr;     // pinned memory, for one value
  std::vector<std::unique_ptr<Values>> filled_;
};

}  // namespace moonpool::bench
