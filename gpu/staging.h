// Bytes that go in two legs, through chunks that one stream fills and another empties, so that both
// work at the same time.
//
// Threads: one at a time.  Everything named must outlive the work in the streams.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "gpu/device.h"

namespace moonpool::gpu {

// One end of a leg: a device that works, and its stream.
struct Worker {
  Device* device = nullptr;
  StreamRef stream;
};

class Staging {
 public:
  using Leg = std::function<Status(char* chunk)>;

  // Chunks, two or more, that both workers reach.
  Staging(Worker filler, Worker emptier, std::vector<char*> chunks)
      : filler_(filler), emptier_(emptier), slots_(chunks.size()), chunks_(std::move(chunks)) {}

  // Puts one chunk's way into the streams.
  Status Step(const Leg& fill, const Leg& empty);

 private:
  struct Slot {
    std::unique_ptr<Event> filled;
    std::unique_ptr<Event> emptied;
  };

  const Worker filler_;
  const Worker emptier_;
  std::vector<Slot> slots_;
  const std::vector<char*> chunks_;
  size_t steps_ = 0;
};

// Makes `second` go on only when `first` has done what is in it now.
Status Chain(const Worker& first, const Worker& second);

}  // namespace moonpool::gpu
