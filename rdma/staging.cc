// TransferEngine: local memory that is not registered.
#include "rdma/staging.h"

#include <algorithm>
#include <cstring>

#include "rdma/transfer_engine.h"

namespace moonpool::rdma {

bool TransferEngine::EnsureStaging() {
  if (staging_keys_ != nullptr) return true;
  if (!staging_error_.empty()) return false;
  const uint64_t blocks = std::max<uint64_t>(options_.staging_bytes / kStagingBlockBytes, 1);
  staging_.resize(blocks * kStagingBlockBytes);
  auto keys = Registration::Create(domains_, staging_.data(), staging_.size(), kReadTarget);
  if (!keys) {
    staging_error_ = keys.error().message;
    staging_ = {};
    return false;
  }
  staging_keys_ = std::move(*keys);
  for (uint64_t block = blocks; block-- > 0;) free_staging_.push_back(static_cast<int32_t>(block));
  return true;
}

// False when all of it is in use.
bool TransferEngine::Stage(const Transfer& transfer, Transfer::Slice* slice) {
  if (free_staging_.empty()) return false;
  slice->staging = free_staging_.back();
  free_staging_.pop_back();
  if (transfer.direction_ == Transfer::Direction::kRead) return true;
  char* to = staging_.data() + static_cast<uint64_t>(slice->staging) * kStagingBlockBytes;
  for (uint32_t i = 0; i < slice->pieces; ++i) {
    const LocalPiece& piece = transfer.pieces_[slice->first_piece + i];
    std::memcpy(to, piece.data, piece.length);
    to += piece.length;
  }
  counters_.staged_bytes += slice->length;
  return true;
}

void TransferEngine::Unstage(const Transfer& transfer, Transfer::Slice* slice, bool copy) {
  if (slice->staging < 0) return;
  const char* from = staging_.data() + static_cast<uint64_t>(slice->staging) * kStagingBlockBytes;
  if (copy && transfer.direction_ == Transfer::Direction::kRead) {
    for (uint32_t i = 0; i < slice->pieces; ++i) {
      const LocalPiece& piece = transfer.pieces_[slice->first_piece + i];
      std::memcpy(piece.data, from, piece.length);
      from += piece.length;
    }
    counters_.staged_bytes += slice->length;
  }
  free_staging_.push_back(slice->staging);
  slice->staging = -1;
}

}  // namespace moonpool::rdma
