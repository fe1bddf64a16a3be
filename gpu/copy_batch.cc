#include "gpu/copy_batch.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "gpu/copy_routes.h"

namespace moonpool::gpu {

namespace {

struct Key {
  const protocol::GenerationCounter* counter = nullptr;
  uint64_t generation = 0;
};

struct Layer {
  std::vector<Piece> pieces;
  std::vector<PageCopy> pages;
  std::vector<size_t> keys;  // that have bytes in it, ascending
};

void AddTo(std::vector<size_t>* keys, size_t key) {
  if (!keys->empty() && keys->back() == key) return;
  const auto at = std::lower_bound(keys->begin(), keys->end(), key);
  if (at == keys->end() || *at != key) keys->insert(at, key);
}

}  // namespace

// --- Completion ----------------------------------------------------------------------------------

struct Completion::State {
  struct DoneLayer {
    std::unique_ptr<Event> event;
    std::vector<size_t> keys;
    size_t first_check = 0;  // of its keys' states, in their order
  };
  Device* device = nullptr;
  StreamRef stream;
  // Without `checks` when the counters are in memory that the device cannot reach.  Then the
  // processor looks when it is asked, which is after the copy too.
  InFlight in_flight;
  std::vector<Key> keys;
  std::vector<DoneLayer> layers;
  bool Check(const DoneLayer& layer, size_t key) const {
    if (keys[key].counter == nullptr) return true;
    const auto at = std::lower_bound(layer.keys.begin(), layer.keys.end(), key);
    if (at == layer.keys.end() || *at != key) return true;
    if (in_flight.checks == nullptr) {
      return protocol::GenerationUnchanged(*keys[key].counter, keys[key].generation);
    }
    const CheckState* state = in_flight.checks->states() + layer.first_check +
                              static_cast<size_t>(at - layer.keys.begin());
    return __atomic_load_n(reinterpret_cast<const uint32_t*>(state), __ATOMIC_ACQUIRE) ==
           static_cast<uint32_t>(CheckState::kUnchanged);
  }
  // Behind all that was put into each stream, of a batch that failed; else the last layer's event
  // is.
  std::vector<std::unique_ptr<Event>> ends;
  // Nothing is put into the streams any more.
  void Fail() {
    layers.clear();
    for (auto& [other, side] : in_flight.streams) End(*other, side->ref());
    End(*device, stream);
  }
  void End(Device& of, StreamRef in) {
    Result<std::unique_ptr<Event>> event = of.NewEvent();
    if (event && of.Record(**event, in)) {
      ends.push_back(std::move(*event));
    } else {
      (void)of.Drain(in);  // which returns: a device that takes no events is lost as a rule
    }
  }
  // Whether look(event) is true of all that everything is done with.  An error when one has one,
  // and none of the others is still to come.
  template <typename Look>
  Result<bool> AllReached(Look&& look) const {
    if (!layers.empty()) return look(*layers.back().event);
    Result<bool> all = true;
    for (const std::unique_ptr<Event>& end : ends) {
      Result<bool> reached = look(*end);
      if (reached && !*reached) return false;
      if (!reached) all = std::move(reached);
    }
    return all;
  }
};

Completion::Completion(std::unique_ptr<State> state) : state_(std::move(state)) {}
Completion::Completion(Completion&&) noexcept = default;

Completion& Completion::operator=(Completion&& other) noexcept {
  if (this != &other) {
    if (state_ != nullptr) (void)Wait();
    state_ = std::move(other.state_);
  }
  return *this;
}

Completion::~Completion() {
  if (state_ != nullptr) (void)Wait();
}

Result<bool> Completion::Done() const {
  return state_->AllReached([](const Event& event) { return event.Reached(); });
}
Status Completion::Wait() const {
  const Result<bool> done = state_->AllReached([](const Event& event) -> Result<bool> {
    if (Status status = event.Wait(); !status) return tl::unexpected(std::move(status.error()));
    return true;
  });
  if (!done) return tl::unexpected(done.error());
  return {};
}
Result<bool> Completion::WaitUntil(std::chrono::steady_clock::time_point deadline) const {
  return state_->AllReached([deadline](const Event& event) { return event.WaitUntil(deadline); });
}
size_t Completion::layers() const {
  return state_->layers.size();
}
const Event& Completion::layer(size_t index) const {
  return *state_->layers[index].event;
}

bool Completion::Unchanged(size_t key) const {
  MOONPOOL_CHECK(key < state_->keys.size());
  return std::all_of(state_->layers.begin(), state_->layers.end(),
                     [&](const State::DoneLayer& layer) { return state_->Check(layer, key); });
}

bool Completion::Unchanged(size_t key, size_t layer) const {
  MOONPOOL_CHECK(key < state_->keys.size() && layer < state_->layers.size());
  return state_->Check(state_->layers[layer], key);
}

// --- CopyBatch -----------------------------------------------------------------------------------

struct CopyBatch::State {
  Device* device = nullptr;
  std::optional<StreamRef> stream;
  CopyLimits limits;
  std::vector<Key> keys;
  std::vector<Layer> layers{1};

