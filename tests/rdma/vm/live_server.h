// moonpool-server in a process of its own, and sessions with it over RESP: for tests with real devices.
//
// Threads: one at a time.
#pragma once

#include <hiredis/hiredis.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/rdma/live_pool.h"

namespace moonpool::rdma::test {

using Reply = std::unique_ptr<redisReply, decltype(&freeReplyObject)>;

// The text of a string, a status or an error; a number's digits.
inline std::string Text(const redisReply* reply) {
  if (reply == nullptr) return "(the connection is gone)";
  if (reply->type == REDIS_REPLY_INTEGER) return std::to_string(reply->integer);
  if (reply->type == REDIS_REPLY_NIL) return "(nil)";
  if (reply->type == REDIS_REPLY_ARRAY) return "(" + std::to_string(reply->elements) + " elements)";
  return {reply->str, reply->len};
}

// What stands behind `name` in a flat map; null when it is not there.
inline const redisReply* Field(const redisReply* map, std::string_view name) {
  for (size_t i = 0; map != nullptr && i + 1 < map->elements; i += 2) {
    if (Text(map->element[i]) == name) return map->element[i + 1];
  }
  return nullptr;
}

class Resp {
 public:
  explicit Resp(int port) : context_(redisConnect("127.0.0.1", port), redisFree) {
    if (context_ != nullptr) redisSetTimeout(context_.get(), {60, 0});
  }
  bool connected() const { return context_ != nullptr && context_->err == 0; }
  // Without waiting for the reply.
  void Send(const std::vector<std::string>& words) {
    std::vector<const char*> data;
    std::vector<size_t> sizes;
    for (const std::string& word : words) {
      data.push_back(word.data());
      sizes.push_back(word.size());
    }
    redisAppendCommandArgv(context_.get(), static_cast<int>(words.size()), data.data(), sizes.data());
    for (int done = 0; done == 0 && redisBufferWrite(context_.get(), &done) == REDIS_OK;) {
    }
  }
  Reply Take() {
    void* reply = nullptr;
    redisGetReply(context_.get(), &reply);
    return {static_cast<redisReply*>(reply), freeReplyObject};
  }
  Reply Do(const std::vector<std::string>& words) {
    Send(words);
    return Take();
  }
  // INFO's rows of one section.
  std::map<std::string, std::string> Info(const std::string& section) {
    const std::string text = Text(Do({"INFO", section}).get());
    std::map<std::string, std::string> rows;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find("\r\n", at), text.size());
      const std::string row = text.substr(at, end - at);
      const size_t colon = row.find(':');
      if (colon != std::string::npos) rows[row.substr(0, colon)] = row.substr(colon + 1);
      at = end + 2;
    }
    return rows;
  }
  uint64_t Number(const std::string& section, const std::string& row) {
    return std::stoull("0" + Info(section)[row]);
  }

 private:
  std::unique_ptr<redisContext, decltype(&redisFree)> context_;
};

// Waits for something that another process brings about; false when that takes more than 60 s.
template <typename Condition>
bool Eventually(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    usleep(5000);
  }
  return true;
}

