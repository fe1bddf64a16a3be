// What the prefix policy remembers of keys, cached ones and ghosts: who comes after whom, and how
// each was used.
//
// A node stands for one key.  Its parent is the key that stood before it in the batches; a key
// that stands behind different keys at different times belongs to no chain and has none.  The
// parents form a forest: ParentAfter() refuses what would close a circle.
//
// Threads: none of its own; the policy's callers serialise.
// Memory: 64 bytes a node and at most 16 in the index.  Ghosts are forgotten, the one asked for
// least recently first, above max(2 x cached keys, 16,384); a forgotten key that others still
// have as their parent keeps its node, without the key, until they let go of it: at most one
// for each other node.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "storage/eviction_policy.h"

namespace moonpool::storage {

using NodeIndex = uint32_t;
inline constexpr NodeIndex kNoNode = 0;

struct ChainNode {
  enum State : uint8_t {
    kFree,
    kForgotten,  // only its children keep it
    kGhost,
    kInner,   // cached, and so is a child of it
    kLeaf,    // cached, may be evicted
    kSpared,  // cached, set aside while others are looked at
  };

  uint64_t key_hash = 0;
  PolicyItem* item = nullptr;  // null: not cached
  NodeIndex parent = kNoNode;
  NodeIndex successor = kNoNode;  // the likeliest child; of use only while `parent` of it is us
  uint32_t children = 0;
  uint32_t blocking = 0;         // children that are cached and not spared: they go before this one
  NodeIndex previous = kNoNode;  // in the list of its state; of a leaf: its place
  NodeIndex next = kNoNode;
  uint32_t last_use = 0;  // the policy's clock
  uint32_t ticket = 0;    // of ReuseTimes
  float heat = 0;         // uses, older ones counting less and less

  // As of the last use; buckets are ReuseModel's.
  uint16_t depth = 0;  // keys before this one
  uint8_t uses = 0;
  uint8_t generation = 0;    // how many requests wrote the chain up to here
  uint8_t gap = 0;           // bucket of the time since the use before; 0: there was none
  uint8_t group = 0;         // the key's namespace, and
  uint8_t size = 0;          // bucket of the bytes, when it was cached last
  uint8_t score = 0;         // class of ReuseTimes
  uint8_t from_end : 4 = 0;  // buckets: keys of the request behind this one,
  uint8_t fresh : 4 = 0;     // keys of the request that were new,
  uint8_t length : 4 = 0;    // all keys of the request
  uint8_t votes : 4 = 0;     // for `successor`
  State state : 3 = kFree;
  bool announced : 1 = false;  // a batch counted the use that the next access will report
  bool placed : 1 = false;     // a look told from_end, fresh and length
  bool unchained : 1 = false;  // stood behind different keys
  bool waiting : 1 = false;    // `ticket` is valid
};
static_assert(sizeof(ChainNode) == 64);

class ChainNodes {
 public:
  // Nodes in the order in which they came, linked through themselves.
  class List {
   public:
    explicit List(ChainNodes& nodes) : nodes_(nodes) {}
    void PushBack(NodeIndex index);
    void Unlink(NodeIndex index);
    NodeIndex front() const { return front_; }
    size_t size() const { return size_; }

   private:
    ChainNodes& nodes_;
    NodeIndex front_ = kNoNode;
    NodeIndex back_ = kNoNode;
    size_t size_ = 0;
  };

  ChainNodes();

  ChainNode& operator[](NodeIndex index) { return chunks_[index / kChunk][index % kChunk]; }
  const ChainNode& operator[](NodeIndex index) const {
    return chunks_[index / kChunk][index % kChunk];
  }
  NodeIndex Find(uint64_t key_hash) const;
  // A new ghost.  REQUIRES: Find() found none.
  NodeIndex Add(uint64_t key_hash);

  // `parent` stood before `child` in a batch.  What the child's parent should be then: `parent`,
  // the one it has (which may be the right one even so: batches may leave out keys), or none,
  // when the two contradict each other or would close a circle.
  NodeIndex ParentAfter(NodeIndex child, NodeIndex parent) const;
  void SetParent(NodeIndex child, NodeIndex parent);
  // The parent while it is worth the name; kNoNode when there is none or it was forgotten.
  NodeIndex Parent(const ChainNode& node) const {
    return node.parent != kNoNode && (*this)[node.parent].state != ChainNode::kForgotten
               ? node.parent
               : kNoNode;
  }

  // A ghost was asked for; a cached node becomes a ghost, or a ghost a cached node (in `state`).
  void TouchGhost(NodeIndex index);
  void MakeGhost(NodeIndex index);
  void MakeCached(NodeIndex index, PolicyItem* item, ChainNode::State state);

  size_t cached() const { return cached_; }
  size_t ghosts() const { return ghosts_.size(); }
  size_t size() const { return used_; }  // nodes, forgotten parents among them

 private:
  static constexpr size_t kChunk = 4096;
  static constexpr size_t kShards = 64;  // of the index, so that growing one is short
  static constexpr size_t kLeastGhosts = 16384;
  static constexpr size_t kGhostsPerItem = 2;

  // Open addressing with linear probing.
  struct Slot {
    NodeIndex node = kNoNode;
    uint32_t tag = 0;  // the low half of the hash
  };
  struct Shard {
    std::vector<Slot> slots;
    size_t used = 0;
  };

  Shard& ShardOf(uint64_t key_hash) { return shards_[key_hash >> 32 & (kShards - 1)]; }
  static void Put(Shard& shard, NodeIndex node, uint64_t key_hash);
  void Erase(uint64_t key_hash);
  void Free(NodeIndex index);
  void ForgetSome();
  bool IsAncestor(NodeIndex ancestor, NodeIndex of) const;

  std::vector<std::unique_ptr<ChainNode[]>> chunks_;
  std::vector<NodeIndex> free_;
  std::array<Shard, kShards> shards_;
  List ghosts_;
  size_t cached_ = 0;
  size_t used_ = 0;
};

}  // namespace moonpool::storage
