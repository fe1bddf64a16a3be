#include "server/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "server/attach_server.h"
#include "server/background.h"
#include "server/connection.h"
#include "server/gpus.h"
#include "server/late_writers.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/rdma.h"
#include "server/session.h"

namespace moonpool::server {

namespace {

// Descriptors the server needs for itself, besides clients.
constexpr uint64_t kOwnFds = 64;
// Those of a client on this host: its connection, its attach socket, and a pidfd of its process.
constexpr uint64_t kMostFdsOfClient = 3;

std::string FirstLine(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Equal for two processes that can reach each other's abstract sockets and memory files: one boot
// of one kernel, one network namespace.
std::string HostId() {
  char net[64] = {};
  if (readlink("/proc/self/ns/net", net, sizeof(net) - 1) < 0) std::strcpy(net, "net:[0]");
  return FirstLine("/proc/sys/kernel/random/boot_id") + "/" + net;
}

// Lets as many clients in as the system allows; says so when that is fewer than asked for.
void RaiseFileLimit(Config& config) {
  const auto asked = static_cast<uint64_t>(config.number(Key::kMaxClients));
  const rlim_t wanted = kMostFdsOfClient * asked + kOwnFds;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < wanted) {
    rlimit raised{wanted, std::max(wanted, limit.rlim_max)};
    if (setrlimit(RLIMIT_NOFILE, &raised) != 0) {
      raised = {std::min(wanted, limit.rlim_max), limit.rlim_max};
      setrlimit(RLIMIT_NOFILE, &raised);
    }
    getrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur >= asked + kOwnFds) return;
  const uint64_t clients = limit.rlim_cur > kOwnFds ? limit.rlim_cur - kOwnFds : 1;
  Log(LogLevel::kWarning, "only {} open files are allowed: maxclients is {} instead of {}",
      limit.rlim_cur, clients, asked);
  [[maybe_unused]] const Status set = config.SetAtStart("maxclients", std::to_string(clients));
}

}  // namespace

Server::Server(Config& config) : config_(config) {
  uint8_t random[20];
  MOONPOOL_CHECK(getrandom(random, sizeof(random), 0) == sizeof(random));
  for (const uint8_t byte : random) run_id_ += fmt::format("{:02x}", byte);
  // Positive as a signed number, so that every client can carry it.
  std::memcpy(&epoch_, random, sizeof(epoch_));
  epoch_ = epoch_ >> 1 | 1;
  host_id_ = HostId();
}

Server::~Server() { Stop(); }

Status Server::Start() {
  start_ms_ = std::chrono::duration_cast<std::chrono::milliseconds>(
                  std::chrono::system_clock::now().time_since_epoch())
                  .count();
  if (!config_.boolean(Key::kDumpable)) prctl(PR_SET_DUMPABLE, 0);
  RaiseFileLimit(config_);
  if (Status opened = OpenGpus(); !opened) return opened;
  if (Status created = CreateTenants(); !created) return created;
  if (Status opened = OpenSsd(); !opened) return opened;
  InstallHooks();
  placement_.set_has_cxl(default_tenant().cxl() != nullptr);
  if (gpus_ != nullptr) {
    std::vector<std::string> names;
    for (const storage::DeviceMemory* memory : gpus_->memories()) names.push_back(memory->name());
    placement_.set_devices(std::move(names));
  }
  if (Status placed = placement_.Configure(config_.text(Key::kPrefer)); !placed) return placed;

  background_ = std::make_unique<Background>();
  int64_t loops = config_.number(Key::kIoThreads);
  if (loops == 0) loops = std::max(1u, std::thread::hardware_concurrency());
  for (int i = 0; i < loops; ++i) loops_.push_back(std::make_unique<Loop>(*this, i));
  for (const auto& tenant : tenants_) {
    tenant->pool().set_on_gone([this, pool_tenant = tenant.get()](uint32_t region) {
      for (const auto& loop : loops_) {
        loop->Post([&loop = *loop, pool_tenant, region] {
          loop.ForEachConnection([&](Connection& connection) {
            if (connection.session() != nullptr && &connection.tenant() == pool_tenant) {
              connection.session()->RegionGone(region);
            }
          });
        });
      }
    });
  }
  StartRdma();
  std::vector<storage::Tenant*> tenants;
  for (const auto& tenant : tenants_) tenants.push_back(tenant.get());
  upkeep_ = std::make_unique<storage::Upkeep>(tenants);

  if (config_.boolean(Key::kShm)) {
    attach_server_ = std::make_unique<AttachServer>(*this);
    if (Status started = attach_server_->Start(config_.text(Key::kAttachSocket)); !started) {
      return started;
    }
  }
  for (const auto& loop : loops_) loop->Start();
  if (Status listening = Listen(); !listening) return listening;
  ticker_ = std::thread([this] { Tick(); });
  return {};
}

Status Server::Listen() {
  auto listener = std::make_unique<Listener>([this](UniqueFd fd, ConnectionOrigin origin) {
    Accepted(std::move(fd), std::move(origin));
  });
  const auto backlog = static_cast<int>(config_.number(Key::kTcpBacklog));
  port_ = static_cast<int>(config_.number(Key::kPort));
  bool any = false;
  if (port_ != 0) {
    std::istringstream addresses(config_.text(Key::kBind));
    for (std::string address; addresses >> address;) {
      const bool optional = address.size() > 1 && address[0] == '-';
      const auto bound = listener->AddTcp(optional ? address.substr(1) : address, port_, backlog);
      if (bound) {
        any = true;
      } else if (!optional) {
        return tl::unexpected<Error>(bound.error());
      } else {
        Log(LogLevel::kVerbose, "not listening on {}: {}", address, bound.error().message);
      }
    }
  }
  const std::string path = config_.text(Key::kUnixSocket);
  if (!path.empty()) {
    // Written in octal, read as a decimal number.
    const int64_t digits = config_.number(Key::kUnixSocketPerm);
    const auto permissions = static_cast<unsigned>(
        (digits / 100 % 10) * 64 + (digits / 10 % 10) * 8 + digits % 10);
    if (Status added = listener->AddUnix(path, permissions, backlog); !added) return added;
    any = true;
  }
  if (!any) {
    return Fail(ErrorCode::kInvalidArgument,
                "nothing to listen on: give a port and an address to bind, or a unixsocket");
  }
  listener->Start();
  listener_ = std::move(listener);
  return {};
}

void Server::Accepted(UniqueFd fd, ConnectionOrigin origin) {
  const auto refuse = [&](std::string_view why) {
    const std::string text = "-" + std::string(why) + "\r\n";
    [[maybe_unused]] const ssize_t n =
        send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    rejected_connections_.fetch_add(1, std::memory_order_relaxed);
  };
  if (clients_.size() >= static_cast<size_t>(config_.number(Key::kMaxClients))) {
    return refuse("ERR max number of clients reached");
  }
  if (!origin.loopback && config_.boolean(Key::kProtectedMode) && !password_required()) {
    return refuse(
        "DENIED Moonpool is running in protected mode because protected mode is enabled and no "
        "password is set. Clients from other hosts are refused. To let them in, set requirepass, "
        "or set protected-mode to no if the network is trusted.");
  }
  if (!origin.unix_socket) {
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    const auto unsent = static_cast<int>(config_.number(Key::kTcpUnsentLimit));
    if (unsent > 0) {
      setsockopt(fd.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
    }
    const auto keepalive = static_cast<int>(config_.number(Key::kTcpKeepalive));
    if (keepalive > 0) {
      const int interval = std::max(keepalive / 3, 1);
      const int probes = 3;
      setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
      setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE, &keepalive, sizeof(keepalive));
      setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
      setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
    }
    const std::string congestion = config_.text(Key::kLoopbackCongestion);
    if (origin.loopback && !congestion.empty()) {
      setsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, congestion.data(),
                 static_cast<socklen_t>(congestion.size()));
    }
  }
  Loop& loop = *loops_[next_loop_.fetch_add(1, std::memory_order_relaxed) % loops_.size()];
  auto shared = std::make_shared<UniqueFd>(std::move(fd));
  loop.Post([&loop, shared, origin = std::move(origin)] { loop.Adopt(std::move(*shared), origin); });
}

