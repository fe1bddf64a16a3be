// The SSD tier of one tenant: values go down when memory is short and come up when they are read.
//
//   down   Demote() -> queue -> writer thread: payload to the store -> Keyspace::FinishDemotion()
//   up     Load()   -> queue -> reader threads: extent reserved, chunks read side by side and
//          verified -> Keyspace::FinishLoad() -> everyone who asked is called
//
// A value that came up keeps its place on the SSD, so that it can go down again for nothing.  One
// that was not asked for twice lately, before about as much as memory holds twice came in, comes up
// cold (see BulkPolicy), so that a scan over the SSD passes through memory without flushing it.
// What a value's partition says goes before that (Admission), and so does how it is compressed.
//
// A disk that fails is left alone for a while, longer each time; meanwhile the cache works from
// memory, victims are dropped and values on the SSD are misses.
//
// Threads: any.  Owns the store, its log and its threads.  The keyspace must outlive it.
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
#include "storage/keyspace.h"
#include "storage/latency_counts.h"
#include "storage/ssd_log.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

struct SsdTierOptions {
  SsdOptions store;
  uint64_t capacity_bytes = 10ull << 30;  // of values
  double high_watermark = 0.95;           // share of the capacity at which values are dropped
  double evict_ratio = 0.05;              // and until `high_watermark - evict_ratio`
  uint64_t queue_bytes = 64ull << 20;     // of values on their way down
  int64_t wait_ms = 1000;                 // how long a value that comes up waits for memory
  int readers = 6;                        // threads
  uint64_t least_value_bytes = 4096;      // shorter ones are dropped: they would take as much
                                          // memory there as they give back
  bool write_through = false;             // every write goes down at once, and stays in memory too
};

struct SsdTierStats {
  uint64_t keys = 0;         // on the SSD alone
  uint64_t versions = 0;     // on the SSD
  uint64_t bytes = 0;        // of them
  uint64_t capacity = 0;
  uint64_t hits = 0;         // reads that found their value here
  uint64_t lost = 0;         // corrupt or missing chunks: values dropped
  uint64_t read_errors = 0;
  uint64_t write_errors = 0;
  uint64_t promotions = 0;       // values that came up to stay
  uint64_t cold_loads = 0;       // and only to be read once
  uint64_t loaded_bytes = 0;
  uint64_t demotions = 0;        // values written
  uint64_t demoted_bytes = 0;
  uint64_t abandoned = 0;        // of them, overwritten or deleted meanwhile
  uint64_t drops_full = 0;       // values dropped for others on the SSD
  uint64_t drops_refused = 0;    // victims dropped because the disk was failing or full
  uint64_t queued_values = 0;    // going down
  uint64_t queued_bytes = 0;
  uint64_t loads_queued = 0;
  uint64_t read_ahead = 0;       // loads that nobody waited for when they began
  bool failing = false;
  std::string last_error;
  uint64_t load_p50_us = 0, load_p99_us = 0;      // from the request to the bytes
  uint64_t demote_p50_us = 0, demote_p99_us = 0;  // of the writing
  SsdStore::Stats store;
};

class SsdTier {
 public:
  using Note = std::function<void(std::string)>;
  using Reserve = std::function<Result<WriteHandle>(uint64_t length, bool wait)>;

  // Opens the store and fills the keyspace, which must be empty, with what is there.  `reserve`
  // finds memory for values that come up, and may `wait` for it; `freed` is told of DRAM that
  // values on their way down gave back.
  static Result<std::unique_ptr<SsdTier>> Open(const SsdTierOptions& options, Keyspace& keyspace,
                                               Reserve reserve,
                                               std::function<void(uint64_t bytes)> freed,
                                               int64_t now_ms);
  // Finishes what was begun; values still queued are not written.
  ~SsdTier();

  SsdLog& log() { return *log_; }
  const SsdStore::Recovery& recovery() const { return recovery_; }

  // No room in the queue for a value of `length` bytes just now.
  bool Full(uint64_t length) const {
    // One value always fits, however large.
    const uint64_t queued = queued_bytes();
    return queued > 0 && queued + length > options_.queue_bytes;
  }
  enum class Taken { kYes, kFull, kRefused };
  // Begins to move a value down.  kFull: the queue is, try again later; kRefused: the disk is failing
  // or full, what must go is to be dropped.  With `keep` it stays in memory as well.
  Taken Demote(ValueRef value, bool keep = false);
  // Bytes that will be free in memory soon, in that tier.
  uint64_t queued_bytes(protocol::Tier tier) const {
    return queued_bytes_[static_cast<size_t>(tier)].load(std::memory_order_relaxed);
  }
  uint64_t queued_bytes() const {
    return queued_bytes(protocol::Tier::kDram) + queued_bytes(protocol::Tier::kCxl) +
           queued_bytes(protocol::Tier::kGpu);
  }

