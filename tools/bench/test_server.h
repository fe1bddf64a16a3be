// A server that a benchmark starts for itself on a free port of this host, and stops.
//
// Threads: one at a time, except port(), url() and CpuSeconds().
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/bench/process.h"
#include "tools/bench/redis_connection.h"

namespace moonpool::bench {

class TestServer {
 public:
  // `flags` follow those every run needs ("--port" and so on).  Throw Failure with what the
  // server printed when it does not start.
  static std::unique_ptr<TestServer> StartMoonpool(const std::string& path,
                                                   const std::vector<std::string>& flags);
  // redis-server out of PATH, with nothing changed but that it writes no files.
  static std::unique_ptr<TestServer> StartRedis(const std::vector<std::string>& flags = {});

  int port() const { return port_; }
  pid_t pid() const { return process_->pid(); }
  // For libmoonpool.  `options` are appended: "transport=shm&connections=1".
  std::string url(const std::string& options = "") const;
  double CpuSeconds() const { return ProcessorSeconds(process_->pid()); }
  RedisConnection& control() { return *control_; }
  const std::string& version() const { return version_; }
  // From exec to the first reply.
  double start_seconds() const { return start_seconds_; }

  // Moonpool faults its pool in from a background thread: waits until that has nothing to do.
  void WaitUntilPopulated();
  void RemoveAllKeys();
  // As an administrator would, so that the server can write what it keeps.  How long it took;
  // throws Failure when it takes longer.  Nothing else may be called then.
  double StopCleanly(double most_seconds);

 private:
  TestServer(const std::vector<std::string>& command, int port);

  std::unique_ptr<ChildProcess> process_;
  int port_;
  std::unique_ptr<RedisConnection> control_;
  std::string version_;
  double start_seconds_ = 0;
};

// Where moonpool-server is: `given` if not empty, else beside this program in the build folder or
// where both are installed, else in PATH.  Throws Failure.
std::string FindMoonpoolServer(const std::string& given);

}  // namespace moonpool::bench