void Server::Tick() {
  uint64_t last = 0;
  constexpr std::chrono::milliseconds kInterval{250};
  auto last_time = std::chrono::steady_clock::now();
  for (;;) {
    {
      MutexLock lock(shutdown_mu_);
      if (!ticker_stop_) shutdown_changed_.WaitFor(shutdown_mu_, kInterval);
      if (ticker_stop_) return;
    }
    prefetch_.store(default_tenant().keyspace().Size() >=
                        static_cast<uint64_t>(config_.number(Key::kPrefetchKeys)),
                    std::memory_order_relaxed);
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_time).count();
    if (seconds < 1) continue;
    const uint64_t commands = Total(&LoopStats::commands);
    ops_per_second_.store(
        commands < last ? 0
                        : static_cast<uint64_t>(static_cast<double>(commands - last) / seconds),
        std::memory_order_relaxed);
    last = commands;
    last_time = now;
  }
}

void Server::WaitForShutdown() {
  MutexLock lock(shutdown_mu_);
  while (!shutdown_) shutdown_changed_.Wait(shutdown_mu_);
}

void Server::RequestShutdown(bool save) {
  {
    MutexLock lock(shutdown_mu_);
    if (!shutdown_) save_ = save;  // the first request counts: main sends itself a second one
    shutdown_ = true;
  }
  shutdown_changed_.NotifyAll();
}

