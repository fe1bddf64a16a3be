#include "rdma/buffer_cache.h"

#include <algorithm>
#include <iterator>

namespace moonpool::rdma {

BufferCache::BufferCache(const Domains& domains, uint64_t max_bytes, uint64_t chunk_bytes)
    : domains_(domains), max_bytes_(max_bytes), chunk_bytes_(chunk_bytes) {}

BufferCache::~BufferCache() = default;

Status BufferCache::Declare(char* data, uint64_t bytes, std::shared_ptr<PeerMemory> peer) {
  if (data == nullptr || bytes == 0) {
    return Fail(ErrorCode::kInvalidArgument, "a buffer needs an address and a length");
  }
  MutexLock lock(mu_);
  const auto next = buffers_.lower_bound(data);
  if (next != buffers_.end() && next->first < data + bytes) {
    return Fail(ErrorCode::kInvalidArgument, "the buffer overlaps one that is registered");
  }
  if (next != buffers_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second.bytes > data) {
      return Fail(ErrorCode::kInvalidArgument, "the buffer overlaps one that is registered");
    }
  }
  Buffer& buffer = buffers_[data];
  buffer.bytes = bytes;
  for (uint64_t at = 0; at < bytes; at += chunk_bytes_) {
    auto chunk = std::make_unique<Chunk>();
    chunk->data = data + at;
    chunk->bytes = std::min(chunk_bytes_, bytes - at);
    chunk->peer = peer;
    buffer.chunks.push_back(std::move(chunk));
  }
  return {};
}

bool BufferCache::Withdraw(char* data) {
  Buffer gone;  // deregistered without the lock
  MutexLock lock(mu_);
  const auto found = buffers_.find(data);
  if (found == buffers_.end()) return false;
  for (const auto& chunk : found->second.chunks) {
    MOONPOOL_CHECK(!chunk->registering);
    if (chunk->registration == nullptr) continue;
    counters_.bytes -= chunk->bytes;
    recent_.erase(chunk->place);
  }
  gone = std::move(found->second);
  buffers_.erase(found);
  return true;
}

// The buffer that `data` is in; null when it is in none.  `until`: how far that goes, at most.
BufferCache::Buffer* BufferCache::Containing(char* data, uint64_t* until) {
  auto next = buffers_.upper_bound(data);
  if (next != buffers_.end()) *until = std::min<uint64_t>(*until, next->first - data);
  if (next == buffers_.begin()) return nullptr;
  --next;
  if (data >= next->first + next->second.bytes) return nullptr;
  *until = std::min<uint64_t>(*until, next->first + next->second.bytes - data);
  return &next->second;
}

void BufferCache::Describe(char* data, uint64_t bytes, std::vector<LocalPiece>* pieces,
                           Pins* pins) {
  MutexLock lock(mu_);
  while (bytes > 0) {
    uint64_t length = bytes;
    Buffer* const buffer = Containing(data, &length);
    std::shared_ptr<const Registration> registration;
    if (buffer != nullptr) {
      char* const start = buffer->chunks.front()->data;
      Chunk* const chunk = buffer->chunks[static_cast<uint64_t>(data - start) / chunk_bytes_].get();
      length = std::min<uint64_t>(length, chunk->data + chunk->bytes - data);
      registration = Use(chunk);
    }
    if (registration == nullptr) {
      pieces->push_back({data, length, nullptr});
    } else {
      const auto offset = static_cast<uint64_t>(data - registration->data());
      const Registration::Part part = registration->At(offset);
      length = std::min(length, part.offset + part.length - offset);
      pieces->push_back({data, length, part.keys});
      if (pins->empty() || pins->back() != registration) pins->push_back(std::move(registration));
    }
    data += length;
    bytes -= length;
  }
}

std::shared_ptr<const Registration> BufferCache::Pin(char* data, uint64_t bytes) {
  MutexLock lock(mu_);
  uint64_t length = bytes;
  Buffer* const buffer = Containing(data, &length);
  if (buffer == nullptr || length < bytes) return nullptr;
  char* const start = buffer->chunks.front()->data;
  const uint64_t first = static_cast<uint64_t>(data - start) / chunk_bytes_;
  if (first != (static_cast<uint64_t>(data - start) + bytes - 1) / chunk_bytes_) return nullptr;
  return Use(buffer->chunks[first].get());
}

std::shared_ptr<const Registration> BufferCache::Use(Chunk* chunk) {
  if (chunk->registration != nullptr) {
    ++counters_.hits;
    recent_.splice(recent_.end(), recent_, chunk->place);
    return chunk->registration;
  }
  if (chunk->refused) return nullptr;
  // Somebody else is at it: this time without.
  if (chunk->registering || !MakeRoom(chunk->bytes)) {
    ++counters_.refused;
    return nullptr;
  }
  ++counters_.misses;
  counters_.bytes += chunk->bytes;
  chunk->registering = true;
  std::string why;
  mu_.Unlock();
  constexpr uint32_t kAccess = kReadTarget | kRemoteRead;
  auto made = chunk->peer == nullptr
                  ? Registration::Create(domains_, chunk->data, chunk->bytes, kAccess)
                  : Registration::CreatePeer(chunk->peer, domains_, chunk->data, chunk->bytes,
                                             kAccess, kDefaultSliceBytes,
                                             [&](const std::string& text) { why = text; });
  mu_.Lock();
  chunk->registering = false;
  if (!why.empty()) peer_error_ = std::move(why);
  if (!made) {
    counters_.bytes -= chunk->bytes;
    if (chunk->peer != nullptr) {
      chunk->refused = true;
      ++counters_.peer_refused;
      if (peer_error_.empty()) peer_error_ = made.error().message;
    } else {
      ++counters_.refused;
    }
    return nullptr;
  }
  chunk->registration = std::move(*made);
  chunk->place = recent_.insert(recent_.end(), chunk);
  return chunk->registration;
}

bool BufferCache::MakeRoom(uint64_t bytes) {
  if (bytes > max_bytes_) return false;
  for (auto at = recent_.begin(); at != recent_.end() && counters_.bytes + bytes > max_bytes_;) {
    Chunk* const chunk = *at++;
    // In use by a transfer.
    if (chunk->registration.use_count() > 1) continue;
    Drop(chunk);
  }
  return counters_.bytes + bytes <= max_bytes_;
}

void BufferCache::Drop(Chunk* chunk) {
  ++counters_.dropped;
  counters_.bytes -= chunk->bytes;
  recent_.erase(chunk->place);
  chunk->registration = nullptr;
}

std::string BufferCache::peer_error() const {
  MutexLock lock(mu_);
  return peer_error_;
}

BufferCache::Counters BufferCache::counters() const {
  MutexLock lock(mu_);
  return counters_;
}

}  // namespace moonpool::rdma
