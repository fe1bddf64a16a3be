// Queues of work on a device, and marks in them.
//
// Threads: a Stream and an Event are used by one thread at a time.
#pragma once

#include <chrono>

#include "protocol/status.h"

namespace moonpool::gpu {

// Somebody's queue: a cudaStream_t (a CUstream is the same).  Belongs to the device that work is
// given to through it.  A null handle is CUDA's default stream.
struct StreamRef {
  void* handle = nullptr;
};

// A queue of the library's own; does not wait for the default stream.  Its destruction lets what is
// queued in it run on.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual StreamRef ref() const = 0;
};

// A mark behind what was in a stream when it was recorded.  Fresh ones count as reached.
class Event {
 public:
  virtual ~Event() = default;

  // Whether all before the mark has been done.  An error: it never will be; the message says why.
  virtual Result<bool> Reached() const = 0;
  // Blocks until it has.
  virtual Status Wait() const = 0;
  // The same, but not beyond `deadline`: false when it has not by then.
  virtual Result<bool> WaitUntil(std::chrono::steady_clock::time_point deadline) const = 0;
  // A cudaEvent_t, for streams of the caller's to wait for; null on the host double.
  virtual void* native() const = 0;
};

}  // namespace moonpool::gpu
