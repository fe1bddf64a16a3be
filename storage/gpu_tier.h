// The GPU tier of one tenant: memory of devices, which clients on this host read and write as they
// do with host memory, and which the server itself reaches by copies alone.
//
//   in     KV.ALLOC ... PREFER gpu     a client writes there
//          Promote() -> queue ->       a value in DRAM is copied there, because somebody asked for it
//   down   Demote()  -> queue ->       a value for which there is no room any more is copied to DRAM
//   out    Fetch()   -> queue ->       one that a reader wants who cannot reach the device: a copy in
//                                      DRAM for that reader alone, or the value moves there
//
// A value is in one place.  What DRAM has no room for goes on to the SSD or is dropped.  A device
// that is lost takes its values with it: their keys go (or go on from the SSD), nothing else does.
//
// Threads: any.  Owns its threads.  The keyspace, the devices, and what the hooks use, must outlive
// it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/device_memory.h"
#include "storage/keyspace.h"
#include "storage/latency_counts.h"

namespace moonpool::storage {

struct GpuTierOptions {
  std::vector<DeviceMemory*> devices;  // at most kMaxDevices; none: there is no GPU tier
  uint64_t memory_bytes = 0;           // of each of them
  double high_watermark = 0.95;        // share of memory_bytes at which values move on or are dropped
  double evict_ratio = 0.05;           // and until `high_watermark - evict_ratio`
  uint64_t queue_bytes = 256ull << 20;  // of values on their way from one device, or to all
  int64_t wait_ms = 1000;               // how long one of them waits for room in DRAM
  std::function<void(const std::string& line)> note;  // for the log
};

struct GpuTierStats {
  uint64_t promotions = 0;  // values that came from DRAM
  uint64_t promoted_bytes = 0;
  uint64_t demotions = 0;  // and went back there
  uint64_t demoted_bytes = 0;
  uint64_t fetches = 0;  // copied for a reader, or moved for one
  uint64_t fetched_bytes = 0;
  uint64_t abandoned = 0;  // overwritten or deleted meanwhile
  uint64_t refused = 0;    // for which there was no room where they were to go
  uint64_t failed = 0;     // copies that failed
  uint64_t lost = 0;       // keys that went with a device
  uint64_t queued_values = 0;
  uint64_t queued_bytes = 0;
  uint64_t demote_p50_us = 0, demote_p99_us = 0;  // of the copies themselves
  uint64_t promote_p50_us = 0, promote_p99_us = 0;
  uint64_t fetch_p50_us = 0, fetch_p99_us = 0;    // from the request on
};

class GpuTier {
 public:
  struct Hooks {
    // Finds room on one of the devices, and makes some; kBusy: it is on its way.  *growing: on these
    // devices as a region that is being made.
    std::function<Result<WriteHandle>(uint64_t length, DeviceSet devices, DeviceSet* growing)>
        reserve;
    // Calls when it is worth to try again.
    std::function<void(DeviceSet growing, int64_t since_ms, int64_t until_ms,
                       std::function<void()> call)>
        await;
    // In DRAM, waiting for so long.  `evicts`: as a write does, else as what comes up.
    std::function<Result<WriteHandle>(uint64_t length, int64_t wait_ms, bool evicts)> reserve_dram;
    // No room in DRAM: the value goes where it would go from there.
    std::function<void(const ValueRef& value)> refused;
  };
  GpuTier(const GpuTierOptions& options, Keyspace& keyspace, BulkPolicy& policy, Hooks hooks);
  ~GpuTier();  // after Stop()
  // Finishes the copies at hand; values still queued stay where they are, who waits gets nothing.  Until
  // it returns the hooks are called.  A second call does nothing.
  void Stop() EXCLUDES(mu_);

