// Listens on the attach socket and hands each client to the session its token names.
//
// Threads: Issue and Revoke any; accepting is on a thread of its own, which knows only tokens:
// everything behind a good token happens on the session's loop.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "protocol/attach_wire.h"
#include "protocol/mutex.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::server {

class Loop;
class Server;

class AttachServer {
 public:
  explicit AttachServer(Server& server) : server_(server) {}
  ~AttachServer();

  // `path` empty: a name of its own in the abstract namespace.
  Status Start(const std::string& path);
  // Accepts nothing more.  Idempotent.
  void Stop();
  // Where clients connect; an abstract name begins with '@'.
  const std::string& address() const { return address_; }

  // A token good for one attach within attach-timeout, for that session of that connection.
  protocol::AttachToken Issue(Loop& loop, uint64_t connection, uint64_t session);
  void Revoke(const protocol::AttachToken& token);

 private:
  struct Ticket {
    Loop* loop = nullptr;
    uint64_t connection = 0;
    uint64_t session = 0;
    int64_t expires_ms = 0;
  };
  struct Pending {
    UniqueFd fd;
    int64_t expires_ms = 0;
  };
  void Run();
  void Accept(std::vector<Pending>& pending);
  // True when the connection is settled, one way or the other.
  bool Greet(Pending& pending);

  Server& server_;
  std::string address_;
  bool unlink_ = false;
  UniqueFd listen_fd_;
  UniqueFd stop_fd_;
  std::thread thread_;

  Mutex mu_;
  std::unordered_map<std::string, Ticket> tickets_ GUARDED_BY(mu_);
};

}  // namespace moonpool::server
