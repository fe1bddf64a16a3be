// ClientImpl: values that go into memory of devices, or come from there.
#include <algorithm>
#include <cstring>
#include <utility>

#include "client/client_impl.h"
#include "client/errors.h"
#include "protocol/crc32c.h"
#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

// Calls visit(address) with the addresses by which the kind of memory is told, until it is false.
template <typename Visit>
void VisitAddresses(const gpu::Pages& pages, Visit&& visit) {
  if (pages.planes.empty()) {
    visit(pages.base);
    return;
  }
  for (const void* plane : pages.planes) {
    if (!visit(plane)) return;
  }
}
template <typename Pieces, typename Visit>
void VisitPieces(const Pieces& pieces, Visit&& visit) {
  for (const auto& piece : pieces) {
    if (piece.size > 0 && !visit(piece.data)) return;
  }
}
template <typename Visit>
void VisitAddresses(const Target& target, Visit&& visit) {
  if (target.pages != nullptr) return VisitAddresses(target.pages->to, visit);
  VisitPieces(target.pieces, visit);
}
template <typename Visit>
void VisitAddresses(const Source& source, Visit&& visit) {
  if (source.pages != nullptr) return VisitAddresses(source.pages->from, visit);
  VisitPieces(source.pieces, visit);
}

}  // namespace

template <typename Item>
void ClientImpl::FindDevices(Batch<Item>& batch) {
  if (!DeviceMemoryPossible()) return;
  std::shared_ptr<const KnownMemories> registered;
  {
    MutexLock lock(mu_);
    registered = registered_;
  }
  MemoryLookup lookup(options_.gpu, std::move(registered));
  std::erase_if(batch.pending, [&](size_t index) {
    gpu::Device* device = nullptr;
    Status found;
    VisitAddresses(batch.items[index], [&](const void* address) {
      gpu::Device* of_piece = nullptr;
      found = lookup.DeviceOf(address, &of_piece);
      if (device == nullptr) device = of_piece;
      return found.ok();
    });
    if (!found.ok()) {
      batch.Error(index, found);
      return true;
    }
    if (device != nullptr) batch.gpu->Use(index, device);
    return false;
  });
  if (!batch.gpu->empty()) gpu_wanted_.store(true, std::memory_order_relaxed);
}
template void ClientImpl::FindDevices(Batch<Target>& batch);
template void ClientImpl::FindDevices(Batch<Source>& batch);

void ClientImpl::MoveTo(const Target& target, GpuMove move, GpuWork& gpu) {
  if (target.pages != nullptr) {
    gpu.AddPages(std::move(move), GpuWork::Direction::kToCaller, *target.pages);
    return;
  }
  std::vector<LayeredPiece> pieces;
  const char* from = move.pool;
  uint64_t left = move.bytes;
  const auto add = [&](void* to, uint64_t room, uint32_t layer) {
    const uint64_t part = std::min(left, room);
    if (part > 0) pieces.push_back({{to, from, part}, layer});
    from += part;
    left -= part;
  };
  if (target.text != nullptr) add(target.text->data(), left, 0);
  for (size_t i = 0; i < target.pieces.size(); ++i) {
    add(target.pieces[i].data, target.pieces[i].size,
        target.layers.empty() ? 0 : target.layers[i]);
  }
  gpu.Add(std::move(move), pieces);
}

bool ClientImpl::ReadStaged(Channel& channel, const ReplyHeader& header, size_t index,
                            GetBatch& batch) {
  GpuMove move;
  move.index = index;
  move.transport = Transport::kTcp;
  move.bytes = static_cast<uint64_t>(header.value);
  if (batch.gpu->full()) FinishMoves(batch);
  const Result<char*> memory = batch.gpu->Stage(batch.gpu->DeviceFor(index), move.bytes);
  if (!memory) {
    if (!channel.stream().Skip(header)) return false;
    batch.Error(index, FromDeviceError(memory.error()));
    return true;
  }
  move.pool = *memory;
  const Buffer whole{move.pool, move.bytes};
  if (!channel.stream().ReadBulk(std::span(&whole, 1), move.bytes)) return false;
  MoveTo(batch.items[index], std::move(move), *batch.gpu);
  return true;
}

// Out of a mapping: host memory, or a device's.
void ClientImpl::PullByDevice(Channel& channel, const Pull& pull, GetBatch& batch) {
  gpu::Device* device = batch.gpu->DeviceFor(pull.index);
  if (device == nullptr) device = pull.mapping->device();
  GpuMove move;
  move.index = pull.index;
  move.device = device;
  move.transport = pull.mapping->device() != nullptr ? Transport::kCuda : Transport::kShm;
  move.pool = pull.mapping->data() + pull.descriptor.offset;
  move.bytes = pull.descriptor.length;
  move.counter = pull.counter;
  move.generation = pull.descriptor.generation;
  move.mapping = pull.mapping;
  move.memory = channel.memory();
  const bool pinned = pull.mapping->PinFor(*device);
  if (!move.memory->generations()->PinFor(*device) || !pinned) {
    counters_.gpu_unpinned_values.fetch_add(1, std::memory_order_relaxed);
  }
  // A device must not write to a string when the call has returned.
  std::string* const text = batch.items[pull.index].text;
  const bool checked = options_.checksum && pull.descriptor.crc;
  if ((checked || text != nullptr) && batch.gpu->full()) FinishMoves(batch);
  if (checked) {
    const bool loaded = LoadChecked(pull, batch, &move);
    if (pull.descriptor.lease != 0) channel.QueueRelease(pull.descriptor.lease);
    if (!loaded) return;
  } else {
    move.channel = channel.shared_from_this();
    move.lease = pull.descriptor.lease;
  }
  if (text == nullptr) return MoveTo(batch.items[pull.index], std::move(move), *batch.gpu);
  const Result<char*> memory = batch.gpu->Stage(device, move.bytes);
  if (!memory) {
    if (move.lease != 0) channel.QueueRelease(move.lease);
    return batch.Error(pull.index, FromDeviceError(memory.error()));
  }
  move.text = text;
  move.staged = *memory;
  const LayeredPiece whole{{*memory, move.pool, move.bytes}, 0};
  batch.gpu->Add(std::move(move), std::span(&whole, 1));
}

