// Scheduling of measurements on a machine with few cores.
#pragma once

#include <sched.h>
#include <sys/resource.h>

namespace moonpool::bench {

// The calling thread runs as soon as it can, where that is allowed: a load generator that waits for
// other clients' turns on the processor would measure its own delays.
class Urgent {
 public:
  Urgent() {
    const sched_param priority{1};
    sched_setscheduler(0, SCHED_FIFO, &priority);
  }
  ~Urgent() {
    const sched_param usual{0};
    sched_setscheduler(0, SCHED_OTHER, &usual);
  }
  Urgent(const Urgent&) = delete;
};

// The calling thread, a client that works without end, gives way: what is asked is how the server
// shares its time, not how the kernel shares two cores among such a client and everybody else.
inline void GiveWay() {
  setpriority(PRIO_PROCESS, 0, 10);
}

}  // namespace moonpool::bench
