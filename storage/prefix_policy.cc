#include "storage/prefix_policy.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moonpool::storage {

namespace {

constexpr size_t kSample = 24;
// Longer batches are cut: so many ghosts are never forgotten while they are being looked at.
constexpr size_t kLongestBatch = 8192;
// Uses in time are those within so many turnovers of the cache, if it were a queue.
constexpr float kTurnovers = 4;
// But no longer than a third of the time since the start, so that there are answers early on.
constexpr uint32_t kStartShare = 3;
constexpr uint32_t kShortest = 16;
constexpr float kRateKept = 0.99f;
// Of a request's keys, about so many are learned from: they share their fate.
constexpr float kLearnedPerRequest = 8;
constexpr float kOrphanWorth = 0.1f;
constexpr size_t kSparedReturned = 4;

uint8_t GapBucket(uint32_t ticks) {
  return static_cast<uint8_t>(std::min<int>(static_cast<int>(std::bit_width(ticks)) + 1, 23));
}

}  // namespace

PrefixPolicy::PrefixPolicy(uint64_t seed) : spared_(nodes_), random_(seed * 2 + 1) {}

uint64_t PrefixPolicy::Random() {  // xorshift64*, see fast_random.h
  random_ ^= random_ >> 12;
  random_ ^= random_ << 25;
  random_ ^= random_ >> 27;
  return random_ * 2685821657736338717ull;
}

// --- time and learning ---------------------------------------------------------------------------

void PrefixPolicy::Tick() {
  ++now_;
  inserts_per_tick_ =
      kRateKept * inserts_per_tick_ + (1 - kRateKept) * static_cast<float>(inserts_);
  inserts_ = 0;
  const float ticks =
      kTurnovers * static_cast<float>(nodes_.cached()) / std::max(inserts_per_tick_, 0.01f);
  const uint32_t most = now_ / kStartShare + kShortest;
  const size_t age = ReuseTimes::AgeOf(static_cast<uint32_t>(
      std::clamp(ticks, static_cast<float>(kShortest), static_cast<float>(most))));
  horizon_ = std::min(age + 1, ReuseTimes::kAges - 1);
  times_.Advance(now_, horizon_, [this](NodeIndex index, uint32_t ticket) {
    ChainNode& node = nodes_[index];
    if (node.state == ChainNode::kFree || node.state == ChainNode::kForgotten || !node.waiting ||
        node.ticket != ticket) {
      return;
    }
    if (Random() % (1u << node.length / 2) < kLearnedPerRequest) model_.Learn(node, 0);
  });
}

void PrefixPolicy::EndWait(ChainNode& node) {
  if (!node.waiting) return;
  node.waiting = false;
  times_.End(node.ticket, now_);
  if (now_ - node.last_use < ReuseTimes::AgeStart(horizon_) &&
      Random() % (1u << node.length / 2) < kLearnedPerRequest) {
    model_.Learn(node, std::exp(-static_cast<float>(now_ - node.last_use) /
                                static_cast<float>(ReuseTimes::AgeStart(horizon_))));
  }
}

void PrefixPolicy::BeginWait(NodeIndex index) {
  ChainNode& node = nodes_[index];
  node.score = model_.Score(node);
  node.ticket = times_.Begin(node.score, now_, index);
  node.waiting = true;
}

void PrefixPolicy::Use(NodeIndex index, uint32_t chain_gap) {
  ChainNode& node = nodes_[index];
  EndWait(node);
  const bool before = node.uses > 0;
  const uint32_t gap = before ? now_ - node.last_use : chain_gap;
  const auto half_life = static_cast<float>(ReuseTimes::AgeStart(horizon_));
  node.heat = 1 + (before ? node.heat * std::exp2(-static_cast<float>(gap) / half_life) : 0);
  node.gap = before || chain_gap > 0 ? GapBucket(gap) : 0;
  node.uses = static_cast<uint8_t>(std::min(node.uses + 1, 255));
  node.last_use = now_;
  if (node.state == ChainNode::kGhost) return nodes_.TouchGhost(index);
  BeginWait(index);
}

// --- batches -------------------------------------------------------------------------------------

void PrefixPolicy::LinkBehind(NodeIndex index, NodeIndex parent) {
  ChainNode& node = nodes_[index];
  const NodeIndex old = node.parent;
  const NodeIndex next = nodes_.ParentAfter(index, parent);
  if (next != old) {
    const bool blocks = node.item != nullptr && node.state != ChainNode::kSpared;
    if (blocks && old != kNoNode) Unblock(old);
    nodes_.SetParent(index, next);
    if (blocks && next != kNoNode) Block(next);
    if (next == kNoNode) node.unchained = true;
  }
  if (next == kNoNode) return;
  node.depth = static_cast<uint16_t>(std::min(nodes_[next].depth + 1, UINT16_MAX));
  // The majority vote of R. Boyer and J. Moore, over whom this parent is followed by.
  ChainNode& up = nodes_[next];
  if (up.successor == index) {
    up.votes = static_cast<uint8_t>(std::min(up.votes + 1, 15));
  } else if (up.votes == 0) {
    up.successor = index;
    up.votes = 1;
  } else {
    --up.votes;
  }
}

