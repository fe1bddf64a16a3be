// What CLIENT LIST tells of a connection.  The connection's loop writes, any thread reads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "protocol/mutex.h"
#include "server/counter.h"

namespace moonpool::server {

struct Command;
class Loop;

struct ClientInfo {
  ClientInfo(uint64_t i, Loop* l, std::string a, std::string la, int f, int64_t now_ms)
      : id(i), loop(l), address(std::move(a)), local_address(std::move(la)), fd(f),
        created_ms(now_ms), last_ms(now_ms) {}

  const uint64_t id;
  Loop* const loop;
  const std::string address;
  const std::string local_address;
  const int fd;
  const int64_t created_ms;
  std::atomic<int64_t> last_ms;
  std::atomic<const Command*> last_command{nullptr};
  std::atomic<int> resp{2};
  std::atomic<uint64_t> session{0};
  std::atomic<bool> authenticated{false};
  std::atomic<bool> closing{false};
  std::atomic<bool> unix_socket{false};
  Counter query_buffer_bytes;
  Counter output_bytes;
  Counter net_input_bytes;
  Counter net_output_bytes;
  Counter commands;

  mutable Mutex mu;
  std::string name GUARDED_BY(mu);
  std::string library GUARDED_BY(mu);
  std::string library_version GUARDED_BY(mu);

  // One line of CLIENT LIST, without the newline.
  std::string Line(int64_t now_ms) const;
};

// All connections of the server.  Threads: any.
class ClientRegistry {
 public:
  void Add(std::shared_ptr<ClientInfo> info);
  void Remove(uint64_t id);
  std::shared_ptr<ClientInfo> Find(uint64_t id) const;
  // In the order of their ids.
  std::vector<std::shared_ptr<ClientInfo>> All() const;
  size_t size() const;
  uint64_t NextId() { return next_id_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> next_id_{1};
  mutable Mutex mu_;
  std::unordered_map<uint64_t, std::shared_ptr<ClientInfo>> clients_ GUARDED_BY(mu_);
};

}  // namespace moonpool::server
