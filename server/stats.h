// What the loops count.  Every loop has its own; readers add them up.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "protocol/mutex.h"
#include "server/counter.h"

namespace moonpool::server {

// Upper bound of commands and subcommands together; the table checks it at start.
inline constexpr size_t kMaxCommands = 160;

struct CommandStats {
  Counter calls;
  Counter ticks;  // of the cycle counter, see Ticks() in connection.cc
  Counter rejected;
  Counter failed;
};

struct LoopStats {
  Counter commands;
  Counter connections;  // accepted
  Counter keyspace_hits;
  Counter keyspace_misses;
  Counter net_input_bytes;
  Counter net_output_bytes;
  Counter bulk_output_bytes;  // of them, straight from extents
  Counter bulk_input_bytes;   // received straight into extents
  Counter descriptors;
  Counter leases;
  Counter holds;
  Counter holds_refused;
  Counter reservations;
  Counter commits;
  Counter aborts;
  Counter reservation_timeouts;
  Counter oom_replies;
  Counter output_limit_closed;
  Counter timeout_closed;
  Counter protocol_errors;
  std::array<CommandStats, kMaxCommands> by_command;

  // The loop's own thread.
  void Reset();

  // Replies that begin with an error code, by code.
  void CountError(std::string_view code) {
    MutexLock lock(error_mu);
    ++errors[std::string(code)];
  }
  mutable Mutex error_mu;
  std::map<std::string, uint64_t> errors GUARDED_BY(error_mu);
};

}  // namespace moonpool::server
