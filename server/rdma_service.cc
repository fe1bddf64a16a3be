// Rdma, over the NICs of this host.
#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "protocol/mutex.h"
#include "rdma/ibverbs.h"
#include "rdma/nic_set.h"
#include "rdma/rdma_exporter.h"
#include "rdma/service.h"
#include "server/log.h"
#include "server/rdma.h"

namespace moonpool::server {

namespace {

// Of the server's own transfers, per session that has any: only what is not registered goes through it.
constexpr uint64_t kStagingBytes = 1 << 20;

// Upkeep waits so long for clients to let a region go, and with it evictions and whoever waits for
// memory.  Clients that are reading answer within milliseconds; idle ones have no READ under way.
constexpr int64_t kWithdrawMs = 250;

// Says what could not be registered, which the pool does not: values there are sent over TCP, those
// of a device from a copy in DRAM.
class LoggedExporter : public storage::Exporter {
 public:
  LoggedExporter(std::unique_ptr<rdma::RdmaExporter> exporter, bool devices,
                 std::atomic<uint64_t>* refused)
      : exporter_(std::move(exporter)), devices_(devices), refused_(refused) {}

  const std::shared_ptr<rdma::TenantMemory>& memory() const { return exporter_->memory(); }

  Status Export(const std::shared_ptr<storage::Region>& region) override {
    const storage::DeviceMemory* const device = region->device();
    if (device != nullptr && !devices_) {
      return Fail(ErrorCode::kUnavailable, "gpu-rdma is 'no' in the configuration");
    }
    Status exported = exporter_->Export(region);
    if (exported) return exported;
    refused_->fetch_add(1, std::memory_order_relaxed);
    if (device == nullptr) {
      Log(LogLevel::kWarning, "RDMA: region {} cannot be registered, its values go over TCP: {}",
          region->id(), exported.error().message);
    } else if (IsNew(device, exported.error().message)) {
      Log(LogLevel::kWarning,
          "RDMA: memory of GPU {} cannot be registered, its values go through DRAM: {}",
          device->name(), exported.error().message);
    }
    return exported;
  }
  void Withdraw(uint32_t region) override { exporter_->Withdraw(region); }

 private:
  bool IsNew(const storage::DeviceMemory* device, const std::string& why) EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return std::exchange(said_[device], why) != why;
  }

  const std::unique_ptr<rdma::RdmaExporter> exporter_;
  const bool devices_;
  std::atomic<uint64_t>* const refused_;
  Mutex mu_;
  std::unordered_map<const storage::DeviceMemory*, std::string> said_ GUARDED_BY(mu_);
};

class RdmaService : public Rdma {
 public:
  ~RdmaService() override {
    for (const auto& [tenant, exporter] : exporters_) {
      tenant->pool().set_exporter(nullptr);
    }
    // Clients are gone by then: nobody is waited for.
    Stop();
  }

  Status Open(const Options& options) {
    const Config& config = *options.config;
    auto verbs = rdma::OpenVerbs();
    if (!verbs) return tl::unexpected<Error>(std::move(verbs.error()));
    auto nics = rdma::NicSet::Open(std::move(*verbs),
                                   rdma::ParseNicFilter(config.text(Key::kRdmaDevices),
                                                        config.text(Key::kRdmaExclude)));
    if (!nics) return tl::unexpected<Error>(std::move(nics.error()));
    nics_ = std::move(*nics);
    if (Status listening = Listen(options); !listening) return listening;
    for (const auto& tenant : options.tenants) {
      auto exporter = rdma::RdmaExporter::Create(
          *service_, tenant->pool().generations(),
          static_cast<uint64_t>(config.number(Key::kRdmaRegistrationMax)),
          [](const std::string& why) { Log(LogLevel::kWarning, "RDMA: not registered: {}", why); });
      if (!exporter) return tl::unexpected<Error>(std::move(exporter.error()));
      exporters_[tenant.get()] = std::make_unique<LoggedExporter>(
          std::move(*exporter), config.text(Key::kGpuRdma) != "no", &regions_refused_);
    }
    // Nothing can fail any more.
    for (const auto& tenant : options.tenants) {
      tenant->pool().set_exporter(exporters_.at(tenant.get()).get());
    }
    return {};
  }

  void Stop() override {
    if (service_ != nullptr) service_->Stop();
  }

  uint16_t port() const override { return service_->port(); }
  size_t queue_pairs_per_session() const override { return lanes_per_session_; }

