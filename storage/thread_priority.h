// Threads that work in the background give way to those that answer.
#pragma once

#include <sys/resource.h>

namespace moonpool::storage {

// From now on the calling thread has that `niceness` (0 to 19, see nice(2)): Linux keeps one
// for each thread.  No error: where it is not allowed nothing changes.
inline void GiveWay(int niceness) {
  if (niceness > 0) setpriority(PRIO_PROCESS, 0, niceness);
}

}  // namespace moonpool::storage
