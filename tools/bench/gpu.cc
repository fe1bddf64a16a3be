#include "tools/bench/gpu.h"

#include <algorithm>
#include <utility>

#include "tools/bench/failure.h"
#include "tools/bench/gpu_rows.h"
#include "tools/bench/gpu_timing.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMemory = 1ull << 30;
constexpr uint64_t kQuickMemory = 512ull << 20;
// One figure is measured for about so long.
constexpr double kSeconds = 0.05;
constexpr int kCalls = 200;

std::string Version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

const std::vector<Row>& GpuRowTable() {
  using enum Row::Better;
  using enum Row::Judged;
  static const std::vector<Row> rows = {
      RowTemplate("pull-1m", "pull of 64 x 1 MiB from another process, device to device", "GB/s",
                  kHigher, 0.85, 0.98),
      RowTemplate("pull-16m", "the same, 16 MiB each", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("pull-100m", "the same, 100 MB each", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("to-device-1m", "host pool to device, 64 x 1 MiB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-host-1m", "device to host pool, 64 x 1 MiB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-device-100m", "host pool to device, 100 MB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-host-100m", "device to host pool, 100 MB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("scatter-64k", "scatter of 64 KiB pages vs one copy", "GB/s", kHigher, 0.8, 0.95),
      RowTemplate("gather-64k", "gather of 64 KiB pages vs one copy", "GB/s", kHigher, 0.8, 0.95),
      RowTemplate("scatter-4k", "scatter of 4 KiB pages vs one copy", "GB/s", kHigher, 0.5, 0.85),
      RowTemplate("gather-4k", "gather of 4 KiB pages vs one copy", "GB/s", kHigher, 0.5, 0.85),
      RowTemplate("host-scatter-16k", "scatter of 16 KiB pages, host pool, vs one pinned copy",
                  "GB/s", kHigher, 0.8, 0.95),
      RowTemplate("host-gather-16k", "gather of 16 KiB pages into the host pool, vs one", "GB/s",
                  kHigher, std::nullopt, std::nullopt),
      RowTemplate("added-64", "added per 1 MiB pull, batches of 64", "us", kLower, 30, 3, kOurs),
      RowTemplate("added-1", "added per 1 MiB pull, single", "us", kLower, 30, 8, kOurs),
  };
  return rows;
}

GpuComparison::GpuComparison(const GpuModeOptions& options)
    : options_(options),
      reps_(options.reps > 0       ? options.reps
            : options.common.quick ? 3
                                   : 7),
      setup_(options.device, options.common.quick ? kQuickMemory : kMemory),
      rows_(GpuRowTable(), options.rows),
      report_(NewReport(options.common, "gpu")) {
  const gpu::DeviceInfo& info = setup_.device->info();
  report_.settings["reps"] = reps_;
  report_.settings["device"] = info.name;
  report_.settings["uuid"] = info.uuid.ToString();
  report_.settings["region_handles"] = NameOf(setup_.device->BestHandle());
  report_.versions["driver_cuda"] = Version(info.driver_version);
  report_.versions["runtime_cuda"] = Version(info.runtime_version);
}

double GpuComparison::Rate(uint64_t bytes, const std::function<void(uint64_t round)>& round,
                           const std::function<void()>& wait) const {
  return RateOfRounds(bytes, kSeconds, round, wait);
}

double GpuComparison::Microseconds(const std::function<void(uint64_t round)>& call) const {
  return MedianMicroseconds(kCalls, call);
}

void GpuComparison::Submit(gpu::CopyBatch batch) {
  under_way_.push_back(Expect(std::move(batch).Submit(), "submitting a batch"));
}

void GpuComparison::Drain() {
  // Each is released while later ones are at work, as a client does.
  for (gpu::Completion& one : under_way_) {
    const gpu::Completion reached = std::move(one);
    Expect(reached.Wait(), "a batch");
  }
  under_way_.clear();
}

Report GpuComparison::Finish() {
  report_.rows = rows_.Ordered();
  return report_;
}

int Gpu(const GpuModeOptions& options) {
  const auto& all = GpuRowTable();
  if (options.list) {
    std::string text;
    for (const Row& row : all) text += row.id + "\t" + row.name + "\n";
    Print(options.common, text);
    return 0;
  }
  GpuComparison comparison(options);
  if (std::none_of(all.begin(), all.end(), [&](const Row& r) { return comparison.Wants(r.id); })) {
    throw Failure("--rows '" + options.rows + "' matches no row; gpu --list names them");
  }
  const gpu::DeviceInfo& info = comparison.setup().device->info();
  Progress("measuring on " + info.name + ", " + std::to_string(comparison.reps()) + " times each");
  // What fails costs its own rows, not the others.
  std::string failed;
  for (const auto group : {GpuPullRows, GpuHostRows, GpuPageRows}) {
    try {
      group(comparison);
    } catch (const Failure& failure) {
      failed += std::string("FAILED: ") + failure.what() + "\n";
    }
  }
  const Report report = comparison.Finish();
  Print(options.common, Describe(report.machine) + "\n" + info.name + " (" + info.uuid.ToString() +
                            "), driver for CUDA " + Version(info.driver_version) +
                            ", built with CUDA " + Version(info.runtime_version) + ", regions as " +
                            std::string(NameOf(comparison.setup().device->BestHandle())) + ", " +
                            report.machine.date + ", medians of " +
                            std::to_string(comparison.reps()) + "\n\n" + Table(report.rows) + "\n" +
                            DetailTable(report.rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