  std::vector<Nic> nics() const override {
    std::vector<Nic> result;
    for (size_t i = 0; i < nics_->nics().size(); ++i) {
      const rdma::Nic& nic = nics_->nics()[i];
      Nic& told = result.emplace_back();
      told.name = nic.name();
      told.protocol = rdma::ProtocolName(nic.protocol);
      told.speed_mbps = nic.speed_mbps;
      told.addresses = nic.addresses;
      for (const rdma::GidEntry& entry : nic.gids) {
        std::string& gid = told.gids.emplace_back();
        for (size_t byte = 0; byte < entry.gid.size(); ++byte) {
          if (byte > 0 && byte % 2 == 0) gid += ':';
          gid += fmt::format("{:02x}", entry.gid[byte]);
        }
      }
      told.numa_node = nic.numa_node;
      told.up = nics_->up(i);
    }
    return result;
  }

  std::vector<std::string> left_out() const override {
    std::vector<std::string> result;
    for (const auto& left_out : nics_->left_out()) {
      result.push_back(left_out.name + ": " + left_out.why);
    }
    return result;
  }

  Counters counters() const override {
    const rdma::ServiceCounters& c = service_->counters();
    const auto of = [](const std::atomic<uint64_t>& n) { return n.load(std::memory_order_relaxed); };
    return {of(c.lanes),         of(c.accepted),   of(c.rejected),      of(c.lanes_failed),
            of(c.regions_told), of(c.bytes_read), of(c.bytes_written), of(regions_refused_)};
  }

  void BeginSession(uint64_t session, storage::Tenant& tenant) override {
    service_->BeginSession(session, exporters_.at(&tenant)->memory());
  }
  void EndSession(uint64_t session) override { service_->EndSession(session); }
  std::string NewToken(uint64_t session) override {
    return rdma::TokenText(service_->IssueToken(session));
  }

  void StartMoves(uint64_t session, Way way, std::vector<Move> moves, Done done) override {
    std::vector<rdma::BufferTransfer> batch;
    batch.reserve(moves.size());
    for (const Move& move : moves) {
      batch.push_back({session, move.buffer, move.offset, move.region, move.data, move.length,
                       way == Way::kFromClient ? rdma::Transfer::Direction::kRead
                                               : rdma::Transfer::Direction::kWrite,
                       move.on_device});
    }
    service_->Move(std::move(batch), [done = std::move(done)](std::span<const rdma::Outcome> outcomes,
                                                              const std::string& why) {
      std::vector<Moved> moved;
      for (const rdma::Outcome outcome : outcomes) {
        moved.push_back(outcome == rdma::Outcome::kDone          ? Moved::kDone
                        : outcome == rdma::Outcome::kUnreachable ? Moved::kNoQueuePair
                                                                 : Moved::kFailed);
      }
      done(moved, why);
    });
  }

 private:
  Status Listen(const Options& options) {
    const Config& config = *options.config;
    rdma::ServiceOptions service;
    service.address = config.text(Key::kRdmaAddress);
    service.port = static_cast<uint16_t>(config.number(Key::kRdmaPort));
    service.backlog = static_cast<int>(config.number(Key::kRdmaBacklog));
    service.epoch = options.epoch;
    service.engine.staging_bytes = kStagingBytes;
    service.lanes_per_session = static_cast<size_t>(config.number(Key::kRdmaQueuePairsPerSession));
    service.lanes = static_cast<size_t>(config.number(Key::kRdmaQueuePairs));
    service.withdraw_ms = kWithdrawMs;
    service.token_lifetime_ms = config.number(Key::kRdmaTokenLifetime) * 1000;
    // Refusals are counted, and anybody on the network can cause them: not at the usual level.
    service.log = [](const std::string& text) { Log(LogLevel::kVerbose, "{}", text); };
    service.on_lanes = options.on_queue_pairs;
    lanes_per_session_ = service.lanes_per_session;
    const bool iwarp =
        std::any_of(nics_->nics().begin(), nics_->nics().end(), [](const rdma::Nic& nic) {
          return nic.protocol == rdma::Protocol::kIwarp;
        });
    if (service.port == 0 && !iwarp) {
      service.port = static_cast<uint16_t>(config.number(Key::kPort));
      auto same = rdma::Service::Start(*nics_, service);
      if (same) {
        service_ = std::move(*same);
        return {};
      }
      service.port = 0;
    }
    auto started = rdma::Service::Start(*nics_, std::move(service));
    if (!started) return tl::unexpected<Error>(std::move(started.error()));
    service_ = std::move(*started);
    return {};
  }

  // The order is that of their lives.
  std::unique_ptr<rdma::NicSet> nics_;
  std::unique_ptr<rdma::Service> service_;
  std::atomic<uint64_t> regions_refused_{0};
  size_t lanes_per_session_ = 0;
  std::unordered_map<storage::Tenant*, std::unique_ptr<LoggedExporter>> exporters_;
};

}  // namespace

Result<std::unique_ptr<Rdma>> Rdma::Start(const Options& options) {
  auto service = std::make_unique<RdmaService>();
  if (Status opened = service->Open(options); !opened) {
    return tl::unexpected<Error>(std::move(opened.error()));
  }
  return service;
}

}  // namespace moonpool::server
