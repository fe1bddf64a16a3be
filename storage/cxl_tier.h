// The CXL tier of one tenant: memory of a NUMA node without processors, slower than DRAM and faster
// than any disk, which clients read like DRAM.
//
//   down   Demote() -> queue -> this tier's thread: extent reserved, bytes copied ->
//   Keyspace::MoveBulk() up     a value read here for the second time (BulkPolicy::TakeWanted) ->
//   the same thread copies
//          it to DRAM, as long as there is room
//
// A value is in one of the two; what does not fit here goes on to the SSD or is dropped, as if
// there were no CXL memory.  Nobody waits for a move up.
//
// Threads: any.  Owns its thread.  The keyspace, and what the hooks use, must outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/keyspace.h"
#include "storage/latency_counts.h"

namespace moonpool::storage {

struct CxlTierOptions {
  uint64_t memory_bytes = 0;     // 0: there is no CXL tier
  int numa_node = -1;            // where it is; -1: the only node that has memory and no processor
  double high_watermark = 0.95;  // share of memory_bytes at which values move on or are dropped
  double evict_ratio = 0.05;     // and until `high_watermark - evict_ratio`
  uint64_t queue_bytes = 64ull << 20;  // of values on their way here
  int64_t wait_ms = 1000;              // how long one of them waits for room
};

struct CxlTierStats {
  uint64_t demotions = 0;  // values that came from DRAM
  uint64_t demoted_bytes = 0;
  uint64_t promotions = 0;  // and went back there
  uint64_t promoted_bytes = 0;
  uint64_t abandoned = 0;  // overwritten or deleted meanwhile
  uint64_t refused = 0;    // for which there was no room
  uint64_t queued_values = 0;
  uint64_t queued_bytes = 0;
  uint64_t demote_p50_us = 0, demote_p99_us = 0;  // of the moves themselves
  uint64_t promote_p50_us = 0, promote_p99_us = 0;
};

class CxlTier {
 public:
  struct Hooks {
    // Finds room in CXL memory, and makes some; kBusy: it is on its way.
    std::function<Result<WriteHandle>(uint64_t length)> reserve;
    // In DRAM, without evicting anything for it.
    std::function<Result<WriteHandle>(uint64_t length)> reserve_dram;
    // No room here: the value goes where it would have gone otherwise.
    std::function<void(const ValueRef& value)> refused;
    // DRAM came free.
    std::function<void(uint64_t bytes)> freed;
  };
  CxlTier(const CxlTierOptions& options, Keyspace& keyspace, BulkPolicy& policy, Hooks hooks);
  // Finishes the move at hand; values still queued stay where they are.
  ~CxlTier();

  const CxlTierOptions& options() const { return options_; }
  // Whether a value of that length can be here at all.
  bool Holds(uint64_t length) const {
    return static_cast<double>(length) <
           options_.high_watermark * static_cast<double>(options_.memory_bytes);
  }
  enum class Taken { kYes, kFull, kOtherwise };
  // Begins to move a value in DRAM, which is in no policy any more, here.  kFull: the queue is, try
  // again later; kOtherwise: it is on its way to the SSD.
  Taken Demote(ValueRef value);
  // Bytes that will be free in DRAM soon.
  uint64_t queued_bytes() const { return queued_bytes_.load(std::memory_order_relaxed); }
  // There may be something to move up.  Cheap.
  void Wake();

  CxlTierStats stats() const;

 private:
  struct Down {
    ValueRef value;
    uint8_t leaves;  // the partition whose memory it was to free when it was queued
  };
  void Run();
  void MoveDown(Down& down);
  // False: there is nothing wanted in DRAM, or no room for it.
  bool MoveUp();
  Result<WriteHandle> ReserveAndWait(uint64_t length);
  bool Move(const ValueRef& value, WriteHandle target);

  const CxlTierOptions options_;
  Keyspace& keyspace_;
  BulkPolicy& policy_;
  const Hooks hooks_;
  std::atomic<uint64_t> queued_bytes_{0};
  struct Counters {
    std::atomic<uint64_t> demotions{0}, demoted_bytes{0}, promotions{0}, promoted_bytes{0},
        abandoned{0}, refused{0};
  };
  Counters counters_;
  LatencyCounts demote_us_;
  LatencyCounts promote_us_;

  mutable Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  bool wake_ GUARDED_BY(mu_) = false;
  std::deque<Down> down_ GUARDED_BY(mu_);
  std::thread thread_;
};

// The only online NUMA node that has memory and no processor.  kNotFound: there is none;
// kInvalidArgument: there are several.  `directory`: where the kernel lists its nodes.
Result<int> FindCpulessNode(const std::string& directory = "/sys/devices/system/node");

}  // namespace moonpool::storage
