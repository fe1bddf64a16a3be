// A command that waits for values from the SSD or a device, or for memory, with its arguments.
//
// Threads: the loop's of its connection, which owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "server/command.h"

namespace moonpool::server {

// All pinned until the command has run.
using CameUp = std::vector<std::pair<uint64_t, storage::ValueRef>>;            // by version
using Fetched = std::vector<std::pair<storage::ValueRef, storage::ValueRef>>;  // there, and its bytes here

// Values on their way up for one command: the last to come tells its loop, once for all.
// Threads: any.
struct Arrivals {
  Mutex mu;
  size_t waiting GUARDED_BY(mu) = 0;
  CameUp values GUARDED_BY(mu);
  Fetched fetched GUARDED_BY(mu);
  bool failed GUARDED_BY(mu) = false;  // something will not come
};

struct Parked {
  const Command* command = nullptr;
  uint64_t key_hash = 0;
  std::string text;  // the short arguments' bytes
  std::deque<Body> bodies;
  std::vector<Argument> arguments;
  CameUp values;
  Fetched fetched;
  int waiting = 0;         // for values, for memory, for devices
  int tries = 0;
  int64_t until_ms = 0;    // how long it waits for memory; 0: it did not yet
  int64_t growth_since_ms = 0;  // the same of regions on devices
  int64_t growth_until_ms = 0;
  bool failed = false;     // something will not come
};

}  // namespace moonpool::server
