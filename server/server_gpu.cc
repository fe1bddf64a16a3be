// Server: GPUs, if there are any; and INFO gpu.
#include <spdlog/fmt/fmt.h>

#include <chrono>

#include "gpu/cuda.h"
#include "server/command_families.h"
#include "server/gpus.h"
#include "server/late_writers.h"
#include "server/log.h"
#include "server/server.h"
#include "storage/tenant.h"

namespace moonpool::server {

Status Server::OpenGpus() {
  const std::string wanted = config_.text(Key::kGpu);
  const auto memory_bytes = static_cast<uint64_t>(config_.number(Key::kGpuMemory));
  if (wanted == "no") {
    gpu_off_ = "gpu is 'no' in the configuration";
  } else if (memory_bytes == 0) {
    gpu_off_ = "gpu-memory is 0";
  } else if (!config_.boolean(Key::kShm)) {
    gpu_off_ = "shm is 'no', and clients get memory of GPUs over the attach socket";
  }
  if (!gpu_off_.empty()) {
    Log(wanted == "yes" ? LogLevel::kWarning : LogLevel::kNotice, "GPUs are not used: {}", gpu_off_);
    return {};
  }
  Gpus::Options options;
  options.devices = config_.text(Key::kGpuDevices);
  options.memory_bytes = memory_bytes;
  options.given = given_gpus_;
  auto opened = Gpus::Open(options);
  if (!opened && opened.error().code == ErrorCode::kInvalidArgument) {
    return tl::unexpected<Error>(std::move(opened.error()));
  }
  if (!opened) {
    gpu_off_ = opened.error().message;
    Log(LogLevel::kWarning, "GPUs are not used: {}", gpu_off_);
    return {};
  }
  gpus_ = std::move(*opened);
  late_writers_ = std::make_unique<LateWriters>(peer_process_);
  for (const gpu::Device* device : gpus_->devices()) {
    const gpu::DeviceInfo& info = device->info();
    Log(LogLevel::kNotice, "GPU {} ({}, {} MiB, driver of CUDA {}.{}): {} MiB for values, handles: {}",
        info.uuid.ToString(), info.name, info.total_bytes >> 20, info.driver_version / 1000,
        info.driver_version % 1000 / 10, memory_bytes >> 20, NameOf(device->BestHandle()));
  }
  for (const std::string& left_out : gpus_->left_out()) {
    Log(LogLevel::kNotice, "GPU left out: {}", left_out);
  }
  return {};
}

void Server::AwaitGpus() {
  const std::chrono::seconds at_most(config_.number(Key::kShutdownTimeout));
  for (const auto& tenant : tenants_) {
    storage::DeviceGrowth* const growth = tenant->pool().growth();
    if (growth == nullptr || growth->AwaitIdle(at_most)) continue;
    Log(LogLevel::kWarning, "the driver of a GPU does not answer; all else has ended");
    if (on_silent_gpu_) on_silent_gpu_();
    return;
  }
}

namespace {

// Whether clients' NICs read memory of device number `number`: yes, or why not.
std::string RdmaTo(Context& c, size_t number) {
  if (c.server.rdma() == nullptr) return "no: " + c.server.rdma_off();
  if (c.server.config().text(Key::kGpuRdma) == "no")
    return "no: gpu-rdma is 'no' in the configuration";
  std::string why;
  for (const storage::RegionInfo& region : c.tenant.pool().Regions()) {
    if (region.device != c.tenant.gpu()->devices()[number]->name()) continue;
    if (region.exported) return "yes";
    if (!region.export_error.empty()) why = region.export_error;
  }
  return why.empty() ? "not yet: no region has been registered" : "no: " + why;
}

}  // namespace

void GpuSection(Context& c, std::string& out) {
  const auto row = [&out](std::string_view name, const auto& value) {
    out += fmt::format("{}:{}\r\n", name, value);
  };
  const Gpus* const gpus = c.server.gpus();
  row("gpu", gpus == nullptr ? "off" : "on");
  row("gpu_built_with_cuda", gpu::BuiltWithCuda() ? "yes" : "no");
  if (gpus == nullptr) return row("gpu_reason", c.server.gpu_off());
  const auto memories = gpus->memories();
  row("gpu_devices", gpus->devices().size());
  for (size_t i = 0; i < gpus->devices().size(); ++i) {
    const gpu::DeviceInfo& info = gpus->devices()[i]->info();
    const storage::MemoryBudget& budget = c.tenant.gpu_budget(i);
    const bool silent =
        c.tenant.pool().growth()->state(i) == storage::DeviceGrowth::State::kSilent;
    row(fmt::format("gpu_device{}", i),
        fmt::format("uuid={},name={},state={},handles={},compute_capability={}.{},total_bytes={},"
                    "bytes={},capacity={},region_bytes={}",
                    info.uuid.ToString(), info.name,
                    memories[i]->lost() ? "lost" : silent ? "silent" : "up",
                    NameOf(gpus->devices()[i]->BestHandle()), info.compute_capability / 10,
                    info.compute_capability % 10, info.total_bytes, budget.used_bytes(),
                    c.tenant.gpu_capacity(i), budget.region_bytes()));
    row(fmt::format("gpu_rdma{}", i), RdmaTo(c, i));
  }
  const LateWriters& late = *c.server.late_writers();
  row("gpu_late_writers", late.size());
  row("gpu_unwatched_sessions", late.unwatched());
  if (late.unwatched() > 0) row("gpu_unwatched_reason", late.unwatched_reason());
  for (size_t i = 0; i < gpus->left_out().size(); ++i) {
    row(fmt::format("gpu_left_out{}", i), gpus->left_out()[i]);
  }
}

}  // namespace moonpool::server
