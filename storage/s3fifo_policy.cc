#include <algorithm>
#include <deque>
#include <unordered_map>

#include "storage/eviction_policy.h"

namespace moonpool::storage {

namespace {

class S3FifoPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override {
    item->uses = 0;
    const auto ghost = ghosts_.find(item->key_hash);
    if (ghost != ghosts_.end()) {
      ghosts_.erase(ghost);
      Push(kMain, item);
    } else {
      Push(kSmall, item);
    }
  }
  void Access(PolicyItem* item) override {
    item->uses = static_cast<uint8_t>(std::min(item->uses + 1, 3));
  }
  void Remove(PolicyItem* item, bool evicted) override {
    if (evicted && item->queue == kSmall) Remember(item->key_hash);
    Unlink(item);
    if (evicted) queues_[kMain].TakeFront(spared_);
  }
  PolicyItem* Victim() override {
    // Ends: every step evicts, lowers a count, or moves an item out of the small queue.
    for (;;) {
      const uint64_t total = bytes_[kSmall] + bytes_[kMain];
      if (PolicyItem* item = queues_[kSmall].back();
          item != nullptr && (bytes_[kSmall] * 10 >= total || queues_[kMain].empty())) {
        if (item->uses <= 1) return item;
        Unlink(item);
        item->uses = 0;
        Push(kMain, item);
        continue;
      }
      PolicyItem* item = queues_[kMain].back();
      if (item == nullptr) {
        if (spared_.empty()) return nullptr;
        queues_[kMain].TakeFront(spared_);
        continue;
      }
      if (item->uses == 0) return item;
      --item->uses;
      Unlink(item);
      Push(kMain, item);
    }
  }
  // Into the main queue, when the rest of both queues has been looked at or a victim was found.
  void Spare(PolicyItem* item) override {
    Unlink(item);
    Push(kMain, item);
    ItemList::Unlink(item);
    spared_.PushFront(item);
  }
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    ItemList::Replace(item, replacement);
  }

 private:
  enum Queue : uint8_t { kSmall, kMain };

  void Push(Queue queue, PolicyItem* item) {
    item->queue = queue;
    queues_[queue].PushFront(item);
    bytes_[queue] += item->policy_bytes;
    ++items_;
  }
  void Unlink(PolicyItem* item) {
    ItemList::Unlink(item);
    bytes_[item->queue] -= item->policy_bytes;
    --items_;
  }
  // The ghost queue holds as many keys as the cache holds items.
  void Remember(uint64_t key_hash) {
    ghosts_[key_hash] = ++ghost_sequence_;
    ghost_order_.emplace_back(key_hash, ghost_sequence_);
    while (!ghost_order_.empty() && ghost_order_.size() > std::max<uint64_t>(items_, 16)) {
      const auto [hash, sequence] = ghost_order_.front();
      ghost_order_.pop_front();
      const auto ghost = ghosts_.find(hash);
      if (ghost != ghosts_.end() && ghost->second == sequence) ghosts_.erase(ghost);
    }
  }

  ItemList queues_[2];
  ItemList spared_;  // belongs to the main queue, and is counted there
  uint64_t bytes_[2] = {0, 0};
  uint64_t items_ = 0;
  std::unordered_map<uint64_t, uint64_t> ghosts_;  // key hash -> its newest place in the order
  std::deque<std::pair<uint64_t, uint64_t>> ghost_order_;
  uint64_t ghost_sequence_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy() { return std::make_unique<S3FifoPolicy>(); }

}  // namespace moonpool::storage
