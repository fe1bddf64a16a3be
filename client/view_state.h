// What a View keeps alive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/channel.h"
#include "client/moonpool/client.h"
#include "client/node_memory.h"

namespace moonpool::client {

struct View::State {
  ~State() {
    if (hold != 0 && channel != nullptr && ForkCount() == forks) channel->QueueRelease(hold);
  }

  std::string copy;  // the bytes, when the view is a copy; the rest is empty then
  std::shared_ptr<Channel> channel;
  std::shared_ptr<NodeMemory> memory;
  std::shared_ptr<Mapping> mapping;
  const protocol::GenerationCounter* counter = nullptr;
  uint64_t generation = 0;
  uint64_t hold = 0;
  const uint64_t forks = ForkCount();
};

}  // namespace moonpool::client