  Status Send(Completion::State* sent) const;
  Status PrepareChecks(CopyRoutes* routes, Completion::State* sent,
                       std::vector<GenerationCheck>* checks) const;
  uint64_t BytesWithinDevices(PlaceCache* places) const;
};

CopyBatch::CopyBatch(Device* device, std::optional<StreamRef> stream, const CopyLimits& limits)
    : state_(std::make_unique<State>()) {
  state_->device = device;
  state_->stream = stream;
  state_->limits = limits;
}
CopyBatch::~CopyBatch() = default;
CopyBatch::CopyBatch(CopyBatch&&) noexcept = default;

size_t CopyBatch::AddKey(const protocol::GenerationCounter* counter, uint64_t generation) {
  state_->keys.push_back({counter, generation});
  return state_->keys.size() - 1;
}

void CopyBatch::Copy(size_t key, const Piece& piece) {
  MOONPOOL_CHECK(key < state_->keys.size());
  state_->layers.back().pieces.push_back(piece);
  AddTo(&state_->layers.back().keys, key);
}

void CopyBatch::CopyPages(size_t key, const PageCopy& pages) {
  MOONPOOL_CHECK(key < state_->keys.size());
  state_->layers.back().pages.push_back(pages);
  AddTo(&state_->layers.back().keys, key);
}

void CopyBatch::Share(size_t key) {
  MOONPOOL_CHECK(key < state_->keys.size());
  AddTo(&state_->layers.back().keys, key);
}

void CopyBatch::EndLayer() {
  state_->layers.emplace_back();
}

Result<Completion> CopyBatch::Submit() && {
  std::optional<Completion> left;  // waits when it goes
  return std::move(*this).Submit(&left);
}

Result<Completion> CopyBatch::Submit(std::optional<Completion>* left) && {
  const std::unique_ptr<State> batch = std::move(state_);
  // EndLayer() after the last layer begins one that stays empty.
  if (batch->layers.size() > 1 && batch->layers.back().keys.empty()) batch->layers.pop_back();
  auto sent = std::make_unique<Completion::State>();
  sent->device = batch->device;
  if (batch->stream) {
    if (Status accepted = batch->device->Accepts(*batch->stream); !accepted) {
      return tl::unexpected(std::move(accepted.error()));
    }
    sent->stream = *batch->stream;
  } else {
    Result<std::unique_ptr<Stream>> own = batch->device->NewStream();
    if (!own) return tl::unexpected(std::move(own.error()));
    sent->stream = (*own)->ref();
    sent->in_flight.streams.emplace_back(batch->device, std::move(*own));
  }
  if (Status status = batch->Send(sent.get()); !status) {
    sent->Fail();
    if (!sent->ends.empty()) *left = Completion(std::move(sent));
    return tl::unexpected(std::move(status.error()));
  }
  return Completion(std::move(sent));
}

// The checks of all layers, one after the other; none when the device cannot do them.
Status CopyBatch::State::PrepareChecks(CopyRoutes* routes, Completion::State* sent,
                                       std::vector<GenerationCheck>* checks) const {
  for (const Layer& layer : layers) {
    for (const size_t key : layer.keys) {
      const protocol::GenerationCounter* counter = keys[key].counter;
      if (counter == nullptr) {
        // Keeps the places of the others; compared with nothing.
        checks->push_back({});
        continue;
      }
      const Result<Place> place = routes->places().Find(counter, sizeof(*counter));
      if (!place) return tl::unexpected(place.error());
      if (place->kind != Place::Kind::kPinned) {
        checks->clear();
        return {};
      }
      checks->push_back(
          {reinterpret_cast<const protocol::GenerationCounter*>(ForDevice(*place, counter)),
           keys[key].generation});
    }
  }
  if (std::none_of(checks->begin(), checks->end(),
                   [](const GenerationCheck& check) { return check.counter != nullptr; })) {
    checks->clear();
    return {};
  }
  Result<std::unique_ptr<CheckBlock>> block = device->NewCheckBlock(checks->size());
  if (!block) return tl::unexpected(std::move(block.error()));
  sent->in_flight.checks = std::move(*block);
  return {};
}

uint64_t CopyBatch::State::BytesWithinDevices(PlaceCache* places) const {
  const auto in_device = [places](const void* address, uint64_t bytes) {
    const Result<Place> place = places->Find(address, bytes);
    return place && place->kind == Place::Kind::kDevice;
  };
  uint64_t bytes = 0;
  for (const Layer& layer : layers) {
    for (const Piece& piece : layer.pieces) {
      const bool within = in_device(piece.from, piece.bytes) && in_device(piece.to, piece.bytes);
      if (within) bytes += piece.bytes;
    }
    for (const PageCopy& pages : layer.pages) bytes += pages.bytes();
  }
  return bytes;
}

Status CopyBatch::State::Send(Completion::State* sent) const {
  CopyRoutes routes({device, sent->stream}, limits, &sent->in_flight);
  sent->keys = keys;
  std::vector<GenerationCheck> checks;
  if (Status status = PrepareChecks(&routes, sent, &checks); !status) return status;
  const bool beside = !checks.empty() && BytesWithinDevices(&routes.places()) >= limits.checks_beside;
  const Worker main{device, sent->stream};
  // Where events are recorded: from the first check beside the main stream on, behind that.
  Worker last = main;
  size_t next_check = 0;
  for (const Layer& layer : layers) {
    Completion::State::DoneLayer done{nullptr, layer.keys, next_check};
    Checks behind;
    if (!checks.empty()) {
      behind = {std::span(checks).subspan(next_check, layer.keys.size()),
                sent->in_flight.checks.get(), next_check};
      next_check += layer.keys.size();
    }
    Checks none;
    if (Status status = routes.Copy(layer.pieces, layer.pages.empty() ? &behind : &none); !status) {
      return status;
    }
    for (const PageCopy& pages : layer.pages) {
      if (Status status = routes.CopyPages(pages); !status) return status;
    }
    if (!behind.checks.empty() && beside && last.stream.handle == main.stream.handle) {
      Result<std::unique_ptr<Stream>> other = device->NewStream();
      if (!other) return tl::unexpected(std::move(other.error()));
      last.stream = (*other)->ref();
      sent->in_flight.streams.emplace_back(device, std::move(*other));
    }
    if (last.stream.handle != main.stream.handle) {
      if (Status status = Chain(main, last); !status) return status;
    }
    if (!behind.checks.empty()) {
      if (Status status = device->CheckGenerations(last.stream, behind); !status) return status;
    }
    Result<std::unique_ptr<Event>> event = device->NewEvent();
    if (!event) return tl::unexpected(std::move(event.error()));
    if (Status status = device->Record(**event, last.stream); !status) return status;
    done.event = std::move(*event);
    sent->layers.push_back(std::move(done));
  }
  return {};
}

}  // namespace moonpool::gpu