void PrefixPolicy::Place(ChainNode& node, const Request& request, size_t index) {
  node.from_end = ReuseModel::Bucket(request.length - 1 - index);
  node.fresh = ReuseModel::Bucket(request.fresh);
  node.length = ReuseModel::Bucket(request.length);
}

void PrefixPolicy::Batch(std::span<const uint64_t> key_hashes, BatchKind kind) {
  if (key_hashes.empty()) return;
  if (key_hashes.size() > kLongestBatch) key_hashes = key_hashes.first(kLongestBatch);
  Request request;
  batch_.clear();
  bool counted_all = true;  // writing what was read in vain is part of the same request
  for (const uint64_t hash : key_hashes) {
    const NodeIndex index = nodes_.Find(hash);
    batch_.push_back(index);
    counted_all = counted_all && index != kNoNode && nodes_[index].announced;
    if (index != kNoNode && nodes_[index].state == ChainNode::kGhost) nodes_.TouchGhost(index);
  }
  if (kind == BatchKind::kRead || (kind == BatchKind::kWrite && !counted_all)) Tick();
  const auto is_new = [this](NodeIndex index) {
    return index == kNoNode || nodes_[index].uses == 0;
  };
  const size_t known =
      static_cast<size_t>(std::find_if(batch_.begin(), batch_.end(), is_new) - batch_.begin());
  request.length = batch_.size();
  request.fresh = batch_.size() - known;
  // All prompts may share a start; how long ago that was used says nothing.
  if (known > 0) request.gap = now_ - nodes_[batch_[known - 1]].last_use;
  for (size_t i = 0; i < batch_.size(); ++i) {
    const bool created = batch_[i] == kNoNode;
    if (created) {
      const NodeIndex twin = nodes_.Find(key_hashes[i]);  // the key may be named twice
      batch_[i] = twin != kNoNode ? twin : nodes_.Add(key_hashes[i]);
    }
    ChainNode& node = nodes_[batch_[i]];
    if (i > 0) LinkBehind(batch_[i], batch_[i - 1]);
    if (created) {
      const NodeIndex parent = nodes_.Parent(node);
      if (parent != kNoNode) {
        const ChainNode& up = nodes_[parent];
        const int later = i == known || i == 0 ? 1 : 0;
        node.generation = static_cast<uint8_t>(std::min(up.generation + later, 255));
      }
    }
    if (kind == BatchKind::kLook) {
      EndWait(node);  // while the node still says what it was like when the wait began
      Place(node, request, i);
      node.placed = true;
      continue;
    }
    const bool counted = kind == BatchKind::kWrite && node.announced;
    if (!node.placed && !counted) Place(node, request, i);
    node.placed = false;
    if (counted) continue;
    Use(batch_[i], request.gap);
    node.announced = true;
  }
}

size_t PrefixPolicy::Successors(uint64_t key_hash, std::span<uint64_t> out) const {
  size_t found = 0;
  NodeIndex at = nodes_.Find(key_hash);
  while (at != kNoNode && found < out.size()) {
    const NodeIndex next = nodes_[at].successor;
    if (next == kNoNode || nodes_[next].parent != at ||
        nodes_[next].state == ChainNode::kForgotten || nodes_[next].state == ChainNode::kFree) {
      break;
    }
    out[found++] = nodes_[next].key_hash;
    at = next;
  }
  return found;
}

// --- items ---------------------------------------------------------------------------------------

void PrefixPolicy::Insert(PolicyItem* item) {
  // Another key with the same hash may be there: this one is then known by another number.
  uint64_t hash = item->key_hash;
  NodeIndex index;
  while ((index = nodes_.Find(hash)) != kNoNode && nodes_[index].item != nullptr) ++hash;
  if (index == kNoNode) index = nodes_.Add(hash);
  ChainNode& node = nodes_[index];
  node.group = static_cast<uint8_t>(item->group);
  node.size = static_cast<uint8_t>(
      std::min<int>(static_cast<int>(std::bit_width(item->policy_bytes >> 14)), 15));
  item->rank = index;
  ++inserts_;
  if (!node.announced) {
    Tick();
    Use(index, 0);
  }
  nodes_.MakeCached(index, item, ChainNode::kInner);
  node.announced = false;
  BeginWait(index);
  if (node.parent != kNoNode) Block(node.parent);
  if (node.blocking == 0) MakeEvictable(index);
}

void PrefixPolicy::Access(PolicyItem* item) {
  const auto index = static_cast<NodeIndex>(item->rank);
  ChainNode& node = nodes_[index];
  if (node.announced) {
    node.announced = false;
    return;
  }
  Tick();
  Use(index, 0);
}

