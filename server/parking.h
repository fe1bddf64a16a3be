// A command that waits for values from the SSD, or for memory, with its arguments.
//
// Threads: the loop's of its connection, which owns it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "server/command.h"

namespace moonpool::server {

struct Parked {
  const Command* command = nullptr;
  uint64_t key_hash = 0;
  std::string text;  // the short arguments' bytes
  std::deque<Body> bodies;
  std::vector<Argument> arguments;
  // What came up, by version; pinned until the command has run.
  std::vector<std::pair<uint64_t, std::shared_ptr<storage::ValueRef>>> values;
  // What was fetched from devices: the value there, pinned too, and the one with its bytes.
  std::vector<std::pair<std::shared_ptr<storage::ValueRef>, std::shared_ptr<storage::ValueRef>>>
      fetched;
  size_t waiting = 0;      // for so many more, or for memory
  int tries = 0;
  int64_t until_ms = 0;    // how long it waits for memory; 0: it did not yet
  bool failed = false;     // something will not come
};

}  // namespace moonpool::server
