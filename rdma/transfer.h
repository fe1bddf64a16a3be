// A batch of values to be moved, and what became of each.
//
// A server's value is checked: after its bytes its generation is read, and compared.
// Threads: one at a time.  The pieces' memory, and the keys, stay until the transfer is done.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "rdma/registration.h"

namespace moonpool::rdma {

class Lane;

// A run of local memory.  Without keys it is not registered: its bytes go through staging memory,
// as those of all pieces of the item then, none of which may be PeerMemory.
struct LocalPiece {
  char* data = nullptr;
  uint64_t length = 0;
  const SliceKeys* keys = nullptr;
};

struct TransferItem {
  uint32_t remote = 0;  // number of the region or buffer
  uint64_t offset = 0;
  uint64_t length = 0;
  std::span<const LocalPiece> pieces;  // at least `length` bytes together
  // Of a server's value: where its generation is, and what it must be.
  bool checked = false;
  uint32_t slot = 0;
  uint64_t generation = 0;
};

enum class Outcome : uint8_t {
  kPending,
  kDone,
  kChanged,      // the generation is another: the bytes are nobody's
  kNotThere,     // the other side does not know that region (any more), or refuses it
  kUnreachable,  // no lane is left, or the deadline passed
};

class Transfer {
 public:
  enum class Direction : uint8_t { kRead, kWrite };
  Transfer(Direction direction, std::vector<TransferItem> items)
      : direction_(direction), items_(std::move(items)), states_(items_.size()) {}
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  bool done() const { return open_items_ == 0; }
  Direction direction() const { return direction_; }
  const std::vector<TransferItem>& items() const { return items_; }
  Outcome outcome(size_t item) const { return states_[item].outcome; }
  // Of the first thing that went wrong, if any did.
  const std::string& error() const { return error_; }

 private:
  friend class TransferEngine;

  // A run of remote bytes and the local pieces they belong to; of one item, or of several whose
  // values lie one behind the other.
  struct Slice {
    uint32_t remote = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t first_piece = 0;  // in pieces_
    uint32_t pieces = 0;
    uint32_t first_item = 0;  // in order_
    uint32_t items = 0;
    bool staged = false;   // its bytes go through staging memory
    int32_t staging = -1;  // the block of it
    uint8_t tries = 0;
  };
  struct ItemState {
    Outcome outcome = Outcome::kPending;  // the caller's
    Outcome fate = Outcome::kPending;  // what it will be when nothing touches its memory any more
    bool checking = false;             // a READ of its generation is under way
    bool on_one_lane = false;
    const Lane* lane = nullptr;  // that posted slices are on, if it is one
    uint32_t slices = 0;         // neither complete nor given up
    uint32_t outstanding = 0;    // of those, posted
  };

  const Direction direction_;
  const std::vector<TransferItem> items_;
  std::vector<ItemState> states_;
  size_t open_items_ = 0;
  std::vector<uint32_t> order_;  // items by where they are
  std::vector<LocalPiece> pieces_;
  std::vector<Slice> slices_;
  std::vector<uint32_t> waiting_;  // slices whose remote keys are being asked for
  std::string error_;
};

}  // namespace moonpool::rdma
