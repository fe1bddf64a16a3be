#include "tools/bench/test_server.h"

#include <signal.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

constexpr double kStartSeconds = 60;
constexpr int kStartAttempts = 5;
// The pool counts as populated when nothing has changed for so long.
constexpr double kSteadySeconds = 0.2;
constexpr double kPopulateSeconds = 120;

template <typename Start>
std::unique_ptr<TestServer> Retry(Start&& start) {
  // Somebody may take the port between our look and the server's.
  for (int attempt = 1;; ++attempt) {
    try {
      return start(FreePort());
    } catch (const Failure& failure) {
      const std::string_view what = failure.what();
      if (attempt == kStartAttempts || what.find("already in use") == std::string_view::npos) {
        throw;
      }
    }
  }
}

}  // namespace

TestServer::TestServer(const std::vector<std::string>& command, int port)
    : port_(port) {
  const Stopwatch waited;
  process_ = std::make_unique<ChildProcess>(command);
  while (!RedisConnection::CanConnect(port)) {
    if (!process_->running() || waited.seconds() > kStartSeconds) {
      throw Failure(command[0] + " does not start:\n" + process_->Output());
    }
    usleep(1000);
  }
  control_ = std::make_unique<RedisConnection>(port);
  control_->Expect({"PING"});
  start_seconds_ = waited.seconds();
}

std::unique_ptr<TestServer> TestServer::StartMoonpool(const std::string& path,
                                                      const std::vector<std::string>& flags) {
  return Retry([&](int port) {
    std::vector<std::string> command = {path,     "--port",     std::to_string(port),
                                        "--bind", "127.0.0.1", "--loglevel",
                                        "warning"};
    command.insert(command.end(), flags.begin(), flags.end());
    std::unique_ptr<TestServer> server(new TestServer(command, port));
    server->version_ = InfoField(server->control().Info("server"), "moonpool_version");
    if (server->version_.empty()) throw Failure(path + " is no moonpool-server");
    return server;
  });
}

std::unique_ptr<TestServer> TestServer::StartRedis(const std::vector<std::string>& flags) {
  if (FindInPath("redis-server").empty()) {
    throw Failure(
        "redis-server is not in PATH; it is what Moonpool is compared with.  Install it with "
        "'apt-get install redis-server' or 'dnf install redis' (tools/install-deps --tests "
        "does), then run this again");
  }
  return Retry([&](int port) {
    std::vector<std::string> command = {"redis-server", "--port",       std::to_string(port),
                                        "--bind",       "127.0.0.1",    "--save",
                                        "",             "--appendonly", "no",
                                        "--dir",        "/tmp"};
    command.insert(command.end(), flags.begin(), flags.end());
    std::unique_ptr<TestServer> server(new TestServer(command, port));
    server->version_ = InfoField(server->control().Info("server"), "redis_version");
    return server;
  });
}

std::string TestServer::url(const std::string& options) const {
  return "moonpool://127.0.0.1:" + std::to_string(port_) + (options.empty() ? "" : "?" + options);
}

void TestServer::WaitUntilPopulated() {
  const Stopwatch waited;
  Stopwatch steady;
  int64_t last = -1;
  while (steady.seconds() < kSteadySeconds && waited.seconds() < kPopulateSeconds) {
    const int64_t populated = control_->InfoNumber("pool", "pool_populated_bytes");
    if (populated != last) steady.Restart();
    last = populated;
    usleep(10000);
  }
}

void TestServer::RemoveAllKeys() { control_->Expect({"FLUSHALL"}); }

double TestServer::StopCleanly(double most_seconds) {
  const Stopwatch watch;
  kill(process_->pid(), SIGTERM);
  while (process_->running()) {
    if (watch.seconds() > most_seconds) throw Failure("a server does not stop");
    usleep(1000);
  }
  return watch.seconds();
}

std::string FindMoonpoolServer(const std::string& given) {
  if (!given.empty()) {
    if (access(given.c_str(), X_OK) != 0) {
      throw Failure("--server: " + given + " is not a program that can be run");
    }
    return given;
  }
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) > 0) {
    const std::string path = self;
    const std::string folder = path.substr(0, path.rfind('/'));
    for (const char* place : {"/../server/moonpool-server", "/../../server/moonpool-server",
                              "/moonpool-server"}) {
      if (access((folder + place).c_str(), X_OK) == 0) return folder + place;
    }
  }
  const std::string found = FindInPath("moonpool-server");
  if (found.empty()) {
    throw Failure("moonpool-server is neither beside moonpool-bench nor in PATH; give --server");
  }
  return found;
}

}  // namespace moonpool::bench
