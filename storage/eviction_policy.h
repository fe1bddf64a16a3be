// Which bulk value goes first when memory is short.
//
// A policy orders items; it neither owns nor frees them.  The same code runs in the server and
// in offline replays.
// Threads: none of its own; callers serialise (see BulkPolicy).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace moonpool::storage {

// What a policy remembers inside the item itself.  The item outlives its stay in the policy.
struct PolicyItem {
  PolicyItem* previous = nullptr;
  PolicyItem* next = nullptr;
  uint64_t key_hash = 0;
  uint64_t policy_bytes = 0;  // what evicting it frees
  uint64_t rank = 0;          // an index or a deadline, for policies that are not lists
  uint16_t group = 0;         // hash of the key's namespace
  uint8_t queue = 0;
  uint8_t uses = 0;
  bool in_policy = false;
  bool cold = false;    // in no policy's order: see BulkPolicy
  bool wanted = false;  // likewise
};

// What a command that names several keys wants with them.
enum class BatchKind : uint8_t {
  kLook,   // whether they are there (KV.MATCH); no use of any
  kRead,   // their values (KV.LOCATE, MGET): a use of each, there or not
  kWrite,  // to store them (KV.ALLOC, MSET): a use of those that were not just read in vain
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual void Insert(PolicyItem* item) = 0;
  virtual void Access(PolicyItem* item) = 0;
  // `evicted`: it made room, as opposed to being deleted; some policies remember that.
  virtual void Remove(PolicyItem* item, bool evicted) = 0;
  // The item to evict next; it stays until Remove().  Null when there is none.
  virtual PolicyItem* Victim() = 0;
  // Some item, found fast; null when there is none.
  virtual PolicyItem* Any() { return Victim(); }
  // The victim cannot go now (pinned, leased): look at it again only after all the others, or, if
  // the policy likes, after one of them was evicted.
  virtual void Spare(PolicyItem* item) = 0;
  // Puts `replacement`, which is not in the policy, where `item` is.
  virtual void Replace(PolicyItem* item, PolicyItem* replacement) = 0;

  // Hashes of the keys of one command in their order, those that are absent among them.  The
  // Access() and Insert() calls that the command causes come afterwards.
  virtual void Batch(std::span<const uint64_t> /*key_hashes*/, BatchKind /*kind*/) {}
  // False: Batch() does nothing, so callers need not gather hashes.
  virtual bool WantsBatches() const { return false; }
  // The likeliest next keys of the chain that `key_hash` is part of, nearest first; returns how
  // many it put into `out`.
  virtual size_t Successors(uint64_t /*key_hash*/, std::span<uint64_t> /*out*/) const { return 0; }
};

// Items linked through their own pointers; front is the newest.
class ItemList {
 public:
  ItemList() { root_.previous = root_.next = &root_; }
  ItemList(const ItemList&) = delete;
  ItemList& operator=(const ItemList&) = delete;

  bool empty() const { return root_.next == &root_; }
  PolicyItem* back() { return empty() ? nullptr : root_.previous; }
  // The item in front of `item`, towards the newest; null at the end.
  PolicyItem* Before(PolicyItem* item) {
    return item->previous == &root_ ? nullptr : item->previous;
  }
  void PushFront(PolicyItem* item);
  void PushBack(PolicyItem* item);
  static void Unlink(PolicyItem* item);
  // EvictionPolicy::Replace for policies that keep their items in lists.
  static void Replace(PolicyItem* item, PolicyItem* replacement);
  // Moves everything in `other` in front of what is here.
  void TakeFront(ItemList& other);

 private:
  PolicyItem root_;
};

// Least recently used first.
std::unique_ptr<EvictionPolicy> MakeLruPolicy();
// Least frequently used first, oldest first among equals; counts are halved as accesses go by.
std::unique_ptr<EvictionPolicy> MakeLfuPolicy();
// S3-FIFO (J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): new
// items pass through a small queue, so that a scan does not flush what is used again.
std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy();
// Learns which chains of keys come back, and gives up their tails first (see prefix_policy.h).
// `seed`: of the samples it draws.
std::unique_ptr<EvictionPolicy> MakePrefixPolicy(uint64_t seed = 1);
// Any item.
std::unique_ptr<EvictionPolicy> MakeRandomPolicy();
// The smallest `rank` first, which the caller sets before Insert(): the time of expiry.
std::unique_ptr<EvictionPolicy> MakeTtlPolicy();

}  // namespace moonpool::storage
