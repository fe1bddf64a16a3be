// Which of RDMA and tcp the next batch takes, by what each has delivered lately.
//
// RDMA is taken until tcp has shown to be faster, and the other way round: one batch in many goes over the
// other transport to see.  Batches of like size are compared with each other, since what is faster
// for little may be slower for much.  One that was much slower is tried less often.
// Threads: any; mu_ is a leaf lock.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

#include "client/moonpool/client.h"
#include "protocol/mutex.h"

namespace moonpool::client {

class Pace {
 public:
  // One batch in so many goes over the other transport; and where that was less than a quarter as fast.
  static constexpr uint32_t kTryEvery = 64;
  static constexpr uint32_t kTrySlowEvery = 1024;
  // The other one is taken when it was faster by this factor so often in a row.
  static constexpr double kFaster = 1.25;
  static constexpr int kInARow = 3;

  // kRdma or kTcp, for a batch of about `bytes`; 0: not known, and then nothing is tried or learnt.
  Transport Choose(uint64_t bytes) EXCLUDES(mu_);
  // `moved` bytes of such a batch came about in that time, failures and what came of them included.
  void Took(Transport transport, uint64_t bytes, uint64_t moved, std::chrono::nanoseconds time)
      EXCLUDES(mu_);
  // What batches like the last one take when nothing is tried.
  Transport preferred() const EXCLUDES(mu_);

 private:
  // Of batches below 256 KiB, below 4 MiB, and the rest.
  struct Class {
    Transport preferred = Transport::kRdma;
    double rdma = 0;  // bytes per ns; 0: not known
    double tcp = 0;
    uint32_t since_try = 0;
    int faster = 0;  // in a row

    double& rate(Transport transport) { return transport == Transport::kRdma ? rdma : tcp; }
  };
  static size_t ClassOf(uint64_t bytes);

  mutable Mutex mu_;
  std::array<Class, 3> classes_ GUARDED_BY(mu_);
  size_t last_ GUARDED_BY(mu_) = 2;
};

}  // namespace moonpool::client
