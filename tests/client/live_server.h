// A server inside the test process, so that sanitizers see both sides.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "client/moonpool/client.h"
#include "protocol/unique_fd.h"
#include "server/config.h"
#include "server/log.h"
#include "server/server.h"

namespace moonpool {

// A port nobody listens on, below those that the kernel gives to outgoing connections; those from
// 26000 on are of tests/e2e, which runs beside these.
inline int FreePort() {
  std::random_device random;
  for (;;) {
    const auto port = static_cast<uint16_t>(20000 + random() % 6000);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return port;
  }
}

// Polls until condition() holds; false when it never does.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(180);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

class LiveServer {
 public:
  using Settings = std::initializer_list<std::pair<const char*, const char*>>;

  // `ssd_env`: the file system of the SSD tier; nullptr: the real one.  `gpus`: in place of the
  // machine's, if there are any.  `peer_process`: Server::set_peer_process().
  explicit LiveServer(Settings settings = {}, int port = 0, rocksdb::Env* ssd_env = nullptr,
                      std::vector<gpu::Device*> gpus = {},
                      std::function<Result<UniqueFd>(int)> peer_process = nullptr)
      : port_(port != 0 ? port : FreePort()) {
    server::SetLogLevel(server::LogLevel::kWarning);
    Set("port", std::to_string(port_).c_str());
    Set("bind", "127.0.0.1");
    Set("maxmemory", "256mb");
    Set("io-threads", "2");
    Set("dumpable", "yes");  // the leak sanitizer looks at its own process
    Set("memory-wait", "60000");  // sanitizer builds on a busy machine are slow
    Set("attach-timeout", "60");
    for (const auto& [key, value] : settings) Set(key, value);
    for (int tries = 0;; ++tries) {
      server_ = std::make_unique<server::Server>(config_);
      server_->set_ssd_env(ssd_env);
      server_->set_gpus(gpus);
      server_->set_peer_process(peer_process);
      const Status started = server_->Start();
      // Somebody else's by now: other tests run beside these.
      if (port == 0 && tries < 10 && !started &&
          started.error().message.find("Address already in use") != std::string::npos) {
        port_ = FreePort();
        Set("port", std::to_string(port_).c_str());
        continue;
      }
      EXPECT_TRUE(started) << started.error().message;
      return;
    }
  }
  ~LiveServer() {
    if (server_ != nullptr) Stop();
  }

  void Stop() {
    server_->Stop();
    server_.reset();
  }

  int port() const { return port_; }
  std::string Url(const std::string& options = "") const {
    return "moonpool://127.0.0.1:" + std::to_string(port_) +
           "?timeout_ms=180000&connect_timeout_ms=60000" + (options.empty() ? "" : "&" + options);
  }
  server::Server& server() { return *server_; }
  server::Config& config() { return config_; }
  storage::Tenant& tenant() { return server_->default_tenant(); }

  std::unique_ptr<client::Client> Connect(const std::string& options = "") {
    std::unique_ptr<client::Client> client;
    const client::Status status = client::Client::Connect(Url(options), {}, &client);
    EXPECT_TRUE(status.ok()) << status.message;
    return client;
  }

 private:
  void Set(const char* key, const char* value) {
    const Status set = config_.SetAtStart(key, value);
    EXPECT_TRUE(set) << set.error().message;
  }

  int port_;
  server::Config config_;
  std::unique_ptr<server::Server> server_;
};

}  // namespace moonpool
