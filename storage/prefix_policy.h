// `allkeys-prefix`: gives up the tails of chains before their heads, and first those of the
// chains that are least likely to be worth their room.
//
// The keys of a batch are the blocks of one prompt in order: a block is useless without those
// before it, and whoever asks for it asks for those too.  So
//   - only the last cached block of a chain is up for eviction (a leaf of the forest of
//     ChainNodes), and evicting it makes the one before it a leaf;
//   - a block whose predecessor is gone goes first.
// Among the leaves the choice is learned.  Every use of a key is scored by a small model trained
// on whether earlier uses were followed by another in time (ReuseModel), and what keeping a block
// with that score and that age is worth is counted (ReuseTimes).  A victim is the worst of a
// sample of leaves and of what was left over from earlier samples (sampling as in LRB, NSDI 2020;
// what is left over as in Redis's evict.c).  Evicted keys stay known for a while as ghosts (as in
// S3-FIFO and ARC), so that the history of a chain survives its eviction and the model also learns
// from what would have been hits.
//
// Time is counted in batches; a use that no batch announced counts as one.  Nothing depends on
// the wall clock or on true randomness.
//
// Threads: none of its own; callers serialise.
// Costs: see chain_nodes.h and reuse_times.h for memory (80 bytes for each cached key and for
// each ghost, of which there are at most twice as many); a use and a victim take constant time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "storage/chain_nodes.h"
#include "storage/eviction_policy.h"
#include "storage/reuse_model.h"
#include "storage/reuse_times.h"

namespace moonpool::storage {

class PrefixPolicy : public EvictionPolicy {
 public:
  explicit PrefixPolicy(uint64_t seed);

  void Insert(PolicyItem* item) override;
  void Access(PolicyItem* item) override;
  void Remove(PolicyItem* item, bool evicted) override;
  PolicyItem* Victim() override;
  PolicyItem* Any() override;
  void Spare(PolicyItem* item) override;
  void Replace(PolicyItem* item, PolicyItem* replacement) override;
  void Batch(std::span<const uint64_t> key_hashes, BatchKind kind) override;
  bool WantsBatches() const override { return true; }
  size_t Successors(uint64_t key_hash, std::span<uint64_t> out) const override;

 private:
  // The request that a use belongs to.
  struct Request {
    size_t length = 0;  // keys
    size_t fresh = 0;   // of them new
    uint32_t gap = 0;   // ticks since the part that is not new was used; 0: all is new
  };

  void Tick();
  void LinkBehind(NodeIndex index, NodeIndex parent);
  void Place(ChainNode& node, const Request& request, size_t index);
  // A use by a batch or, without one, by itself; the wait begins when the key is cached.
  void Use(NodeIndex index, uint32_t chain_gap);
  void EndWait(ChainNode& node);
  void BeginWait(NodeIndex index);
  uint64_t Random();

  // The states of cached nodes.
  void Unblock(NodeIndex parent);
  void Block(NodeIndex parent);
  void MakeEvictable(NodeIndex index);
  void LeaveState(NodeIndex index);
  void ReturnSpared();

  // What keeping a leaf is worth; less is a better victim.
  float Worth(const ChainNode& node) const;

  ChainNodes nodes_;
  ReuseModel model_;
  ReuseTimes times_;
  std::vector<NodeIndex> leaves_;
  ChainNodes::List spared_;
  static constexpr size_t kLeftOver = 16;
  std::array<NodeIndex, kLeftOver> left_over_{};  // good victims of earlier samples
  std::vector<NodeIndex> batch_;                  // kept for its memory
  uint32_t now_ = 1;
  float inserts_per_tick_ = 1;
  uint32_t inserts_ = 0;  // in this tick
  size_t horizon_ = 0;    // age by which a use must have been followed by another
  uint64_t random_;
};

}  // namespace moonpool::storage
