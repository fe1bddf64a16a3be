// Threads that work in the background give way to those that answer.
#pragma once

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace moonpool::storage {

// From now on the calling thread has that `niceness` (0 to 19, see nice(2)): Linux keeps one
// for each thread.  No error: where it is not allowed nothing changes.
inline void GiveWay(int niceness) {
  if (niceness > 0) setpriority(PRIO_PROCESS, 0, niceness);
}

// From now on the calling thread works in short slices of time, and so interrupts one with longer
// slices (all others) as soon as it has something to do: it waits for microseconds where it would
// wait for milliseconds when all processors are busy.  It gets no more of their time than before.
// Linux 6.12 and newer, see sched(7) and "EEVDF Scheduler" in its documentation; elsewhere nothing
// changes.
inline void AnswerQuickly() {
  constexpr uint64_t kSliceNs = 100'000;  // the least there is
  // struct sched_attr, which not every libc has.
  struct {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  attributes.runtime = kSliceNs;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace moonpool::storage