class LiveServer {
 public:
  explicit LiveServer(std::vector<std::string> flags = {}) {
    static int next_port = 7400;
    port_ = next_port++;
    const auto self = std::filesystem::read_symlink("/proc/self/exe");
    std::vector<std::string> words{self.parent_path().parent_path() / "server" / "moonpool-server",
                                   "--port", std::to_string(port_), "--maxmemory", "192mb",
                                   "--region-size", "32mb", "--rdma", "yes", "--io-threads", "2",
                                   "--logfile", "server-" + std::to_string(port_) + ".log"};
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    child_ = fork();
    if (child_ == 0) {
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    EXPECT_TRUE(Eventually([&] { return Resp(port_).connected(); })) << "the server did not start";
    resp_ = std::make_unique<Resp>(port_);
    EXPECT_EQ(resp_->Info("rdma")["rdma"], "on") << resp_->Info("rdma")["rdma_reason"];
  }
  ~LiveServer() {
    if (child_ > 0) {
      EXPECT_EQ(Stop(), 0);
    }
  }

  int port() const { return port_; }
  Resp& resp() { return *resp_; }
  void Kill() { Stop(SIGKILL); }
  // Its exit status; -1 when a signal ended it.
  int Stop(int signal = SIGTERM) {
    kill(child_, signal);
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  // Stores a large value with bytes of `value`; every region is registered afterwards.
  void Put(const std::string& key, uint64_t bytes, uint64_t value) {
    std::string data(bytes, 0);
    FillKnown(data.data(), bytes, value);
    EXPECT_EQ(Text(resp_->Do({"SET", key, data}).get()), "OK");
    EXPECT_TRUE(Eventually([&] {
      auto info = resp_->Info("rdma");
      return info["rdma_unregistered_regions"] == "0" && info["rdma_registered_regions"] != "0";
    }));
  }

 private:
  int port_ = 0;
  pid_t child_ = 0;
  std::unique_ptr<Resp> resp_;
};

// A KV session with its queue pairs.
class LiveSession {
 public:
  LiveSession(NicSet& nics, int port) : nics_(nics), resp_(port) { Hello(); }

  void Hello() {
    const Reply hello = resp_.Do({"KV.HELLO", "1", "TRANSPORTS", "1", "rdma"});
    target_ = {};
    target_.epoch = std::stoull(Text(Field(hello.get(), "epoch")));
    target_.session = std::stoull(Text(Field(hello.get(), "session")));
    const redisReply* const transports = Field(hello.get(), "transports");
    ASSERT_NE(transports, nullptr);
    ASSERT_EQ(transports->elements, 2u);
    const redisReply* const rdma = transports->element[0];
    ASSERT_EQ(Text(Field(rdma, "name")), "rdma");
    target_.port = static_cast<uint16_t>(std::stoul(Text(Field(rdma, "port"))));
    first_token_ = ParseToken(Text(Field(rdma, "token")));
    const redisReply* const told = Field(rdma, "nics");
    for (size_t i = 0; i < told->elements; ++i) {
      RemoteNic nic;
      nic.name = Text(Field(told->element[i], "name"));
      nic.speed_mbps = std::stoull(Text(Field(told->element[i], "speed_mbps")));
      const redisReply* const addresses = Field(told->element[i], "addresses");
      for (size_t a = 0; a < addresses->elements; ++a) {
        nic.addresses.push_back(Text(addresses->element[a]));
      }
      for (const Protocol protocol : {Protocol::kInfiniBand, Protocol::kRoceV1, Protocol::kRoceV2,
                                      Protocol::kIwarp}) {
        if (Text(Field(told->element[i], "protocol")) == ProtocolName(protocol)) {
          nic.protocol = protocol;
        }
      }
      target_.nics.push_back(nic);
    }
  }
  Result<Token> NewToken() {
    if (first_token_) return *std::exchange(first_token_, std::nullopt);
    const Reply reply = resp_.Do({"KV.TOKEN"});
    const auto token = reply != nullptr && reply->type == REDIS_REPLY_ARRAY
                           ? ParseToken(Text(reply->element[0]))
                           : std::nullopt;
    if (!token) return Fail(ErrorCode::kPermissionDenied, Text(reply.get()));
    return *token;
  }
  // A new client end; the one before is closed.
  Status Open() {
    client_ = nullptr;
    client_ = std::make_unique<LiveClient>(nics_, target_, [this] { return NewToken(); });
    return client_->endpoint().Open();
  }
  void Close() { client_ = nullptr; }
  // Ends the RESP connection.
  void HangUp() { resp_ = Resp(0); }

  Resp& resp() { return resp_; }
  const EndpointTarget& target() const { return target_; }
  LiveClient& client() { return *client_; }
  // Where the value is, if it is a large one.
  std::optional<LiveClient::Want> Locate(const std::string& key) {
    const Reply reply = resp_.Do({"KV.LOCATE", "1", key});
    if (reply == nullptr || reply->elements != 1 || reply->element[0]->elements < 5) return {};
    const auto number = [&](size_t i) {
      return static_cast<uint64_t>(reply->element[0]->element[i]->integer);
    };
    LiveClient::Want want;
    want.region = static_cast<uint32_t>(number(0));
    want.offset = number(1);
    want.length = number(2);
    want.slot = static_cast<uint32_t>(number(3));
    want.generation = number(4);
    return want;
  }
  Outcome Read(const LiveClient::Want& want, char* to) {
    LiveClient::Want there = want;
    there.to = to;
    return client_->Read({there})[0];
  }

 private:
  NicSet& nics_;
  Resp resp_;
  EndpointTarget target_;
  std::optional<Token> first_token_;
  std::unique_ptr<LiveClient> client_;
};

}  // namespace moonpool::rdma::test
