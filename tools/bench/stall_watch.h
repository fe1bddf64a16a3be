// Times at which the machine as a whole did not run, though it was asked to: a virtual one whose
// host had no time for it.  What is measured then says nothing about a server.
//
// One thread per processor, of the highest priority, wants to be woken every half a millisecond.  A
// stall is when all of them come late at the same time, each though nothing but its processor could
// keep it waiting; what a kernel or a program does on one processor does not count.
//
// Threads: one at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace moonpool::bench {

struct Stall {
  uint64_t begin_ns;  // steady clock
  uint64_t end_ns;
};

class StallWatch {
 public:
  // Nothing is seen where real-time priorities are not allowed.
  StallWatch();
  ~StallWatch() { Stop(); }
  StallWatch(const StallWatch&) = delete;

  // Stalls so far, in order, of at least a millisecond.
  std::vector<Stall> Stop();

 private:
  void Watch(int processor, std::vector<Stall>* late);

  std::atomic<bool> stop_{false};
  std::vector<std::vector<Stall>> late_;  // of each processor
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::bench
