// ClientImpl: values that come from memory of devices.
#include <utility>

#include "client/client_impl.h"
#include "client/errors.h"
#include "client/gpu_devices.h"

namespace moonpool::client {

PutOptions ClientImpl::NearestFirst(const GpuWork& gpu, PutOptions options) const {
  if (!gpu.empty() && !options.prefer.empty()) {
    options.prefer = client::NearestFirst(options_.gpu, options.prefer, *gpu.main());
  }
  return options;
}

void ClientImpl::MoveFrom(const Source& source, GpuMove move, GpuWork& gpu) {
  if (source.pages != nullptr) {
    gpu.AddPages(std::move(move), GpuWork::Direction::kFromCaller, *source.pages);
    return;
  }
  std::vector<LayeredPiece> pieces;
  char* to = move.pool;
  for (size_t i = 0; i < source.pieces.size(); ++i) {
    const ConstBuffer& piece = source.pieces[i];
    if (piece.size == 0) continue;
    pieces.push_back({{to, piece.data, piece.size}, source.layers.empty() ? 0 : source.layers[i]});
    to += piece.size;
  }
  gpu.Add(std::move(move), pieces);
}

void ClientImpl::PushByDevice(Channel& channel, const Allocation& allocation, PutBatch& batch) {
  gpu::Device* device = batch.gpu->DeviceFor(allocation.index);
  if (device == nullptr) device = allocation.mapping->device();
  GpuMove move;
  move.index = allocation.index;
  move.device = device;
  move.transport = allocation.transport();
  move.pool = allocation.mapping->data() + allocation.offset;
  move.bytes = batch.items[allocation.index].bytes;
  move.mapping = allocation.mapping;
  move.memory = channel.memory();
  move.channel = channel.shared_from_this();
  move.token = allocation.token;
  if (!move.mapping->PinFor(*device)) {
    counters_.gpu_unpinned_values.fetch_add(1, std::memory_order_relaxed);
  }
  MoveFrom(batch.items[allocation.index], std::move(move), *batch.gpu);
}

bool ClientImpl::PutStaged(PutBatch& batch, const std::function<bool()>& put) {
  if (batch.gpu->empty()) return put();
  GpuWork nothing;
  const std::span<const Source> items = batch.items;
  GpuWork& gpu = *std::exchange(batch.gpu, &nothing);
  std::vector<Source> staged(items.begin(), items.end());
  std::vector<ConstBuffer> buffers(items.size());
  batch.items = staged;
  const std::vector<size_t> todo = std::move(batch.pending);
  std::vector<size_t> left;
  bool usable = true;
  GpuWork load(parked_);
  for (size_t next = 0; next < todo.size() && usable;) {
    load.Clear();
    batch.pending.clear();
    for (; next < todo.size() && !load.full(); ++next) {
      const size_t index = todo[next];
      if (!gpu.Takes(index)) {
        batch.pending.push_back(index);
        continue;
      }
      load.Use(index, gpu.DeviceFor(index));
      const uint64_t bytes = items[index].bytes;
      const Result<char*> memory = load.Stage(gpu.DeviceFor(index), bytes);
      if (!memory) {
        batch.Error(index, FromDeviceError(memory.error()));
        continue;
      }
      buffers[index] = {*memory, bytes};
      staged[index] = {std::span(&buffers[index], 1), bytes};
      GpuMove move;
      move.index = index;
      move.pool = *memory;
      move.bytes = bytes;
      MoveFrom(items[index], std::move(move), load);
    }
    const Clock::time_point deadline = Deadline();
    load.Submit(deadline);
    load.WaitUntil(deadline);
    for (const GpuMove& move : load.moves()) {
      if (move.outcome == GpuMove::Outcome::kDone) {
        batch.pending.push_back(move.index);
        counters_.gpu_values.fetch_add(1, std::memory_order_relaxed);
        counters_.gpu_staged_values.fetch_add(1, std::memory_order_relaxed);
      } else {
        batch.Error(move.index, FromDeviceError(move.error));
      }
    }
    usable = put();
    left.insert(left.end(), batch.pending.begin(), batch.pending.end());
    if (!usable) left.insert(left.end(), todo.begin() + static_cast<ptrdiff_t>(next), todo.end());
  }
  batch.pending = std::move(left);
  batch.items = items;
  batch.gpu = &gpu;
  return usable;
}

}  // namespace moonpool::client