  enum class LoadError { kNone, kGone, kNoMemory, kDisk };
  struct Loaded {
    ValueRef value;  // empty with an error
    LoadError error = LoadError::kNone;
  };
  using OnLoaded = std::function<void(const Loaded&)>;
  enum class Why : uint8_t {
    kWanted,  // somebody waits for it
    kAhead,   // somebody may ask soon
    kWarmUp,  // it was hot at the last stop
  };
  // Brings up a value and calls, on some thread, when it is there.  One read serves all who ask.
  void Load(uint64_t hash, const SsdPlace& place, Why why, OnLoaded call);

  // A little background work on the upkeep thread: dropping values above the watermark.  True when
  // there is more.
  bool Maintain(int64_t now_ms);
  void SetCapacity(uint64_t bytes) { capacity_.store(bytes, std::memory_order_relaxed); }

  // A clean stop: writes what only memory has, for at most `most_ms`, and the hottest values' names.
  // Nobody else uses the keyspace any more.
  Status Save(int64_t most_ms, const Note& note);
  // After the start, again and again: brings up a little of what was hottest at the last stop, until
  // there is no room() any more.
  void WarmUp(const std::function<bool()>& room);
  bool WarmsUp() const { return !hot_.empty(); }

  SsdTierStats stats() const;

 private:
  struct Down {
    ValueRef value;
    bool keep;
    uint8_t leaves;  // the partition whose memory it was to free when it was queued
  };
  struct Job;
  struct Task {
    std::shared_ptr<Job> job;
    uint32_t chunk;
  };

  SsdTier(const SsdTierOptions& options, Keyspace& keyspace, Reserve reserve,
          std::function<void(uint64_t)> freed);
  Status Recover(int64_t now_ms);
  void Write();
  void WriteOne(Down& down);
  void Read();
  // Lets the store write again when the cause of an error is gone: a writer may be waiting inside it.
  void Heal();
  void Begin(const std::shared_ptr<Job>& job);
  void Finish(Job& job);
  void Failed(const Error& error);
  bool Seen(uint64_t hash);

  const SsdTierOptions options_;
  Keyspace& keyspace_;
  const Reserve reserve_;
  const std::function<void(uint64_t)> freed_;
  std::atomic<uint64_t> capacity_;
  std::unique_ptr<SsdStore> store_;
  std::unique_ptr<SsdLog> log_;
  SsdStore::Recovery recovery_;
  struct Hot {
    uint64_t hash;
    SsdPlace place;
  };
  std::vector<Hot> hot_;  // hottest first; the upkeep thread's
  bool evicting_ = false;

  // Hashes that were read lately and when, by `passed_`, in a table that forgets by overwriting.
  static constexpr size_t kSeen = 1 << 16;
  static constexpr int kSeenShift = 20;
  std::unique_ptr<std::atomic<uint64_t>[]> seen_;
  std::atomic<uint64_t> passed_{0};  // bytes through memory: of values that came up or went down

  std::atomic<uint64_t> queued_bytes_[protocol::kTiers] = {};
  std::atomic<int64_t> failing_until_ms_{0};  // monotonic clock
  std::atomic<int> failures_{0};              // in a row
  struct Counters {
    std::atomic<uint64_t> hits{0}, lost{0}, read_errors{0}, write_errors{0}, promotions{0},
        cold_loads{0}, loaded_bytes{0}, demotions{0}, demoted_bytes{0}, abandoned{0},
        drops_full{0}, drops_refused{0}, read_ahead{0};
  };
  Counters counters_;
  LatencyCounts load_us_;
  LatencyCounts demote_us_;

  mutable Mutex mu_;
  CondVar down_changed_;
  CondVar up_changed_;
  CondVar stopped_;
  CondVar idle_;  // nothing is going down
  bool stop_ GUARDED_BY(mu_) = false;
  std::deque<Down> down_ GUARDED_BY(mu_);
  bool writing_ GUARDED_BY(mu_) = false;
  std::deque<Task> up_ GUARDED_BY(mu_);        // for who waits, and chunks of what was begun
  std::deque<Task> up_ahead_ GUARDED_BY(mu_);  // when nobody waits
  std::unordered_map<uint64_t, std::shared_ptr<Job>> jobs_ GUARDED_BY(mu_);  // by version
  std::string last_error_ GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::storage