void Server::Stop() {
  if (stopped_) return;
  stopped_ = true;
  {
    MutexLock lock(shutdown_mu_);
    ticker_stop_ = true;
  }
  shutdown_changed_.NotifyAll();
  if (ticker_.joinable()) ticker_.join();
  if (listener_) listener_->Stop();
  for (const auto& loop : loops_) {
    loop->Stop(config_.number(Key::kShutdownTimeout) * 1000);
  }
  for (const auto& loop : loops_) loop->Join();
  background_.reset();
  upkeep_.reset();
  // What it moves into the pool ends here, and is told to the loops.
  if (rdma_) rdma_->Stop();
  // The tier's threads post to the loops: they end first.
  for (const auto& tenant : tenants_) tenant->CloseMoves();
  SaveSsd();
  for (const auto& tenant : tenants_) tenant->CloseSsd();
  if (attach_server_) attach_server_->Stop();
  // What other threads posted to a loop last goes with it, before the pool it refers to.
  loops_.clear();
  attach_server_.reset();
  listener_.reset();
  late_writers_.reset();
  // A device's thread may be exporting a region yet.
  AwaitGpus();
  rdma_.reset();
  tenants_.clear();
  gpus_.reset();
}

bool Server::CheckPassword(std::string_view password) const {
  const std::string expected = config_.text(Key::kRequirePass);
  if (expected.empty()) return true;  // "default" has no password
  // The time taken must not tell how much of a guess was right.
  size_t wrong = password.size() ^ expected.size();
  for (size_t i = 0; i < password.size(); ++i) {
    wrong |= static_cast<unsigned char>(password[i] ^ expected[i % expected.size()]);
  }
  return wrong == 0;
}

void Server::AddSession(std::shared_ptr<SessionInfo> info) {
  MutexLock lock(sessions_mu_);
  sessions_.emplace(info->id, std::move(info));
}

void Server::RemoveSession(uint64_t id) {
  MutexLock lock(sessions_mu_);
  sessions_.erase(id);
}

std::vector<std::shared_ptr<SessionInfo>> Server::Sessions() const {
  std::vector<std::shared_ptr<SessionInfo>> all;
  MutexLock lock(sessions_mu_);
  for (const auto& [id, info] : sessions_) all.push_back(info);
  return all;
}

uint64_t Server::Total(Counter LoopStats::* counter) const {
  uint64_t total = 0;
  for (const auto& loop : loops_) total += (loop->stats().*counter).get();
  return total;
}

void Server::ResetStats() {
  for (const auto& loop : loops_) {
    // Counters have one writer: their own loop.
    loop->Post([&loop = *loop] { loop.stats().Reset(); });
  }
  rejected_connections_.store(0, std::memory_order_relaxed);
  for (const auto& tenant : tenants_) tenant->keyspace().ResetStats();
}

}  // namespace moonpool::server