void PrefixPolicy::Remove(PolicyItem* item, bool evicted) {
  const auto index = static_cast<NodeIndex>(item->rank);
  const ChainNode& node = nodes_[index];
  const NodeIndex parent = node.parent;
  const bool blocked = node.state != ChainNode::kSpared;
  LeaveState(index);
  if (parent != kNoNode && blocked) Unblock(parent);
  nodes_.MakeGhost(index);
  if (!evicted) return;
  for (size_t i = 0; i < kSparedReturned && spared_.front() != kNoNode; ++i) ReturnSpared();
}

void PrefixPolicy::Replace(PolicyItem* item, PolicyItem* replacement) {
  replacement->key_hash = item->key_hash;
  replacement->policy_bytes = item->policy_bytes;
  replacement->group = item->group;
  replacement->rank = item->rank;
  nodes_[static_cast<NodeIndex>(item->rank)].item = replacement;
}

// --- who may go ----------------------------------------------------------------------------------

void PrefixPolicy::MakeEvictable(NodeIndex index) {
  ChainNode& node = nodes_[index];
  node.state = ChainNode::kLeaf;
  node.previous = static_cast<NodeIndex>(leaves_.size());
  leaves_.push_back(index);
}

void PrefixPolicy::LeaveState(NodeIndex index) {
  ChainNode& node = nodes_[index];
  switch (node.state) {
    case ChainNode::kLeaf:
      leaves_[node.previous] = leaves_.back();
      nodes_[leaves_.back()].previous = node.previous;
      leaves_.pop_back();
      node.previous = kNoNode;
      break;
    case ChainNode::kSpared:
      spared_.Unlink(index);
      break;
    default:
      break;
  }
  node.state = ChainNode::kInner;
}

void PrefixPolicy::Block(NodeIndex parent) {
  ChainNode& node = nodes_[parent];
  if (++node.blocking > 1) return;
  if (node.state == ChainNode::kLeaf) LeaveState(parent);
}

void PrefixPolicy::Unblock(NodeIndex parent) {
  ChainNode& node = nodes_[parent];
  if (--node.blocking > 0 || node.state != ChainNode::kInner) return;
  MakeEvictable(parent);
  // Likely as good a victim as the child was.
  if (left_over_[0] == kNoNode) left_over_[0] = parent;
}

void PrefixPolicy::Spare(PolicyItem* item) {
  const auto index = static_cast<NodeIndex>(item->rank);
  ChainNode& node = nodes_[index];
  const bool blocked = node.state != ChainNode::kSpared;
  LeaveState(index);
  node.state = ChainNode::kSpared;
  spared_.PushBack(index);
  if (blocked && node.parent != kNoNode) Unblock(node.parent);
}

void PrefixPolicy::ReturnSpared() {
  const NodeIndex index = spared_.front();
  LeaveState(index);
  const ChainNode& node = nodes_[index];
  if (node.parent != kNoNode) Block(node.parent);
  if (node.blocking == 0) MakeEvictable(index);
}

float PrefixPolicy::Worth(const ChainNode& node) const {
  const NodeIndex parent = nodes_.Parent(node);
  const uint32_t age = now_ - node.last_use;
  const float worth = times_.Worth(node.score, age);
  // What this very request used stays: the rest of its chain may be about to come.
  if (age == 0) return worth + 1;
  return parent != kNoNode && nodes_[parent].item == nullptr ? kOrphanWorth * worth : worth;
}

PolicyItem* PrefixPolicy::Any() {
  while (leaves_.empty()) {
    if (spared_.front() == kNoNode) return nullptr;
    ReturnSpared();
  }
  return nodes_[leaves_.back()].item;
}

PolicyItem* PrefixPolicy::Victim() {
  if (Any() == nullptr) return nullptr;

  struct Candidate {
    float worth;
    uint32_t age;
    NodeIndex index;
    bool operator<(const Candidate& other) const {
      if (worth != other.worth) return worth < other.worth;
      return age != other.age ? age > other.age : index < other.index;
    }
    bool operator==(const Candidate& other) const { return index == other.index; }
  };
  std::array<Candidate, kSample + kLeftOver> candidates;
  size_t count = 0;
  const auto add = [&](NodeIndex index) {
    const ChainNode& node = nodes_[index];
    candidates[count++] = {Worth(node), now_ - node.last_use, index};
  };
  if (leaves_.size() <= kSample) {
    for (const NodeIndex index : leaves_) add(index);
  } else {
    for (const NodeIndex index : left_over_) {
      if (index != kNoNode && nodes_[index].state == ChainNode::kLeaf) add(index);
    }
    for (size_t i = 0; i < kSample; ++i) add(leaves_[Random() % leaves_.size()]);
  }
  std::sort(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(count));
  count = static_cast<size_t>(
      std::unique(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(count)) -
      candidates.begin());
  left_over_.fill(kNoNode);
  // The first place is for the one that the eviction uncovers.
  for (size_t i = 0; i < std::min(count, kLeftOver - 1); ++i) {
    left_over_[i + 1] = candidates[i].index;
  }
  return nodes_[candidates[0].index].item;
}

std::unique_ptr<EvictionPolicy> MakePrefixPolicy(uint64_t seed) {
  return std::make_unique<PrefixPolicy>(seed);
}

}  // namespace moonpool::storage
