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

// `rank` is the item's place in the vector.
class RandomPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override {
    item->rank = items_.size();
    items_.push_back(item);
  }
  void Access(PolicyItem*) override {}
  void Remove(PolicyItem* item, bool) override {
    items_.back()->rank = item->rank;
    items_[item->rank] = items_.back();
    items_.pop_back();
  }
  PolicyItem* Victim() override {
    return items_.empty() ? nullptr : items_[random_() % items_.size()];
  }
  void Spare(PolicyItem*) override {}
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    replacement->key_hash = item->key_hash;
    replacement->policy_bytes = item->policy_bytes;
    replacement->rank = item->rank;
    items_[item->rank] = replacement;
  }

 private:
  std::vector<PolicyItem*> items_;
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
