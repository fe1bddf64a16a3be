// The server: what belongs together for as long as the process runs.
//
//   main -> Server::Start -> listeners, loops, upkeep, attach server
//        -> Server::WaitForShutdown -> Stop: listeners first, then loops (drained), then the rest
//
// Threads: Start and Stop the main thread; the accessors any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "server/client_info.h"
#include "server/config.h"
#include "server/counter.h"
#include "server/loop.h"
#include "server/placement.h"
#include "storage/tenant.h"
#include "storage/upkeep.h"

namespace moonpool::gpu {
class Device;
}

namespace moonpool::server {

class AttachServer;
class Background;
class Gpus;
class LateWriters;
class Listener;
class Rdma;
struct SessionInfo;

class Server {
 public:
  explicit Server(Config& config);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Before Start(): another file system under the SSD tier, which outlives the server.
  void set_ssd_env(rocksdb::Env* env) { ssd_env_ = env; }
  // Likewise: other devices in place of the machine's GPUs.
  void set_gpus(std::vector<gpu::Device*> devices) { given_gpus_ = std::move(devices); }
  // Likewise: what Stop() calls when all that can be saved is, but a thread is within the driver of a
  // GPU that does not answer.  Stop() goes on, and so waits for it, when this returns.
  void set_on_silent_gpu(std::function<void()> call) { on_silent_gpu_ = std::move(call); }
  // Likewise: another way to the process at the other end of an attach socket; see LateWriters.
  void set_peer_process(std::function<Result<UniqueFd>(int socket)> find) {
    peer_process_ = std::move(find);
  }
  // Everything up to answering clients.  The error says what to change.
  Status Start();
  // Returns when somebody called RequestShutdown (SIGTERM, SIGINT, SHUTDOWN).
  void WaitForShutdown();
  // `save`: what only memory has is written to the SSD tier, if there is one.
  void RequestShutdown(bool save = true);
  // Drains and stops.  Idempotent.
  void Stop();

  Config& config() { return config_; }
  ClientRegistry& clients() { return clients_; }
  storage::Tenant& default_tenant() { return *tenants_.front(); }
  const std::vector<std::unique_ptr<storage::Tenant>>& tenants() const { return tenants_; }
  const std::vector<std::unique_ptr<Loop>>& loops() const { return loops_; }
  const Placement& placement() const { return placement_; }
  Background& background() { return *background_; }
  // Null when shared memory is switched off.
  AttachServer* attach_server() { return attach_server_.get(); }
  // Null when there is no RDMA; rdma_off() says why.
  Rdma* rdma() { return rdma_.get(); }
  const std::string& rdma_off() const { return rdma_off_; }
  // Null when no GPU is used; gpu_off() says why.
  Gpus* gpus() { return gpus_.get(); }
  const std::string& gpu_off() const { return gpu_off_; }
  // Null when gpus() is.
  LateWriters* late_writers() const { return late_writers_.get(); }

  bool password_required() const { return password_required_.load(std::memory_order_relaxed); }
  bool CheckPassword(std::string_view password) const;
  // The keyspace is too large for the processor's caches.
  bool prefetch() const { return prefetch_.load(std::memory_order_relaxed); }

  // A new session's number, never used twice.
  uint64_t NextSessionId() { return next_session_.fetch_add(1, std::memory_order_relaxed); }
  void AddSession(std::shared_ptr<SessionInfo> info);
  void RemoveSession(uint64_t id);
  std::vector<std::shared_ptr<SessionInfo>> Sessions() const;
  // 40 hexadecimal digits, new with every start.
  const std::string& run_id() const { return run_id_; }
  uint64_t epoch() const { return epoch_; }
  // Names this host as long as it is up; equal on both sides of a shared-memory path.
  const std::string& host_id() const { return host_id_; }
  int64_t start_ms() const { return start_ms_; }
  int port() const { return port_; }

  // Sum over the loops.
  uint64_t Total(Counter LoopStats::* counter) const;
  void ResetStats();
  uint64_t rejected_connections() const {
    return rejected_connections_.load(std::memory_order_relaxed);
  }
  uint64_t ops_per_second() const { return ops_per_second_.load(std::memory_order_relaxed); }

  // A new connection, from a listener.  Any thread.
  void Accepted(UniqueFd fd, ConnectionOrigin origin);

 private:
  Status OpenGpus();  // server_gpu.cc
  void AwaitGpus();
  Status CreateTenants();
  Status OpenSsd();
  void SaveSsd();
  Status Listen();
  void StartRdma();  // server_rdma.cc
  void InstallHooks();
  // Keeps what is derived from counters now and then.
  void Tick();

  Config& config_;
  rocksdb::Env* ssd_env_ = nullptr;
  std::vector<gpu::Device*> given_gpus_;
  std::function<void()> on_silent_gpu_;
  std::function<Result<UniqueFd>(int)> peer_process_;
  ClientRegistry clients_;
  Placement placement_;
  std::unique_ptr<Gpus> gpus_;  // behind the tenants' memory
  std::string gpu_off_;
  std::vector<std::unique_ptr<storage::Tenant>> tenants_;
  std::unique_ptr<LateWriters> late_writers_;  // likewise, and behind the loops
  std::unique_ptr<Rdma> rdma_;  // before the tenants' memory
  std::string rdma_off_;
  std::unique_ptr<Background> background_;
  std::unique_ptr<storage::Upkeep> upkeep_;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::unique_ptr<AttachServer> attach_server_;
  std::unique_ptr<Listener> listener_;
  std::thread ticker_;

  std::atomic<bool> password_required_{false};
  std::atomic<bool> prefetch_{false};
  std::atomic<uint64_t> next_session_{1};
  mutable Mutex sessions_mu_;
  std::map<uint64_t, std::shared_ptr<SessionInfo>> sessions_ GUARDED_BY(sessions_mu_);
  std::atomic<uint64_t> next_loop_{0};
  std::atomic<uint64_t> rejected_connections_{0};
  std::atomic<uint64_t> ops_per_second_{0};
  std::string run_id_;
  uint64_t epoch_ = 0;
  std::string host_id_;
  int64_t start_ms_ = 0;
  int port_ = 0;
  bool stopped_ = false;

  Mutex shutdown_mu_;
  CondVar shutdown_changed_;
  bool save_ GUARDED_BY(shutdown_mu_) = true;
  bool shutdown_ GUARDED_BY(shutdown_mu_) = false;
  bool ticker_stop_ GUARDED_BY(shutdown_mu_) = false;
};

}  // namespace moonpool::server