  const GpuTierOptions& options() const { return options_; }
  const std::vector<DeviceMemory*>& devices() const { return options_.devices; }
  // Whether a value of that length can be here at all.
  bool Holds(uint64_t length) const {
    return static_cast<double>(length) <
           options_.high_watermark * static_cast<double>(options_.memory_bytes);
  }
  enum class Taken { kYes, kFull, kOtherwise };
  // Begins to move a value, which is in no policy any more, to DRAM.  kFull: the queue is, try again
  // later, or copies from that device fail; kOtherwise: it is on its way to the SSD.
  Taken Demote(ValueRef value);
  // Bytes that will be free on that device soon.
  uint64_t leaving_bytes(size_t device) const {
    return leaving_bytes_[device].load(std::memory_order_relaxed);
  }
  // Begins to move a value in DRAM, or on another device, to one of `devices`.  Nothing when it is
  // there already, the queue is full, or copies to those devices fail.
  void Promote(ValueRef value, DeviceSet devices);
  // Of values on their way, in either direction.
  uint64_t queued_bytes() const;
  // Brings the bytes of a value here to DRAM and calls, on some thread, with a value that has them,
  // or with none.  `move`: the key refers to that one from then on.
  using OnFetched = std::function<void(const ValueRef& value)>;
  void Fetch(ValueRef value, bool move, OnFetched call);
  // A key lost its value with its device.
  void CountLost() { counters_.lost.fetch_add(1, std::memory_order_relaxed); }
  void Note(const std::string& line) const {
    if (options_.note) options_.note(line);
  }

  GpuTierStats stats() const;

 private:
  struct Down {
    ValueRef value;
    uint8_t leaves;  // the partition whose memory it was to free when it was queued
  };
  struct Up {
    ValueRef value;
    DeviceSet devices;
    int64_t since_ms = 0;  // when it began to wait for a device's region; 0: it did not yet
  };
  struct Job {
    ValueRef value;
    bool move = false;
    std::chrono::steady_clock::time_point start;
    std::vector<OnFetched> calls;
  };
  void Run();
  void MoveDown(Down& down);
  void MoveUp(Up& up);
  // It comes back to the queue when a region was made, or will not be.
  void Postpone(Up& up, DeviceSet growing);
  void Carry(Job& job);
  Status CopyBytes(const WriteHandle& to, const BulkValue& from);
  Status CopyOn(size_t device, char* to, const char* from, uint64_t bytes);
  // Copies on it failed lately: nothing is moved there or from there for a while.
  bool Failing(size_t device) const;
  DeviceSet Working(DeviceSet devices) const;

  const GpuTierOptions options_;
  Keyspace& keyspace_;
  BulkPolicy& policy_;
  const Hooks hooks_;
  std::array<std::atomic<uint64_t>, kMaxDevices> leaving_bytes_{};
  std::atomic<uint64_t> coming_bytes_{0};
  std::array<std::atomic<int64_t>, kMaxDevices> failing_until_ms_{};  // monotonic clock
  std::array<std::atomic<int64_t>, kMaxDevices> failing_pause_ms_{};  // doubles; 0: it works
  struct Counters {
    std::atomic<uint64_t> promotions{0}, promoted_bytes{0}, demotions{0}, demoted_bytes{0},
        fetches{0}, fetched_bytes{0}, abandoned{0}, refused{0}, failed{0}, lost{0};
  };
  Counters counters_;
  LatencyCounts demote_us_;
  LatencyCounts promote_us_;
  LatencyCounts fetch_us_;

  mutable Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::deque<std::shared_ptr<Job>> jobs_ GUARDED_BY(mu_);
  // Those of jobs_, by value: a second reader joins the first.
  std::unordered_map<const BulkValue*, std::shared_ptr<Job>> waiting_ GUARDED_BY(mu_);
  std::deque<Down> down_ GUARDED_BY(mu_);
  std::deque<Up> up_ GUARDED_BY(mu_);
  size_t postponed_ GUARDED_BY(mu_) = 0;
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::storage
