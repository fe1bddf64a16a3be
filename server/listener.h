// A listening socket, and a thread that accepts for all of them.
//
// Threads: Open anywhere before Start(); the accepting thread is the listener's own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "protocol/status.h"
#include "protocol/unique_fd.h"
#include "server/connection.h"

namespace moonpool::server {

class Listener {
 public:
  using OnAccept = std::function<void(UniqueFd, ConnectionOrigin)>;

  explicit Listener(OnAccept on_accept) : on_accept_(std::move(on_accept)) {}
  ~Listener();

  // `address` may be a host address, "*" (every IPv4 address) or "::*"; `port` 0: any.  Returns
  // the port.
  Result<int> AddTcp(const std::string& address, int port, int backlog);
  // Takes over the socket file of a server that died; refuses when one still listens there.
  // `permissions` 0: leave them.  Stop() removes the file.
  Status AddUnix(const std::string& path, unsigned permissions, int backlog);

  void Start();
  // Closes the sockets: new clients are refused.  Idempotent.
  void Stop();

 private:
  struct Socket {
    UniqueFd fd;
    std::string unix_path;
  };
  void Run();
  void AcceptAll(const Socket& socket);

  OnAccept on_accept_;
  std::vector<Socket> sockets_;
  UniqueFd stop_fd_;
  std::thread thread_;
};

}  // namespace moonpool::server
