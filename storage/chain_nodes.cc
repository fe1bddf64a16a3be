#include "storage/chain_nodes.h"

#include <algorithm>

namespace moonpool::storage {

namespace {

// How far up a chain is looked before whatever is sought counts as found.
constexpr int kMostSteps = 1024;

}  // namespace

void ChainNodes::List::PushBack(NodeIndex index) {
  ChainNode& node = nodes_[index];
  node.previous = back_;
  node.next = kNoNode;
  (back_ == kNoNode ? front_ : nodes_[back_].next) = index;
  back_ = index;
  ++size_;
}

void ChainNodes::List::Unlink(NodeIndex index) {
  ChainNode& node = nodes_[index];
  (node.previous == kNoNode ? front_ : nodes_[node.previous].next) = node.next;
  (node.next == kNoNode ? back_ : nodes_[node.next].previous) = node.previous;
  node.previous = node.next = kNoNode;
  --size_;
}

ChainNodes::ChainNodes() : ghosts_(*this) {}

NodeIndex ChainNodes::Find(uint64_t key_hash) const {
  const Shard& shard = shards_[key_hash >> 32 & (kShards - 1)];
  if (shard.slots.empty()) return kNoNode;
  const size_t mask = shard.slots.size() - 1;
  for (size_t i = key_hash & mask;; i = (i + 1) & mask) {
    const Slot& slot = shard.slots[i];
    if (slot.node == kNoNode) return kNoNode;
    if (slot.tag == static_cast<uint32_t>(key_hash) && (*this)[slot.node].key_hash == key_hash) {
      return slot.node;
    }
  }
}

void ChainNodes::Put(Shard& shard, NodeIndex node, uint64_t key_hash) {
  const size_t mask = shard.slots.size() - 1;
  size_t i = key_hash & mask;
  while (shard.slots[i].node != kNoNode) i = (i + 1) & mask;
  shard.slots[i] = {node, static_cast<uint32_t>(key_hash)};
}

void ChainNodes::Erase(uint64_t key_hash) {
  Shard& shard = ShardOf(key_hash);
  const size_t mask = shard.slots.size() - 1;
  size_t hole = key_hash & mask;
  while ((*this)[shard.slots[hole].node].key_hash != key_hash) hole = (hole + 1) & mask;
  // What follows moves up where it may (D. Knuth, TAOCP 3, 6.4, algorithm R).
  for (size_t i = (hole + 1) & mask; shard.slots[i].node != kNoNode; i = (i + 1) & mask) {
    const size_t home = shard.slots[i].tag & mask;
    if (((i - home) & mask) < ((i - hole) & mask)) continue;
    shard.slots[hole] = shard.slots[i];
    hole = i;
  }
  shard.slots[hole] = Slot();
  --shard.used;
}

NodeIndex ChainNodes::Add(uint64_t key_hash) {
  ForgetSome();
  if (free_.empty()) {
    const size_t first = chunks_.size() * kChunk;
    chunks_.push_back(std::make_unique<ChainNode[]>(kChunk));
    free_.reserve(first + kChunk);
    for (size_t i = kChunk; i > 0; --i) {
      if (first + i - 1 != kNoNode) free_.push_back(static_cast<NodeIndex>(first + i - 1));
    }
  }
  const NodeIndex index = free_.back();
  free_.pop_back();
  ++used_;
  ChainNode& node = (*this)[index];
  node = ChainNode();
  node.key_hash = key_hash;
  node.state = ChainNode::kGhost;
  ghosts_.PushBack(index);

  Shard& shard = ShardOf(key_hash);
  if (++shard.used * 4 > shard.slots.size() * 3) {
    std::vector<Slot> old(std::max<size_t>(shard.slots.size() * 2, 16));
    old.swap(shard.slots);
    for (const Slot& slot : old) {
      if (slot.node != kNoNode) Put(shard, slot.node, slot.tag);
    }
  }
  Put(shard, index, key_hash);
  return index;
}

bool ChainNodes::IsAncestor(NodeIndex ancestor, NodeIndex of) const {
  int steps = 0;
  for (NodeIndex at = of; at != kNoNode; at = (*this)[at].parent) {
    if (at == ancestor || ++steps > kMostSteps) return true;
  }
  return false;
}

NodeIndex ChainNodes::ParentAfter(NodeIndex child, NodeIndex parent) const {
  const ChainNode& node = (*this)[child];
  if (node.parent == parent || node.unchained || child == parent) return node.parent;
  const NodeIndex old = Parent(node);
  if (old == kNoNode) {
    return node.children == 0 || !IsAncestor(child, parent) ? parent : kNoNode;
  }
  if (IsAncestor(parent, old)) return old;  // some between were left out this time
  if (IsAncestor(old, parent) && !IsAncestor(child, parent)) return parent;  // or last time
  return kNoNode;
}

void ChainNodes::SetParent(NodeIndex child, NodeIndex parent) {
  const NodeIndex old = (*this)[child].parent;
  (*this)[child].parent = parent;
  if (parent != kNoNode) ++(*this)[parent].children;
  if (old == kNoNode) return;
  ChainNode& up = (*this)[old];
  if (--up.children == 0 && up.state == ChainNode::kForgotten) Free(old);
}

void ChainNodes::TouchGhost(NodeIndex index) {
  ghosts_.Unlink(index);
  ghosts_.PushBack(index);
}

void ChainNodes::MakeGhost(NodeIndex index) {
  ChainNode& node = (*this)[index];
  node.item = nullptr;
  node.state = ChainNode::kGhost;
  --cached_;
  ghosts_.PushBack(index);
  ForgetSome();
}

void ChainNodes::MakeCached(NodeIndex index, PolicyItem* item, ChainNode::State state) {
  ghosts_.Unlink(index);
  ++cached_;
  (*this)[index].item = item;
  (*this)[index].state = state;
}

void ChainNodes::Free(NodeIndex index) {
  (*this)[index].state = ChainNode::kFree;
  free_.push_back(index);
  --used_;
}

void ChainNodes::ForgetSome() {
  while (ghosts_.size() > std::max(kGhostsPerItem * cached_, kLeastGhosts)) {
    const NodeIndex index = ghosts_.front();
    ghosts_.Unlink(index);
    ChainNode& node = (*this)[index];
    Erase(node.key_hash);
    SetParent(index, kNoNode);
    if (node.children == 0) {
      Free(index);
    } else {
      node.state = ChainNode::kForgotten;
    }
  }
}

}  // namespace moonpool::storage
