// The bulk values of one tenant in the order in which they would be evicted: an order of its own for
// each partition, by the slot that the value carries.
//
// Values that came up cold from the SSD (read ahead, or for one reader) are in no policy until they
// are asked for again: they queue up beside it, oldest first, and take no more than a share of what
// the partition has in memory.  Loads replace them once they have half of that share; whoever else
// needs memory takes theirs only above it.  So a scan over the SSD recycles its own extents, and
// the extents that clients write to are recycled by their writes: between the two limits neither
// takes regions from the other.
//
// Values in CXL memory are in no policy either, but in a queue by the time they came there or were
// read last: policies put the worst there first, so this is the policies' order as well.  One that
// is read there for the second time is wanted in DRAM, or as its partition's admission says.
//
// Values on a device are in a queue of that device: who came or was read last leaves last.
//
// Threads: any; mu_ is a leaf lock.  Owns the policies, not the values: a value is linked while an
// entry of the keyspace refers to it (under volatile-*: one with an expiry), and unlinked before
// that entry lets go of it.  One lock for all partitions: a value may change over between two looks.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <string>

#include "protocol/mutex.h"
#include "storage/bulk_value.h"
#include "storage/eviction_policy.h"
#include "storage/maxmemory_policy.h"
#include "storage/partitions.h"
#include "storage/read_ahead_window.h"

namespace moonpool::storage {

// The policy for bulk values, empty.
std::unique_ptr<EvictionPolicy> MakeEvictionPolicy(MaxmemoryPolicy policy);

class BulkPolicy {
 public:
  // With the default partition alone.
  explicit BulkPolicy(MaxmemoryPolicy policy) { queues_[0].policy = MakeEvictionPolicy(policy); }

  // Starts over with an empty policy, as for a partition that is new; the keyspace links its values
  // again (Keyspace::Relink).
  void Change(MaxmemoryPolicy policy, uint8_t partition = 0);
  void SetAdmission(uint8_t partition, Admission admission);
  // No value of the keyspace is in it any more.
  void Close(uint8_t partition);
  // Where the value is to be linked from now on; it is not linked any more.  With the stripe of its
  // owner locked.
  void Assign(BulkValue* value, uint8_t partition);

  // `expiry_ms`: when the value's key expires, for the policies that look at it; 0: never.
  // Nothing when it is linked already.
  // `group`: hash of the key's namespace.
  void Link(BulkValue* value, int64_t expiry_ms, uint16_t group = 0, bool cold = false);
  void Unlink(BulkValue* value, bool evicted);  // nothing when it is not linked
  void Replace(BulkValue* value, BulkValue* replacement);
  // Values just read, in order.  The caller holds a reference to each; one that was unlinked
  // meanwhile is passed over.  Returns how many of them had been read ahead.  `counts`: what
  // NoteBatch() said of the command they were read by.
  size_t Touch(std::span<BulkValue* const> values, bool counts = true);
  // The keys of one command in their order, before its Link() and Touch().  Costs nothing while
  // the policy does not care or nothing was ever linked, or with a single key; whoever
  // would gather the hashes for this alone asks first.  False: there are more batches than the
  // policy is to learn from, and reading the values of this one is no use to it either.
  bool wants_batches() const { return wants_batches_.load(std::memory_order_relaxed); }
  // `partitions`: of the keys, in their order; none: all are of the default one.  Each partition
  // learns from its own keys.
  bool NoteBatch(std::span<const uint64_t> key_hashes, BatchKind kind,
                 std::span<const uint8_t> partitions = {});
  // How many keys a second a policy learns from at most, when they are only read; 0: any number.
  // Of more it takes a sample of the commands, so that learning costs no more than so much.
  void set_learn_rate(uint64_t keys_s);
  // See EvictionPolicy::Successors.
  size_t Successors(uint64_t key_hash, std::span<uint64_t> out, uint8_t partition = 0);
  ReadAheadWindow& read_ahead() { return read_ahead_; }

  enum class Among : uint8_t {
    kPolicy,
    kCold,  // those that came up cold
    kCxl,   // those in CXL memory
    kGpu,   // those on one device; the two first are of DRAM
  };
  // The next victim of a partition, pinned; empty when there is none.  It stays linked.
  ValueRef Victim(uint8_t partition = 0, Among among = Among::kPolicy, size_t device = 0);
  void Spare(const ValueRef& value);
  // Whether cold values go before the others.  `load`: for one that comes up.
  bool ColdFirst(uint8_t partition, bool load);
  // Values in CXL memory that are wanted in DRAM.  TakeWanted(): the one that waits longest; it
  // stays linked, wanted no more.
  bool any_wanted() const { return wanted_.load(std::memory_order_relaxed) > 0; }
  ValueRef TakeWanted();
  // Reads of values in CXL memory.
  uint64_t cxl_hits() const { return cxl_hits_.load(std::memory_order_relaxed); }
  // And of values on devices.
  uint64_t gpu_hits() const { return gpu_hits_.load(std::memory_order_relaxed); }
  // How much of a partition may be cold while others want memory.
  void set_cold_share(double share) { cold_share_.store(share, std::memory_order_relaxed); }

 private:
  struct Queue {
    std::unique_ptr<EvictionPolicy> policy;  // null: there is no such partition
    Admission admission = Admission::kSecondRead;
    bool learns = false;  // it wants batches, and something was ever linked
    ItemList cold;
    uint64_t cold_bytes = 0;
    uint64_t bytes = 0;  // of all that is linked, in DRAM
    ItemList cxl;
    ItemList wanted;  // in CXL memory as well
    std::array<ItemList, kMaxDevices> gpu;
  };
  void Enter(Queue& queue, BulkValue* value, bool cold) REQUIRES(mu_);
  void Leave(BulkValue* value, bool evicted) REQUIRES(mu_);
  // The queue of a value that is in no policy because of where it is; null: it is in DRAM.
  static ItemList* OutsideQueue(Queue& queue, const BulkValue& value);
  void TouchInCxl(BulkValue* value, bool keeps, Admission admission) REQUIRES(mu_);
  bool LearnsNow(size_t keys);
  // Unlinks all of it.
  void Empty(Queue& queue) REQUIRES(mu_);
  void SeeWhoLearns() REQUIRES(mu_);
  Queue& QueueOf(const BulkValue& value) REQUIRES(mu_);

  ReadAheadWindow read_ahead_;
  std::atomic<double> cold_share_{0.1};
  std::atomic<uint64_t> wanted_{0};
  std::atomic<uint64_t> cxl_hits_{0};
  std::atomic<uint64_t> gpu_hits_{0};
  Mutex mu_;
  std::array<Queue, Partitions::kSlots> queues_ GUARDED_BY(mu_);
  // What wants_batches() says: some queue learns.
  std::atomic<bool> wants_batches_{false};
  std::atomic<int64_t> learn_ns_{0};        // a key's share of the time; 0: no limit
  std::atomic<int64_t> learned_until_{0};   // steady clock: what was learned from took until then
};

}  // namespace moonpool::storage
