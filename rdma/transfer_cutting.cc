// TransferEngine: how transfers are cut into slices.
#include <algorithm>

#include "rdma/staging.h"
#include "rdma/transfer_engine.h"

namespace moonpool::rdma {

namespace {

// Slices begin and end at pages of the value where they can.
constexpr uint64_t kAlign = 4096;
// So many slices per lane, so that the last ones end at about the same time.
constexpr uint64_t kSlicesPerLane = 4;

uint64_t RoundUp(uint64_t value) {
  return (value + kAlign - 1) / kAlign * kAlign;
}

uint32_t PiecesOf(const std::vector<Lane*>& lanes) {
  uint32_t most = UINT32_MAX;
  for (const Lane* lane : lanes) most = std::min(most, lane->max_pieces());
  return lanes.empty() ? 1 : std::max<uint32_t>(most, 1);
}

bool Staged(const TransferItem& item) {
  bool staged = false;
  bool peer = false;
  for (const LocalPiece& piece : item.pieces) {
    staged |= piece.keys == nullptr;
    peer |= piece.keys != nullptr && piece.keys->peer;
  }
  MOONPOOL_CHECK(!staged || !peer);
  return staged;
}

}  // namespace

uint64_t TransferEngine::SliceBytes(const Transfer& transfer) const {
  const auto open = static_cast<uint64_t>(
      std::count_if(lanes_.begin(), lanes_.end(), [](const Lane* lane) { return lane->open(); }));
  if (open <= 1) return options_.slice_bytes;
  uint64_t total = 0;
  for (const TransferItem& item : transfer.items_) total += item.length;
  return std::clamp(RoundUp(total / (kSlicesPerLane * open)), options_.least_slice_bytes,
                    options_.slice_bytes);
}

void TransferEngine::Cut(Transfer* transfer) {
  const std::vector<TransferItem>& items = transfer->items_;
  transfer->order_.resize(items.size());
  for (uint32_t i = 0; i < items.size(); ++i) transfer->order_[i] = i;
  std::sort(transfer->order_.begin(), transfer->order_.end(), [&](uint32_t a, uint32_t b) {
    return items[a].remote != items[b].remote ? items[a].remote < items[b].remote
                                              : items[a].offset < items[b].offset;
  });
  const uint64_t slice_bytes = SliceBytes(*transfer);
  Transfer::Slice open;
  for (uint32_t position = 0; position < items.size(); ++position) {
    CutItem(transfer, position, slice_bytes, &open);
  }
  CloseSlice(transfer, &open);
}

// Continues `open` where the item's bytes follow it, and leaves there what may be continued.
void TransferEngine::CutItem(Transfer* transfer, uint32_t position, uint64_t slice_bytes,
                             Transfer::Slice* open) {
  const TransferItem& item = transfer->items_[transfer->order_[position]];
  const bool staged = Staged(item);
  if (staged) slice_bytes = std::min(slice_bytes, kStagingBlockBytes);
  const uint32_t most_pieces = PiecesOf(lanes_);
  const bool follows = open->items > 0 && open->remote == item.remote &&
                       open->offset + open->length == item.offset && open->staged == staged &&
                       open->length + item.length <= slice_bytes &&
                       open->pieces + item.pieces.size() <= most_pieces;
  if (follows && item.length > 0) {
    counters_.merged_values += open->items == 1 ? 2 : 1;
    ++open->items;
  } else {
    CloseSlice(transfer, open);
  }
  // Slices of about the same size.
  const uint64_t count = (item.length + slice_bytes - 1) / slice_bytes;
  const uint64_t each = count <= 1 ? slice_bytes : RoundUp((item.length + count - 1) / count);
  uint64_t done = 0;
  for (const LocalPiece& piece : item.pieces) {
    uint64_t used = 0;
    while (used < piece.length && done < item.length) {
      const uint64_t start = open->items == 0 ? 0 : open->length;
      if (open->items > 0 && !follows && (start >= each || open->pieces == most_pieces)) {
        CloseSlice(transfer, open);
      }
      if (open->items == 0) {
        *open = {};
        open->remote = item.remote;
        open->offset = item.offset + done;
        open->staged = staged;
        open->first_item = position;
        open->items = 1;
      }
      uint64_t part = std::min(piece.length - used, item.length - done);
      if (!follows) part = std::min(part, each - open->length);
      AddPiece(transfer, open, {piece.data + used, part, staged ? nullptr : piece.keys});
      used += part;
      done += part;
    }
  }
  MOONPOOL_CHECK(done == item.length);
}

void TransferEngine::AddPiece(Transfer* transfer, Transfer::Slice* slice, const LocalPiece& piece) {
  slice->length += piece.length;
  if (slice->pieces > 0) {
    LocalPiece& last = transfer->pieces_.back();
    if (last.data + last.length == piece.data && last.keys == piece.keys) {
      last.length += piece.length;
      return;
    }
  } else {
    slice->first_piece = static_cast<uint32_t>(transfer->pieces_.size());
  }
  ++slice->pieces;
  transfer->pieces_.push_back(piece);
}

void TransferEngine::CloseSlice(Transfer* transfer, Transfer::Slice* open) {
  if (open->items == 0) return;
  for (uint32_t i = 0; i < open->items; ++i) {
    ++transfer->states_[transfer->order_[open->first_item + i]].slices;
  }
  queue_.push_back({transfer, static_cast<uint32_t>(transfer->slices_.size())});
  queued_bytes_ += open->length;
  transfer->slices_.push_back(*open);
  *open = {};
}

// Makes a slice of what is behind the first `length` bytes, next in the queue.
// REQUIRES: it is not in the queue, and 0 < length < its own.
void TransferEngine::SplitSlice(const Queued& queued, uint64_t length) {
  Transfer* const transfer = queued.transfer;
  Transfer::Slice& first = transfer->slices_[queued.slice];
  Transfer::Slice second = first;
  second.offset += length;
  second.length -= length;
  second.first_piece = static_cast<uint32_t>(transfer->pieces_.size());
  second.pieces = 0;
  uint64_t at = 0;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < first.pieces; ++i) {
    const LocalPiece piece = transfer->pieces_[first.first_piece + i];
    if (at < length) {
      ++kept;
      const uint64_t mine = std::min(piece.length, length - at);
      transfer->pieces_[first.first_piece + i].length = mine;
      if (mine < piece.length) {
        transfer->pieces_.push_back({piece.data + mine, piece.length - mine, piece.keys});
        ++second.pieces;
      }
    } else {
      transfer->pieces_.push_back(piece);
      ++second.pieces;
    }
    at += piece.length;
  }
  const uint32_t last_item = first.first_item + first.items;
  first.pieces = kept;
  first.length = length;
  first.items = 0;
  second.items = 0;
  for (uint32_t position = first.first_item; position < last_item; ++position) {
    const uint32_t index = transfer->order_[position];
    const TransferItem& item = transfer->items_[index];
    const bool in_first = item.offset < second.offset;
    const bool in_second = item.offset + item.length > second.offset;
    if (in_first) ++first.items;
    if (in_second) {
      if (second.items++ == 0) second.first_item = position;
    }
    if (in_first && in_second) ++transfer->states_[index].slices;
  }
  queue_.push_front({transfer, static_cast<uint32_t>(transfer->slices_.size())});
  queued_bytes_ += second.length;
  transfer->slices_.push_back(second);
}

}  // namespace moonpool::rdma
