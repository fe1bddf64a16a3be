#include "client/gpu_transfer.h"

#include <algorithm>
#include <utility>

#include "client/errors.h"
#include "client/fork_guard.h"

namespace moonpool::client {

namespace {

using Kind = GpuTransferState::Kind;
using State = GpuTransferState;

std::shared_ptr<State> NewState(Kind kind, void* stream, std::span<const std::string_view> keys,
                                uint32_t layers) {
  auto state = std::make_shared<State>(kind, stream, layers);
  state->names.assign(keys.begin(), keys.end());
  state->keys.assign(state->names.begin(), state->names.end());
  MutexLock look(state->look_mu);
  state->results.resize(keys.size());
  state->in_flight.resize(keys.size());
  return state;
}

void Refuse(State& state, const std::string& why) {
  MutexLock look(state.look_mu);
  for (KeyResult& result : state.results) {
    result.code = Code::kInvalidArgument;
    result.message = why;
  }
  state.finished = true;
}

template <typename Piece>
uint32_t LayersOf(std::span<const std::vector<Piece>> all) {
  uint32_t most = 0;
  for (const auto& pieces : all) {
    for (const Piece& piece : pieces) most = std::max(most, piece.layer);
  }
  return most + 1;
}
// More would be a slip: every one costs an event.
constexpr uint32_t kMostLayers = 65536;
// What is longer is for ever, and fits into the clock.
constexpr std::chrono::milliseconds kLongestWait = std::chrono::hours(24 * 365);

// As they stand, for who does not wait any longer.
std::span<const KeyResult> SoFar(State& state) {
  MutexLock look(state.look_mu);
  state.so_far = state.results;
  for (size_t i = 0; i < state.so_far.size(); ++i) {
    if (!state.in_flight[i]) continue;
    state.so_far[i].code = Code::kTimeout;
    state.so_far[i].message =
        "the stream has not come to the copy yet, or the GPU not finished it: keep the buffers and "
        "wait again, or see what the GPU does";
  }
  return state.so_far;
}

// The caller's side of what is moved; empty: the description is good.  REQUIRES: cache.layers > 0.
std::string AddPages(const PagedCache& cache, const PageIndexes& pages, State* state) {
  const size_t keys = state->keys.size();
  if (keys == 0) return "";
  if (pages.size() == 0 || pages.size() % keys != 0) {
    return std::to_string(pages.size()) + " page indexes do not give each of " +
           std::to_string(keys) + " keys the same number";
  }
  if (!cache.planes.empty() && cache.planes.size() != cache.plane_count) {
    return std::to_string(cache.planes.size()) + " plane addresses are given for " +
           std::to_string(cache.plane_count) + " planes";
  }
  if (cache.plane_count == 0 || cache.piece_bytes == 0 || cache.plane_count % cache.layers != 0) {
    return "plane_count and piece_bytes must not be zero, nor plane_count anything but a multiple of "
           "layers";
  }
  const size_t per_key = pages.size() / keys;
  for (void* plane : cache.planes) state->planes.push_back(static_cast<char*>(plane));
  for (size_t i = 0; i < pages.size(); ++i) state->entries.push_back(pages[i]);
  const bool get = state->kind == Kind::kGet;
  for (size_t i = 0; i < keys; ++i) {
    gpu::PageCopy copy;
    copy.page_count = static_cast<uint32_t>(per_key);
    copy.plane_count = cache.plane_count;
    copy.piece_bytes = cache.piece_bytes;
    gpu::Pages& side = get ? copy.to : copy.from;
    side.planes = state->planes;
    side.base = static_cast<char*>(cache.base);
    side.plane_stride = cache.plane_stride;
    side.page_stride = cache.page_stride;
    side.page_limit = cache.page_limit;
    side.table = gpu::PageTable::Of(std::span<const int64_t>(state->entries).subspan(i * per_key));
    state->pages.push_back(copy);
  }
  for (const gpu::PageCopy& copy : state->pages) {
    if (get) {
      state->targets.push_back({{}, nullptr, {}, &copy});
    } else {
      state->sources.push_back({{}, copy.bytes(), {}, &copy});
    }
  }
  return "";
}

}  // namespace

// The way from the free functions to what they work on.
struct GpuEntry {
  static GpuTransfer Of(Client& client, std::shared_ptr<State> state) {
    client.impl();  // a fresh one after fork()
    GpuTransfer transfer;
    transfer.client_ = client.impl_;
    transfer.state_ = std::move(state);
    return transfer;
  }
  static GpuTransfer Start(Client& client, const std::shared_ptr<State>& state) {
    GpuTransfer transfer = Of(client, state);
    if (state->kind == Kind::kGet) {
      transfer.client_->StartGet(*state);
    } else {
      transfer.client_->StartPut(state);
    }
    return transfer;
  }
};

GpuTransfer GetOnStream(Client& client, void* stream, std::span<const std::string_view> keys,
                        std::span<const std::vector<LayerBuffer>> into) {
  const uint32_t layers = LayersOf(into);
  const auto state = NewState(Kind::kGet, stream, keys, std::min(layers, kMostLayers));
  if (layers > kMostLayers || into.size() != keys.size()) {
    Refuse(*state, layers > kMostLayers ? "too many layers" : "one list of buffers per key is needed");
    return GpuEntry::Of(client, state);
  }
  for (const std::vector<LayerBuffer>& pieces : into) {
    auto& buffers = state->into.emplace_back();
    auto& layer_of = state->layer_of.emplace_back();
    for (const LayerBuffer& piece : pieces) {
      buffers.push_back({piece.data, piece.size});
      layer_of.push_back(piece.layer);
    }
  }
  for (size_t i = 0; i < into.size(); ++i) {
    state->targets.push_back({state->into[i], nullptr, state->layer_of[i]});
  }
  return GpuEntry::Start(client, state);
}

GpuTransfer PutOnStream(Client& client, void* stream, std::span<const std::string_view> keys,
                        std::span<const std::vector<ConstLayerBuffer>> from,
                        const PutOptions& options) {
  const uint32_t layers = LayersOf(from);
  const auto state = NewState(Kind::kPut, stream, keys, std::min(layers, kMostLayers));
  state->options = options;
  std::string wrong = WrongOptions(options);
  if (from.size() != keys.size()) wrong = "one list of buffers per key is needed";
  if (layers > kMostLayers) wrong = "too many layers";
  if (!wrong.empty()) {
    Refuse(*state, wrong);
    return GpuEntry::Of(client, state);
  }
  for (const std::vector<ConstLayerBuffer>& pieces : from) {
    auto& buffers = state->from.emplace_back();
    auto& layer_of = state->layer_of.emplace_back();
    for (const ConstLayerBuffer& piece : pieces) {
      buffers.push_back({piece.data, piece.size});
      layer_of.push_back(piece.layer);
    }
  }
  for (size_t i = 0; i < from.size(); ++i) {
    Source source{state->from[i], 0, state->layer_of[i]};
    for (const ConstBuffer& piece : state->from[i]) source.bytes += piece.size;
    state->sources.push_back(source);
  }
  return GpuEntry::Start(client, state);
}

GpuTransfer GetPagesOnStream(Client& client, void* stream, std::span<const std::string_view> keys,
                             const PagedCache& cache, const PageIndexes& pages) {
  const uint32_t layers = std::clamp(cache.layers, 1u, kMostLayers);
  const auto state = NewState(Kind::kGet, stream, keys, layers);
  std::string wrong = cache.layers != layers ? "layers is out of range" : "";
  if (wrong.empty()) wrong = AddPages(cache, pages, state.get());
  if (wrong.empty()) return GpuEntry::Start(client, state);
  Refuse(*state, wrong);
  return GpuEntry::Of(client, state);
}

GpuTransfer PutPagesOnStream(Client& client, void* stream, std::span<const std::string_view> keys,
                             const PagedCache& cache, const PageIndexes& pages,
                             const PutOptions& options) {
  const uint32_t layers = std::clamp(cache.layers, 1u, kMostLayers);
  const auto state = NewState(Kind::kPut, stream, keys, layers);
  state->options = options;
  std::string wrong = WrongOptions(options);
  if (cache.layers != layers) wrong = "layers is out of range";
  if (wrong.empty()) wrong = AddPages(cache, pages, state.get());
  if (wrong.empty()) return GpuEntry::Start(client, state);
  Refuse(*state, wrong);
  return GpuEntry::Of(client, state);
}

GpuTransfer::GpuTransfer() = default;
GpuTransfer::GpuTransfer(GpuTransfer&&) noexcept = default;

GpuTransfer& GpuTransfer::operator=(GpuTransfer&& other) noexcept {
  std::swap(client_, other.client_);
  std::swap(state_, other.state_);
  return *this;
}

GpuTransfer::~GpuTransfer() {
  if (state_ == nullptr) return;
  if (ForkCount() != state_->forks) {
    // The parent's: neither CUDA nor its locks work here.
    new std::shared_ptr<GpuTransferState>(std::move(state_));
    new std::shared_ptr<ClientImpl>(std::move(client_));
    return;
  }
  if (state_->kind == Kind::kGet && !client_->FinishUntil(*state_, client_->Deadline())) {
    client_->GiveUp(*state_);
  }
}

size_t GpuTransfer::layers() const { return state_ == nullptr ? 0 : state_->layers; }

void* GpuTransfer::event(size_t layer) const {
  return layer < layers() && layer < state_->events.size() ? state_->events[layer]->native()
                                                           : nullptr;
}

Status GpuTransfer::StreamWaits(void* stream, size_t layer) const {
  if (layer >= layers()) return {Code::kInvalidArgument, "there is no such layer"};
  if (state_->events.empty()) return {};
  const auto waits = state_->device->WaitFor({stream}, *state_->events[layer]);
  return waits ? Status() : FromDeviceError(waits.error());
}

Status GpuTransfer::Reached(size_t layer, bool* reached) const {
  *reached = true;
  if (layer >= layers()) return {Code::kInvalidArgument, "there is no such layer"};
  if (state_->events.empty()) return {};
  const Result<bool> is_reached = state_->events[layer]->Reached();
  if (!is_reached) return FromDeviceError(is_reached.error());
  *reached = *is_reached;
  return {};
}

bool GpuTransfer::in_flight(size_t key) const {
  if (state_ == nullptr) return false;
  MutexLock look(state_->look_mu);
  return key < state_->in_flight.size() && state_->in_flight[key];
}

KeyResult GpuTransfer::result(size_t key) const {
  if (state_ != nullptr) {
    MutexLock look(state_->look_mu);
    if (key < state_->results.size()) return state_->results[key];
  }
  KeyResult result;
  result.code = Code::kInvalidArgument;
  result.message = "the transfer has no such key";
  return result;
}

bool GpuTransfer::Done() {
  if (state_ == nullptr) return true;
  if (state_->kind == Kind::kGet) return client_->TryFinish(*state_);
  // The thread that commits it says so.
  MutexLock look(state_->look_mu);
  return state_->finished;
}

std::span<const KeyResult> GpuTransfer::Wait() {
  if (state_ == nullptr) return {};
  if (!client_->FinishUntil(*state_, client_->Deadline())) return SoFar(*state_);
  MutexLock look(state_->look_mu);
  return state_->results;
}

std::span<const KeyResult> GpuTransfer::WaitFor(std::chrono::milliseconds timeout) {
  if (state_ == nullptr) return {};
  const Clock::time_point deadline = Clock::now() + std::min(timeout, kLongestWait);
  if (!client_->FinishUntil(*state_, deadline)) return SoFar(*state_);
  MutexLock look(state_->look_mu);
  return state_->results;
}

std::span<const KeyResult> GpuTransfer::Retry() {
  if (state_ == nullptr) return {};
  if (!client_->Retry(*state_)) return SoFar(*state_);
  MutexLock look(state_->look_mu);
  return state_->results;
}

}  // namespace moonpool::client