// What RDMA has put into pinned memory.
void ClientImpl::PutOnDevice(const Pull& pull, char* staged, GetBatch& batch) {
  GpuMove move;
  move.index = pull.index;
  move.transport = Transport::kRdma;
  move.pool = staged;
  move.bytes = pull.descriptor.length;
  if (options_.checksum && pull.descriptor.crc &&
      protocol::Crc32c(0, staged, move.bytes) != *pull.descriptor.crc) {
    batch.Done(pull.index, Code::kCorrupt, Transport::kRdma, move.bytes,
               "the bytes do not have their checksum");
    return;
  }
  MoveTo(batch.items[pull.index], std::move(move), *batch.gpu);
}

bool ClientImpl::LoadChecked(const Pull& pull, GetBatch& batch, GpuMove* move) {
  const size_t index = pull.index;
  const auto again = [&] {
    counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
    batch.pending.push_back(index);
    return false;
  };
  const Result<char*> memory = batch.gpu->Stage(move->device, move->bytes);
  if (!memory) {
    batch.Error(index, FromDeviceError(memory.error()));
    return false;
  }
  if (pull.mapping->device() != nullptr) {
    GpuWork load(parked_);
    load.ShareStaged(*batch.gpu);
    if (batch.gpu->given_up(pull.mapping->device())) load.GiveUp(pull.mapping->device());
    load.Use(index, pull.mapping->device());
    const LayeredPiece whole{{*memory, move->pool, move->bytes}, 0};
    load.Add(*move, std::span(&whole, 1));
    const Clock::time_point deadline = Deadline();
    load.Submit(deadline);
    load.WaitUntil(deadline);
    GpuMove& loaded = load.moves()[0];
    if (loaded.outcome == GpuMove::Outcome::kLeft) batch.gpu->GiveUp(pull.mapping->device());
    if (loaded.outcome == GpuMove::Outcome::kChanged) return again();
    if (loaded.outcome != GpuMove::Outcome::kDone) {
      batch.Error(index, FromDeviceError(loaded.error));
      return false;
    }
  } else {
    const Copier::Piece piece{*memory, move->pool, move->bytes};
    copier_.Copy(std::span(&piece, 1));
    if (!protocol::GenerationUnchanged(*move->counter, move->generation)) return again();
  }
  if (protocol::Crc32c(0, *memory, move->bytes) != *pull.descriptor.crc) {
    batch.Done(index, Code::kCorrupt, move->transport, move->bytes,
               "the bytes do not have their checksum");
    return false;
  }
  move->pool = *memory;
  move->counter = nullptr;
  move->mapping = nullptr;
  return true;
}

void ClientImpl::FinishMoves(GetBatch& batch) {
  GpuWork& gpu = *batch.gpu;
  if (gpu.deferred()) return;
  if (!gpu.moves().empty()) {
    const Clock::time_point deadline = Deadline();
    gpu.Submit(deadline);
    gpu.WaitUntil(deadline);
    batch.now = Clock::now();
    for (GpuMove& move : gpu.moves()) FinishMove(move, batch);
    batch.now.reset();
  }
  // What was staged for values that did not come is free too.
  gpu.Clear();
}

void ClientImpl::FinishMove(GpuMove& move, GetBatch& batch) {
  if (move.lease != 0) move.channel->QueueRelease(move.lease);
  switch (move.outcome) {
    case GpuMove::Outcome::kDone:
      counters_.Read(move.transport, move.bytes);
      counters_.gpu_values.fetch_add(1, std::memory_order_relaxed);
      if (move.text != nullptr) std::memcpy(move.text->data(), move.staged, move.bytes);
      if (move.mapping == nullptr) {
        counters_.gpu_staged_values.fetch_add(1, std::memory_order_relaxed);
      }
      batch.Done(move.index, Code::kOk, move.transport, move.bytes);
      return;
    case GpuMove::Outcome::kChanged:
      counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
      batch.pending.push_back(move.index);
      return;
    case GpuMove::Outcome::kFailed:
    case GpuMove::Outcome::kLeft:
      batch.Error(move.index, FromDeviceError(move.error));
      return;
    case GpuMove::Outcome::kPending:
      break;
  }
  __builtin_unreachable();
}

}  // namespace moonpool::client
