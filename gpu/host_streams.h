// Streams of the host double: queues of steps that one thread works on, in each stream in order and
// among streams at random.
//
// Threads: any.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::gpu {

class HostStreams {
 public:
  // Where a stream had got to when an event was recorded.
  struct Point {
    bool reached = false;
    bool lost = false;  // together with reached: what came before was not done
  };
  using Step = std::function<Status()>;

  explicit HostStreams(uint64_t seed);
  ~HostStreams();  // what is queued is dropped

  // A queue of device number `device`.
  void* NewStream(int device);
  // REQUIRES: a stream of NewStream(), with nothing put into it from now on.  What is in it is
  // done.
  void EndStream(void* stream);

  void Put(void* stream, Step step);
  void PutMark(void* stream, std::shared_ptr<Point> point);
  void PutWait(void* stream, std::shared_ptr<Point> point);
  bool Reached(const Point& point, bool* lost) const;
  // False: it is lost.
  bool WaitUntilReached(const Point& point) const;
  // The same as Reached(), at the latest then.
  bool WaitUntil(const Point& point, std::chrono::steady_clock::time_point deadline,
                 bool* lost) const;

  void Pause(int device, uint64_t after);
  void Resume(int device);
  // Nothing in a stream of the device can go on.
  bool still(int device) const;
  void LoseAfter(int device, uint64_t steps);
  bool lost(int device) const;

 private:
  struct Item {
    Step step;                    // or
    std::shared_ptr<Point> mark;  // or
    std::shared_ptr<Point> wait;
  };
  struct Queue {
    int device = 0;
    std::deque<Item> items;
    bool busy = false;
    bool ending = false;
  };
  struct DeviceState {
    std::optional<uint64_t> steps_until_pause;
    std::optional<uint64_t> steps_until_lost;
    bool lost = false;
  };

  void Run();
  bool CanGoOn(const Queue& queue) const REQUIRES(mu_);
  void Add(void* stream, Item item);

  mutable Mutex mu_;
  mutable CondVar changed_;
  std::map<Queue*, std::unique_ptr<Queue>> queues_ GUARDED_BY(mu_);
  std::map<int, DeviceState> devices_ GUARDED_BY(mu_);
  std::mt19937_64 random_ GUARDED_BY(mu_);
  bool stop_ GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace moonpool::gpu
