#include <algorithm>
#include <array>

#include "storage/eviction_policy.h"

namespace moonpool::storage {

namespace {

class LfuPolicy : public EvictionPolicy {
 public:
  void Insert(PolicyItem* item) override {
    item->uses = 1;
    lists_[1].PushFront(item);
    ++size_;
  }
  void Access(PolicyItem* item) override {
    MoveUp(item, nullptr);
    if (++accesses_ > kAccessesPerItem * size_) Age();
  }
  void Remove(PolicyItem* item, bool evicted) override {
    ItemList::Unlink(item);
    --size_;
    if (evicted) ReturnSpared();
  }
  PolicyItem* Victim() override {
    for (;;) {
      for (ItemList& list : lists_) {
        if (PolicyItem* item = list.back()) return item;
      }
      if (spared_.empty()) return nullptr;
      ReturnSpared();
    }
  }
  // Counts as a use, so that what is pinned for long does not stay in the way.
  void Spare(PolicyItem* item) override { MoveUp(item, &spared_); }
  void Replace(PolicyItem* item, PolicyItem* replacement) override {
    ItemList::Replace(item, replacement);
  }

 private:
  // Counts are halved after this many accesses per item, so that yesterday's favourites leave.
  static constexpr uint64_t kAccessesPerItem = 8;

  // To the next count: into its list, or into `aside` until it returns.
  void MoveUp(PolicyItem* item, ItemList* aside) {
    ItemList::Unlink(item);
    item->uses = static_cast<uint8_t>(std::min<size_t>(item->uses + 1u, lists_.size() - 1));
    (aside != nullptr ? *aside : lists_[item->uses]).PushFront(item);
  }
  void ReturnSpared() {
    while (PolicyItem* item = spared_.back()) {
      ItemList::Unlink(item);
      lists_[item->uses].PushFront(item);
    }
  }
  void Age() {
    accesses_ = 0;
    ReturnSpared();
    for (size_t uses = 2; uses < lists_.size(); ++uses) {
      Relabel(lists_[uses], static_cast<uint8_t>(uses / 2));
      lists_[uses / 2].TakeFront(lists_[uses]);
    }
  }
  static void Relabel(ItemList& list, uint8_t uses) {
    for (PolicyItem* item = list.back(); item != nullptr; item = list.Before(item)) {
      item->uses = uses;
    }
  }

  std::array<ItemList, 64> lists_;
  ItemList spared_;
  uint64_t size_ = 0;
  uint64_t accesses_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLfuPolicy() { return std::make_unique<LfuPolicy>(); }

}  // namespace moonpool::storage
