// What the rows about GPU memory share: memory, timing, and where results go.
//
// Threads: one at a time.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/copy_batch.h"
#include "tools/bench/gpu.h"
#include "tools/bench/gpu_setup.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/report.h"

namespace moonpool::bench {

const std::vector<Row>& GpuRowTable();

class GpuComparison {
 public:
  explicit GpuComparison(const GpuModeOptions& options);

  GpuSetup& setup() { return setup_; }
  bool quick() const { return options_.common.quick; }
  int reps() const { return reps_; }
  bool Wants(std::string_view id) const { return rows_.Wants(id); }

  // As RateOfRounds() and MedianMicroseconds().
  double Rate(uint64_t bytes, const std::function<void(uint64_t round)>& round,
              const std::function<void()>& wait) const;
  double Microseconds(const std::function<void(uint64_t round)>& call) const;

  // Puts a batch into the bench's stream; Drain() waits for all of them.
  void Submit(gpu::CopyBatch batch);
  void Drain();

  void Measure(std::string_view id, const std::function<Pair()>& measure,
               const std::function<Json()>& details = {}) {
    rows_.Measure(id, reps_, measure, details);
  }
  Report Finish();

 private:
  const GpuModeOptions options_;
  const int reps_;
  GpuSetup setup_;
  MeasuredRows rows_;
  Report report_;
  std::vector<gpu::Completion> under_way_;
};

void GpuPullRows(GpuComparison& comparison);
void GpuHostRows(GpuComparison& comparison);
void GpuPageRows(GpuComparison& comparison);

}  // namespace moonpool::bench
