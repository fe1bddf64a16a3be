#include "storage/eviction_policy.h"

#include <random>
#include <set>
#include <utility>
#include <vector>

namespace moonpool::storage {

void ItemList::PushFront(PolicyItem* item) {
  item->previous = &root_;
  item->next = root_.next;
  root_.next->previous = item;
  root_.next = item;
}

void ItemList::PushBack(PolicyItem* item) {
  item->next = &root_;
  item->previous = root_.previous;
  root_.previous->next = item;
  root_.previous = item;
}

void ItemList::Unlink(PolicyItem* item) {
  item->previous->next = item->next;
  item->next->previous = item->previous;
  item->previous = item->next = nullptr;
}

void ItemList::Replace(PolicyItem* item, PolicyItem* replacement) {
  replacement->previous = item->previous;
  replacement->next = item->next;
  replacement->previous->next = replacement;
  replacement->next->previous = replacement;
  replacement->key_hash = item->key_hash;
  replacement->policy_bytes = item->policy_bytes;
  replacement->rank = item->rank;
  replacement->group = item->group;
  replacement->queue = item->queue;
  replacement->uses = item->uses;
  item->previous = item->next = nullptr;
}

void ItemList::TakeFront(ItemList& other) {
  if (other.empty()) return;
  PolicyItem* first = other.root_.next;
  PolicyItem* last = other.root_.previous;
  last->next = root_.next;
  root_.next->previous = last;
  root_.next = first;
  first->previous = &root_;
  other.root_.previous = other.root_.next = &other.root_;
}

namespace {

class LruPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override { list_.PushFront(item); }
  void Access(PolicyItem* item) override {
    ItemList::Unlink(item);
    list_.PushFront(item);
  }
  void Remove(PolicyItem* item, bool) override { ItemList::Unlink(item); }
  PolicyItem* Victim() override { return list_.back(); }
  void Spare(PolicyItem* item) override { Access(item); }
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    ItemList::Replace(item, replacement);
  }

 private:
  ItemList list_;
};

// `rank` is the item's place in the vector; those before spared_ wait for the end of the round.
class RandomPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override {
    items_.push_back(item);
    Place(item, items_.size() - 1);
  }
  void Access(PolicyItem*) override {}
  void Remove(PolicyItem* item, bool evicted) override {
    uint64_t hole = item->rank;
    if (hole < spared_) {
      Place(items_[--spared_], hole);
      hole = spared_;
    }
    if (hole + 1 != items_.size()) Place(items_.back(), hole);
    items_.pop_back();
    if (evicted) spared_ = 0;
  }
  PolicyItem* Victim() override {
    if (spared_ == items_.size()) spared_ = 0;
    return items_.empty() ? nullptr : items_[spared_ + random_() % (items_.size() - spared_)];
  }
  void Spare(PolicyItem* item) override {
    if (item->rank < spared_) return;
    Place(items_[spared_], item->rank);
    Place(item, spared_++);
  }
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    replacement->key_hash = item->key_hash;
    replacement->policy_bytes = item->policy_bytes;
    replacement->group = item->group;
    Place(replacement, item->rank);
  }

 private:
  void Place(PolicyItem* item, uint64_t rank) {
    items_[rank] = item;
    item->rank = rank;
  }

  std::vector<PolicyItem*> items_;
  size_t spared_ = 0;
  std::minstd_rand random_;
};

class TtlPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override { items_.emplace(item->rank, item); }
  void Access(PolicyItem*) override {}
  void Remove(PolicyItem* item, bool) override {
    items_.erase({item->rank, item});
    spared_.erase({item->rank, item});
  }
  PolicyItem* Victim() override {
    if (items_.empty()) items_.swap(spared_);
    return items_.empty() ? nullptr : items_.begin()->second;
  }
  void Spare(PolicyItem* item) override {
    if (items_.erase({item->rank, item}) == 1) spared_.emplace(item->rank, item);
  }
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    replacement->key_hash = item->key_hash;
    replacement->policy_bytes = item->policy_bytes;
    replacement->group = item->group;
    replacement->rank = item->rank;
    Remove(item, false);
    Insert(replacement);
  }

 private:
  std::set<std::pair<uint64_t, PolicyItem*>> items_;
  std::set<std::pair<uint64_t, PolicyItem*>> spared_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLruPolicy() { return std::make_unique<LruPolicy>(); }

std::unique_ptr<EvictionPolicy> MakeRandomPolicy() { return std::make_unique<RandomPolicy>(); }

std::unique_ptr<EvictionPolicy> MakeTtlPolicy() { return std::make_unique<TtlPolicy>(); }

}  // namespace moonpool::storage
