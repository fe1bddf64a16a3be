#include "tools/bench/gpu_server.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "gpu/cuda.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu_server_rows.h"
#include "tools/bench/gpu_setup.h"
#include "tools/bench/test_server.h"

namespace moonpool::bench {

namespace {

// Of each GPU, and of the host: what the rows keep there, twice over.
constexpr const char* kGpuMemory = "4gb";
constexpr const char* kHostMemory = "6gb";
// Regions and write arenas that hold several of the largest values.
constexpr const char* kRegion = "1gb";
constexpr const char* kArena = "512mb";
// The first region of a GPU may take a while.
constexpr const char* kMemoryWaitMs = "20000";

}  // namespace

int GpuServer(const GpuServerModeOptions& options) {
  const auto& all = GpuServerRowTable();
  if (options.list) {
    std::string text;
    for (const Row& row : all) text += row.id + "\t" + row.name + "\n";
    Print(options.common, text);
    return 0;
  }
  MeasuredRows rows(all, options.rows);
  if (std::none_of(all.begin(), all.end(), [&](const Row& r) { return rows.Wants(r.id); })) {
    throw Failure("--rows '" + options.rows + "' matches no row; gpu-server --list names them");
  }
  const auto devices = Expect(gpu::CudaDevices::Open(), "gpu-server measures nothing");
  const size_t ordinal = OrdinalOf(*devices, options.device);
  const gpu::DeviceInfo& info = devices->all()[ordinal]->info();
  const std::string path = FindMoonpoolServer(options.common.server);
  // Before this process uses the device: a program is started by fork().
  const auto server = TestServer::StartMoonpool(
      path, {"--gpu", "yes", "--gpu-devices", info.uuid.ToString(), "--gpu-memory", kGpuMemory,
             "--maxmemory", kHostMemory, "--region-size", kRegion, "--arena-size", kArena,
             "--memory-wait", kMemoryWaitMs});
  const std::string gpus = server->control().Info("gpu");
  if (InfoField(gpus, "gpu") != "on") {
    throw Failure(path + " uses no GPU: " + InfoField(gpus, "gpu_reason"));
  }
  server->WaitUntilPopulated();
  GpuServerShape shape;
  if (options.common.quick) {
    shape.reps = 3;
    shape.bytes_per_size = 256ull << 20;
    shape.calls = 100;
  }
  if (options.reps > 0) shape.reps = options.reps;
  shape.most_seconds = options.most_seconds;
  Report report = NewReport(options.common, "gpu-server");
  report.settings["reps"] = shape.reps;
  report.settings["device"] = info.name;
  report.settings["uuid"] = info.uuid.ToString();
  report.versions["moonpool"] = server->version();
  Progress("measuring on " + info.name + ", " + std::to_string(shape.reps) + " times each");
  std::string failed;
  {
    RawCuda raw(static_cast<int>(ordinal));
    const GpuServerSide side{server->url(), [&] { return server->CpuSeconds(); }};
    failed = GpuServerRows(shape, side, raw, rows).Run();
  }
  report.rows = rows.Ordered();
  Print(options.common, Describe(report.machine) + "\n" + info.name + " (" + info.uuid.ToString() +
                            "), through " + path + ", " + report.machine.date + ", medians of " +
                            std::to_string(shape.reps) + "\n\n" + Table(report.rows) + "\n" +
                            DetailTable(report.rows) + failed);
  Finish(options.common, report);
  (void)server->StopCleanly(60);
  return failed.empty() ? 0 : 1;
}

}  // namespace moonpool::bench
