// A moonpool-server of this build, and clients of it over RDMA.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/moonpool/client.h"
#include "tests/client/one_value.h"
#include "tools/bench/process.h"
#include "tools/bench/redis_connection.h"
#include "tools/bench/test_server.h"

namespace moonpool::client::test {

using Clock = std::chrono::steady_clock;

// Polls until condition() holds; false when it does not within 60 s.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto end = Clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

class ServerProcess {
 public:
  explicit ServerProcess(std::vector<std::string> flags = {})
      : port_(bench::FreePort()), flags_(std::move(flags)) {
    Start();
  }
  // On the port of before.
  void Start() {
    std::vector<std::string> command = {bench::FindMoonpoolServer(""),
                                        "--port",
                                        std::to_string(port_),
                                        "--bind",
                                        "127.0.0.1",
                                        "--maxmemory",
                                        "700mb"};
    command.insert(command.end(), flags_.begin(), flags_.end());
    process_ = std::make_unique<bench::ChildProcess>(command);
    ASSERT_TRUE(Eventually(
        [&] { return !process_->running() || bench::RedisConnection::CanConnect(port_); }));
    ASSERT_TRUE(process_->running()) << process_->Output();
  }
  void Signal(int number) { kill(process_->pid(), number); }
  void Kill() {
    Signal(SIGKILL);
    process_ = nullptr;
  }
  int port() const { return port_; }
  pid_t pid() const { return process_->pid(); }
  std::string Output() const { return process_->Output(); }
  std::string Url(const std::string& options = "") const {
    return "moonpool://127.0.0.1:" + std::to_string(port_) + "?transport=rdma" +
           (options.empty() ? "" : "&" + options);
  }
  std::unique_ptr<Client> Connect(const std::string& options = "") {
    std::unique_ptr<Client> client;
    const Status status = Client::Connect(Url(options), {}, &client);
    EXPECT_TRUE(status.ok()) << status.message << "\n" << Output();
    return client;
  }

 private:
  const int port_;
  const std::vector<std::string> flags_;
  std::unique_ptr<bench::ChildProcess> process_;
};

// One number of KV.STATS.
inline int64_t ServerStat(Client& client, const std::string& name) {
  std::string text;
  const std::string_view word = "KV.STATS";
  EXPECT_TRUE(client.Command(std::span(&word, 1), &text).ok());
  const size_t at = ("\n" + text).find("\n" + name + "\n");
  if (at == std::string::npos) return -1;
  return std::stoll(text.substr(at + name.size() + 1));
}

// Memory for values, faulted in.
class Block {
 public:
  explicit Block(size_t bytes) : bytes_(bytes, '\0') {}
  char* data() { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }

 private:
  std::vector<char> bytes_;
};

// Bytes that tell the value they are of, at any length.
inline void FillBytes(char* to, size_t bytes, uint64_t seed) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes; ++i) {
    if (i % 8 == 0) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
    }
    to[i] = static_cast<char>(x >> (i % 8 * 8));
  }
}
inline bool AreBytes(const char* from, size_t bytes, uint64_t seed) {
  std::vector<char> wanted(bytes);
  FillBytes(wanted.data(), bytes, seed);
  return std::equal(wanted.begin(), wanted.end(), from);
}

}  // namespace moonpool::client::test
