// Sends prepared requests over many connections from one thread, and counts the replies.
//
// Closed loop: every connection sends its next batch when the replies of the last are in.  Open
// loop (`rate`): batches are due at random times (a Poisson process), whatever the server does,
// and latency counts from the time one was due, so a stalled server cannot hide it.
//
// Threads: one at a time.  Owns its connections; `requests` must outlive it.  Throws Failure when
// a connection breaks, a reply is not what was expected, or the server stops answering.
#pragma once

#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "protocol/unique_fd.h"
#include "tools/bench/histogram.h"
#include "tools/bench/requests.h"

namespace moonpool::bench {

struct LoadResult {
  uint64_t operations = 0;
  double seconds = 0;
  Histogram latency;  // of batches
  // Of each batch in an open loop, on the steady clock; empty in a closed one.
  struct Times {
    uint64_t due_ns;
    uint64_t reply_ns;
  };
  std::vector<Times> times;
  double rate() const { return static_cast<double>(operations) / seconds; }
};

class LoadGenerator {
 public:
  LoadGenerator(int port, const Requests& requests, int connections, int pipeline);

  // Returns when all replies are in, so the server is idle before and after.
  LoadResult Run(double seconds) { return Loop(seconds, UINT64_MAX, 0); }
  LoadResult RunAtRate(double seconds, double operations_per_second) {
    return Loop(seconds, UINT64_MAX, operations_per_second);
  }
  // Each request once, `operations` rounded up to whole batches.
  LoadResult RunOperations(uint64_t operations) { return Loop(1e6, operations, 0); }

 private:
  struct Connection {
    UniqueFd fd;
    size_t unsent = 0;      // bytes of the batch the socket did not take yet
    const char* next = nullptr;
    size_t missing = 0;     // bytes or lines of replies still to come; 0: idle
    size_t received = 0;    // bytes of the batch's replies so far
    uint64_t due_ns = 0;
  };

  LoadResult Loop(double seconds, uint64_t operations, double rate);
  void SendBatch(Connection& connection, uint64_t due_ns);
  void ContinueSending(Connection& connection);
  // True when the batch's last reply is in.
  bool Receive(Connection& connection);
  void SayGreeting(int fd);
  void CheckReply(const Connection& connection, const char* data, size_t bytes) const;

  const Requests& requests_;
  const size_t pipeline_;
  const size_t batches_;  // in requests_
  size_t cursor_ = 0;
  UniqueFd epoll_;
  std::vector<Connection> connections_;
  std::vector<char> buffer_;
  std::mt19937_64 random_;
};

// A blocking TCP connection to a port of this host, tuned as all measured connections are: no
// Nagle, and cubic congestion control, because pacing (bbr) only costs time on loopback.
UniqueFd ConnectTo(int port);

}  // namespace moonpool::bench
