// A server that only receives and sends: what any server with one loop pays the kernel for its
// clients.
//
// Threads: one of its own; stops with it.  Throws Failure.
#pragma once

#include <cstddef>
#include <string>
#include <thread>

#include "protocol/unique_fd.h"

namespace moonpool::bench {

class BareServer {
 public:
  // Answers every `request_bytes` that a client sends with `reply`.
  BareServer(size_t request_bytes, std::string reply);
  ~BareServer();
  BareServer(const BareServer&) = delete;

  int port() const { return port_; }

 private:
  void Serve();

  const size_t request_bytes_;
  const std::string reply_;
  UniqueFd listener_;
  UniqueFd stop_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace moonpool::bench
