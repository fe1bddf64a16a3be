// Server: RDMA, if there is any; and INFO rdma.
#include <spdlog/fmt/fmt.h>

#include "server/command_families.h"
#include "server/log.h"
#include "server/rdma.h"
#include "server/server.h"
#include "server/session.h"
#include "storage/tenant.h"

namespace moonpool::server {

void Server::StartRdma() {
  const std::string wanted = config_.text(Key::kRdma);
  if (wanted == "no") {
    rdma_off_ = "rdma is 'no' in the configuration";
    return;
  }
  Rdma::Options options;
  options.config = &config_;
  options.epoch = epoch_;
  options.tenants = tenants_;
  options.on_queue_pairs = [this](uint64_t session, size_t queue_pairs) {
    MutexLock lock(sessions_mu_);
    const auto found = sessions_.find(session);
    if (found != sessions_.end()) found->second->queue_pairs = queue_pairs;
  };
  auto started = Rdma::Start(options);
  if (!started) {
    rdma_off_ = started.error().message;
    Log(wanted == "yes" ? LogLevel::kWarning : LogLevel::kNotice, "RDMA is not used: {}", rdma_off_);
    return;
  }
  rdma_ = std::move(*started);
  for (const Rdma::Nic& nic : rdma_->nics()) {
    Log(LogLevel::kNotice, "RDMA: {} ({}), {} Mb/s, port {}", nic.name, nic.protocol, nic.speed_mbps,
        rdma_->port());
  }
  for (const std::string& left_out : rdma_->left_out()) {
    Log(LogLevel::kNotice, "RDMA: left out {}", left_out);
  }
}

void RdmaSection(Context& c, std::string& out) {
  const auto row = [&out](std::string_view name, const auto& value) {
    out += fmt::format("{}:{}\r\n", name, value);
  };
  Rdma* const rdma = c.server.rdma();
  row("rdma", rdma == nullptr ? "off" : "on");
  if (rdma == nullptr) return row("rdma_reason", c.server.rdma_off());
  row("rdma_port", rdma->port());
  const std::vector<Rdma::Nic> nics = rdma->nics();
  row("rdma_nics", nics.size());
  for (size_t i = 0; i < nics.size(); ++i) {
    const Rdma::Nic& nic = nics[i];
    row(fmt::format("rdma_nic{}", i),
        fmt::format("name={},protocol={},link={},speed_mbps={},numa_node={},addresses={},gids={}",
                    nic.name, nic.protocol, nic.up ? "up" : "down", nic.speed_mbps, nic.numa_node,
                    fmt::join(nic.addresses, " "), fmt::join(nic.gids, " ")));
  }
  const std::vector<std::string> left_out = rdma->left_out();
  for (size_t i = 0; i < left_out.size(); ++i) row(fmt::format("rdma_left_out{}", i), left_out[i]);
  uint64_t regions = 0, bytes = 0, waiting = 0, gpu_regions = 0, gpu_bytes = 0;
  for (const auto& tenant : c.server.tenants()) {
    for (const storage::RegionInfo& region : tenant->pool().Regions()) {
      if (!region.device.empty()) {  // NICs need not take those
        gpu_regions += region.exported ? 1 : 0;
        gpu_bytes += region.exported ? region.bytes : 0;
        continue;
      }
      regions += region.exported ? 1 : 0;
      bytes += region.exported ? region.bytes : 0;
      waiting += region.exported || region.draining ? 0 : 1;
    }
  }
  row("rdma_registered_regions", regions);
  row("rdma_registered_bytes", bytes);
  row("rdma_unregistered_regions", waiting);
  row("rdma_registered_gpu_regions", gpu_regions);
  row("rdma_registered_gpu_bytes", gpu_bytes);
  const Rdma::Counters counters = rdma->counters();
  row("rdma_regions_refused", counters.regions_refused);
  row("rdma_queue_pairs", counters.queue_pairs);
  row("rdma_queue_pairs_accepted", counters.accepted);
  row("rdma_queue_pairs_rejected", counters.rejected);
  row("rdma_queue_pairs_failed", counters.failed);
  row("rdma_regions_told", counters.regions_told);
  row("rdma_bytes_read", counters.bytes_read);
  row("rdma_bytes_written", counters.bytes_written);
}

}  // namespace moonpool::server
