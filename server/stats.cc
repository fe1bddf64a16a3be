#include "server/stats.h"

namespace moonpool::server {

void LoopStats::Reset() {
  for (Counter* counter :
       {&commands, &connections, &keyspace_hits, &keyspace_misses, &net_input_bytes,
        &net_output_bytes, &bulk_output_bytes, &bulk_input_bytes, &descriptors, &leases, &holds,
        &holds_refused, &reservations, &commits, &aborts, &reservation_timeouts,
        &oom_replies, &output_limit_closed, &timeout_closed, &protocol_errors}) {
    counter->Set(0);
  }
  for (CommandStats& command : by_command) {
    command.calls.Set(0);
    command.ticks.Set(0);
    command.rejected.Set(0);
    command.failed.Set(0);
  }
  MutexLock lock(error_mu);
  errors.clear();
}

}  // namespace moonpool::server
