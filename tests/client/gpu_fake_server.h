// A server that speaks just enough to have values in a device's memory, as it is told: one region,
// one generation table, and a record of what the client said.
//
// Threads: any.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/device.h"
#include "gpu/host_memory.h"
#include "protocol/attach_wire.h"
#include "protocol/crc32c.h"
#include "protocol/mutex.h"
#include "protocol/seqlock.h"
#include "protocol/unique_fd.h"

namespace moonpool::client {

class FakeGpuServer {
 public:
  static constexpr uint32_t kRegion = 5;
  static constexpr uint64_t kRegionBytes = 16 << 20;

  // The region is in memory of `device`.
  explicit FakeGpuServer(gpu::Device& device)
      : region_(*device.Allocate(kRegionBytes, gpu::HandleKind::kPosixFd)),
        generations_(*gpu::FileMapping::Create(4096, false)) {
    std::memset(region_->data(), 0x5a, kRegionBytes);
    listener_.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_.get(), 16), 0);
    getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    attach_name_ = "@moonpool-fake-" + std::to_string(getpid()) + "-" + std::to_string(port_);
    sockaddr_un where{};
    where.sun_family = AF_UNIX;
    std::memcpy(where.sun_path, attach_name_.data(), attach_name_.size());
    where.sun_path[0] = '\0';
    attach_listener_.Reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(attach_listener_.get(), reinterpret_cast<sockaddr*>(&where),
                   static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + attach_name_.size())),
              0);
    EXPECT_EQ(listen(attach_listener_.get(), 16), 0);
    threads_.emplace_back([this] { Accept(listener_.get(), &FakeGpuServer::Talk); });
    threads_.emplace_back([this] { Accept(attach_listener_.get(), &FakeGpuServer::TalkAttach); });
  }

  ~FakeGpuServer() {
    stop_ = true;
    std::vector<std::thread> threads;
    for (;;) {
      {
        MutexLock lock(mu_);
        threads.swap(threads_);
      }
      if (threads.empty()) return;
      for (std::thread& thread : threads) thread.join();
      threads.clear();
    }
  }

  std::string Url(const std::string& options = "") const {
    return "moonpool://127.0.0.1:" + std::to_string(port_) +
           "?timeout_ms=180000&connect_timeout_ms=60000&transport=shm" + options;
  }

  // A committed value, in the region and (for GET) over RESP.
  void Put(const std::string& key, const std::string& bytes) {
    MutexLock lock(mu_);
    Value& value = values_[key];
    value = {used_, bytes.size(), next_slot_++, protocol::Crc32c(0, bytes.data(), bytes.size()),
             bytes};
    std::memcpy(region_->data() + used_, bytes.data(), bytes.size());
    used_ += (bytes.size() + 4095) / 4096 * 4096;
  }
  // As if its extent had been given to somebody else.
  void Recycle(const std::string& key) {
    MutexLock lock(mu_);
    const Value& value = values_[key];
    protocol::BumpGeneration(Counter(value.slot));
    std::memset(region_->data() + value.offset, 0xee, value.length);
  }
  void Move(const std::string& key, uint64_t offset) {
    MutexLock lock(mu_);
    values_[key].offset = offset;
  }
  // What is committed under the key, as it was in the region at KV.COMMIT.
  std::optional<std::string> Committed(const std::string& key) {
    MutexLock lock(mu_);
    const auto found = values_.find(key);
    if (found == values_.end()) return std::nullopt;
    return found->second.bytes;
  }

  void SayGone() {
    MutexLock lock(mu_);
    protocol::AttachMessage gone;
    gone.type = protocol::AttachMessage::kGone;
    gone.region = kRegion;
    for (const int fd : attached_) (void)protocol::SendAttachMessage(fd, gone);
  }

  // As a server that has ended the sessions, and waits to hear that no device writes for them.
  void EndAttachments() {
    MutexLock lock(mu_);
    for (const int fd : attached_) shutdown(fd, SHUT_WR);
  }

  // How often the client said a word first: a command's name, or "want", "unmapped" and "done".
  int Heard(const std::string& word) {
    MutexLock lock(mu_);
    return heard_[word];
  }
  std::string last_hello() {
    MutexLock lock(mu_);
    return last_hello_;
  }
  std::string last_alloc() {
    MutexLock lock(mu_);
    return last_alloc_;
  }
  // That are open, over RESP.
  int connections() const { return connections_; }
  std::atomic<bool> knows_devices{true};

 private:
  struct Value {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t slot = 0;
    uint32_t crc = 0;
    std::string bytes;
  };

  protocol::GenerationCounter& Counter(uint32_t slot) {
    return reinterpret_cast<protocol::GenerationCounter*>(generations_.data())[slot];
  }

  // Until the fd can be read; false when the test is over.
  bool Wait(int fd) {
    while (!stop_) {
      pollfd one{fd, POLLIN, 0};
      if (poll(&one, 1, 20) > 0) return true;
    }
    return false;
  }

  void Accept(int listener, void (FakeGpuServer::*talk)(UniqueFd)) {
    while (Wait(listener)) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      MutexLock lock(mu_);
      threads_.emplace_back([this, talk, fd] { (this->*talk)(UniqueFd(fd)); });
    }
  }

  // --- RESP
  bool Read(int fd, std::string* in, size_t bytes) {
    while (in->size() < bytes) {
      if (!Wait(fd)) return false;
      char some[65536];
      const ssize_t n = read(fd, some, sizeof(some));
      if (n <= 0) return false;
      in->append(some, static_cast<size_t>(n));
    }
    return true;
  }
  bool Line(int fd, std::string* in, std::string* line) {
    size_t end;
    while ((end = in->find("\r\n")) == std::string::npos) {
      if (!Read(fd, in, in->size() + 1)) return false;
    }
    *line = in->substr(0, end);
    in->erase(0, end + 2);
    return true;
  }

  void Talk(UniqueFd fd) {
    ++connections_;
    Converse(fd.get());
    --connections_;
  }
  void Converse(int socket) {
    std::string in, line;
    while (Line(socket, &in, &line)) {
      std::vector<std::string> words(std::stoul(line.substr(1)));
      for (std::string& word : words) {
        if (!Line(socket, &in, &line)) return;
        const size_t bytes = std::stoul(line.substr(1));
        if (!Read(socket, &in, bytes + 2)) return;
        word = in.substr(0, bytes);
        in.erase(0, bytes + 2);
      }
      std::string out;
      {
        MutexLock lock(mu_);
        ++heard_[words[0]];
        out = Answer(words);
      }
      for (size_t sent = 0; sent < out.size();) {
        const ssize_t n = send(socket, out.data() + sent, out.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) return;
        sent += static_cast<size_t>(n);
      }
    }
  }

  static std::string Bulk(const std::string& text) {
    return "$" + std::to_string(text.size()) + "\r\n" + text + "\r\n";
  }
  static std::string Number(uint64_t number) { return ":" + std::to_string(number) + "\r\n"; }
  static std::string Array(size_t count) { return "*" + std::to_string(count) + "\r\n"; }

  std::string Answer(const std::vector<std::string>& words) REQUIRES(mu_) {
    const std::string& name = words[0];
    if (name == "KV.HELLO") return Hello(words);
    if (name == "SET") {
      values_[words[1]].bytes = words[2];
      return "+OK\r\n";
    }
    if (name == "GET") {
      const auto found = values_.find(words[1]);
      return found == values_.end() ? "$-1\r\n" : Bulk(found->second.bytes);
    }
    const size_t count = words.size() > 1 ? std::stoul(words[1]) : 0;
    std::string out = Array(count);
    if (name == "KV.ALLOC") {
      last_alloc_.clear();
      for (const std::string& word : words) last_alloc_ += word + " ";
    }
    for (size_t i = 0; i < count; ++i) {
      if (name == "KV.LOCATE") {
        out += Descriptor(words[2 + i]);
      } else if (name == "KV.ALLOC") {
        const uint64_t bytes = std::stoul(words[3 + 2 * i]);
        const uint64_t token = ++tokens_;
        reserved_[token] = {used_, bytes, next_slot_++, 0, ""};
        out += Array(4) + Number(token) + Number(kRegion) + Number(used_) + Number(bytes);
        used_ += (bytes + 4095) / 4096 * 4096;
      } else if (name == "KV.COMMIT") {
        Value value = reserved_[std::stoul(words[3 + 3 * i])];
        value.bytes.assign(region_->data() + value.offset, value.length);
        value.crc = protocol::Crc32c(0, value.bytes.data(), value.length);
        if (words[4 + 3 * i] != "-" && std::stoul(words[4 + 3 * i]) != value.crc) value.crc = 0;
        values_[words[2 + 3 * i]] = value;
        out += "+OK\r\n";
      } else {
        out += Number(1);  // KV.RELEASE, KV.ABORT
      }
    }
    return out;
  }

  std::string Descriptor(const std::string& key) REQUIRES(mu_) {
    const auto found = values_.find(key);
    if (found == values_.end()) return "$-1\r\n";
    const Value& value = found->second;
    if (value.length == 0) return Bulk(value.bytes);
    return Array(9) + Number(kRegion) + Number(value.offset) + Number(value.length) +
           Number(value.slot) + Number(protocol::LoadGeneration(Counter(value.slot))) +
           Number(value.crc) + "+gpu\r\n" + Number(++leases_) + Number(1000);
  }

  std::string Hello(const std::vector<std::string>& words) REQUIRES(mu_) {
    const bool wants_cuda = std::find(words.begin(), words.end(), "cuda") != words.end();
    if (wants_cuda && !knows_devices) return "-ERR syntax error\r\n";
    last_hello_.clear();
    for (const std::string& word : words) last_hello_ += word + " ";
    const std::string token(32, 'a');
    const std::string attach = Bulk("attach") + Bulk(attach_name_) + Bulk("token") + Bulk(token);
    std::string out = Array(8) + Bulk("epoch") + Number(7) + Bulk("session") + Number(1) +
                      Bulk("limits") + Array(4) + Bulk("bulk-threshold") + Number(65536) +
                      Bulk("max-batch-keys") + Number(1024) + Bulk("transports");
    out += Array(wants_cuda ? 3 : 2) + Array(6) + Bulk("name") + Bulk("shm") + attach;
    if (wants_cuda) {
      out += Array(8) + Bulk("name") + Bulk("cuda") + attach + Bulk("devices") + Array(1) +
             Bulk(region_->device().ToString());
    }
    return out + Array(2) + Bulk("name") + Bulk("tcp");
  }

  // --- the attach socket
  void TalkAttach(UniqueFd fd) {
    using protocol::AttachMessage;
    while (Wait(fd.get())) {
      auto received = protocol::ReceiveAttachMessage(fd.get());
      if (!received) break;
      AttachMessage answer;
      MutexLock lock(mu_);
      if (received->message.type == AttachMessage::kHello) {
        answer.type = AttachMessage::kWelcome;
        answer.epoch = 7;
        answer.bytes = generations_.bytes();
        EXPECT_TRUE(protocol::SendAttachMessage(fd.get(), answer, generations_.fd()));
        attached_.push_back(fd.get());
      } else if (received->message.type == AttachMessage::kWant) {
        ++heard_["want"];
        const auto exported = region_->Export();
        answer.type = AttachMessage::kRegion;
        answer.region = received->message.region;
        answer.bytes = region_->bytes();
        answer.writable = 1;
        answer.tier = protocol::Tier::kGpu;
        answer.handle = static_cast<protocol::DeviceHandleKind>(exported->handle.kind);
        answer.device = exported->handle.device.bytes;
        EXPECT_TRUE(protocol::SendAttachMessage(fd.get(), answer, exported->fd.get()));
      } else if (received->message.type == AttachMessage::kUnmapped) {
        ++heard_["unmapped"];
      } else if (received->message.type == AttachMessage::kDone) {
        ++heard_["done"];
      } else {
        ++heard_["something else"];
      }
    }
    MutexLock lock(mu_);
    std::erase(attached_, fd.get());
  }

  const std::unique_ptr<gpu::DeviceRegion> region_;
  const gpu::FileMapping generations_;
  UniqueFd listener_, attach_listener_;
  uint16_t port_ = 0;
  std::string attach_name_;
  std::atomic<bool> stop_{false};
  std::atomic<int> connections_{0};
  Mutex mu_;
  std::vector<std::thread> threads_ GUARDED_BY(mu_);
  std::vector<int> attached_ GUARDED_BY(mu_);
  std::map<std::string, int> heard_ GUARDED_BY(mu_);
  std::string last_hello_ GUARDED_BY(mu_), last_alloc_ GUARDED_BY(mu_);
  std::map<std::string, Value> values_ GUARDED_BY(mu_);
  std::map<uint64_t, Value> reserved_ GUARDED_BY(mu_);
  uint64_t used_ GUARDED_BY(mu_) = 0;
  uint32_t next_slot_ GUARDED_BY(mu_) = 1;
  uint64_t tokens_ GUARDED_BY(mu_) = 0, leases_ GUARDED_BY(mu_) = 0;
};

}  // namespace moonpool::client
