#include "client/gpu_work.h"

#include <algorithm>
#include <utility>

#include "gpu/place_cache.h"

namespace moonpool::client {

namespace {

// Staged values begin at multiples of this, and share blocks of at least so many bytes.
constexpr uint64_t kStagedAlignment = 256;
constexpr uint64_t kStagedBlock = 1 << 20;
// From so many bytes on a value's pages are a copy of their own, for the copy engine.
constexpr uint64_t kOwnPageCopy = 1 << 20;

const Error& StillUnderWay() {
  static const auto& error = *new Error{
      ErrorCode::kTimeout,
      "the GPU did not copy it within timeout_ms and may do so yet: keep the buffers until "
      "Stats::gpu_parked_values is 0, see what the GPU does, or raise timeout_ms"};
  return error;
}
const Error& NotTried() {
  static const auto& error = *new Error{ErrorCode::kTimeout,
                                        "it was not tried, as the GPU did not finish earlier "
                                        "copies within timeout_ms: see what it does"};
  return error;
}

// The caller's side of one layer's planes.
gpu::Pages LayerOf(const gpu::Pages& pages, uint32_t first_plane, uint32_t planes) {
  gpu::Pages layer = pages;
  if (!pages.planes.empty()) {
    layer.planes = pages.planes.subspan(first_plane, planes);
  } else if (layer.base != nullptr) {
    layer.base += first_plane * pages.plane_stride;
  }
  return layer;
}

bool SameLayout(const gpu::PageCopy& a, const gpu::Pages& a_side, const gpu::PageCopy& b,
                const gpu::Pages& b_side) {
  return a.plane_count == b.plane_count && a.piece_bytes == b.piece_bytes &&
         a_side.planes.data() == b_side.planes.data() &&
         a_side.planes.size() == b_side.planes.size() && a_side.base == b_side.base &&
         a_side.plane_stride == b_side.plane_stride && a_side.page_stride == b_side.page_stride;
}

int64_t EntryOf(const gpu::Pages& pages, uint32_t page) {
  using Kind = gpu::PageTable::Kind;
  switch (pages.table.kind) {
    case Kind::kIndex32:
      return static_cast<const int32_t*>(pages.table.entries)[page];
    case Kind::kIndex64:
      return static_cast<const int64_t*>(pages.table.entries)[page];
    default:
      return page;
  }
}

}  // namespace

// Arrays that page copies name, until they have been submitted.
struct GpuWork::Tables {
  std::deque<std::vector<char*>> pointers;
  std::deque<std::vector<int64_t>> entries;
};

void GpuWork::Use(size_t index, gpu::Device* device) {
  if (main_ == nullptr) main_ = device;
  if (devices_.size() <= index) devices_.resize(index + 1);
  devices_[index] = device;
}

gpu::Device* GpuWork::DeviceFor(size_t index) const {
  if (stream_) return main_;
  return index < devices_.size() ? devices_[index] : nullptr;
}

Result<char*> GpuWork::Stage(gpu::Device* device, uint64_t bytes) {
  const uint64_t taken = (bytes + kStagedAlignment - 1) / kStagedAlignment * kStagedAlignment;
  if (taken > staged_left_) {
    auto block = device->NewHostBlock(std::max(taken, kStagedBlock));
    if (!block) return tl::unexpected(std::move(block.error()));
    staged_at_ = (*block)->data();
    staged_left_ = (*block)->bytes();
    blocks_.push_back(std::move(*block));
  }
  char* const memory = staged_at_;
  staged_at_ += taken;
  staged_left_ -= taken;
  staged_bytes_ += bytes;
  return memory;
}

void GpuWork::ShareStaged(const GpuWork& other) {
  blocks_.insert(blocks_.end(), other.blocks_.begin(), other.blocks_.end());
}

GpuWork::Group& GpuWork::GroupFor(const GpuMove& move) {
  gpu::Device* device = DeviceFor(move.index);
  if (device == nullptr) device = move.device;
  for (Group& group : groups_) {
    if (group.device == device) return group;
  }
  Group& group = groups_.emplace_back();
  group.device = device;
  return group;
}

void GpuWork::Add(GpuMove move, std::span<const LayeredPiece> pieces) {
  Group& group = GroupFor(move);
  group.moves.push_back(moves_.size());
  for (const LayeredPiece& piece : pieces) group.pieces.emplace_back(moves_.size(), piece);
  moves_.push_back(std::move(move));
}

void GpuWork::AddPages(GpuMove move, Direction direction, const gpu::PageCopy& pages) {
  Group& group = GroupFor(move);
  group.moves.push_back(moves_.size());
  group.pages.push_back({moves_.size(), direction, pages});
  moves_.push_back(std::move(move));
}

moonpool::Status GpuWork::AddPagesOfLayer(const Group& group, uint32_t layer,
                                          std::span<const size_t> keys, Tables* tables,
                                          gpu::CopyBatch* batch) const {
  gpu::PlaceCache places(group.device);
  const auto side_of = [](const PagesMove& move) -> const gpu::Pages& {
    return move.direction == Direction::kToCaller ? move.pages.to : move.pages.from;
  };
  // What can share a launch: the same layout, and values in the same kind of memory.
  struct Shared {
    const PagesMove* first = nullptr;
    gpu::Place place;
    std::vector<const PagesMove*> all;
  };
  std::vector<Shared> launches;
  for (const PagesMove& move : group.pages) {
    const GpuMove& value = moves_[move.move];
    const gpu::PageCopy& pages = move.pages;
    const uint32_t planes = pages.plane_count / layers_;
    const uint32_t first_plane = layer * planes;
    const uint64_t page_bytes = pages.plane_count * pages.piece_bytes;
    const Result<gpu::Place> place = places.Find(value.pool, value.bytes);
    if (!place) return tl::unexpected(place.error());
    gpu::PageCopy copy = pages;
    copy.plane_count = planes;
    gpu::Pages& caller = move.direction == Direction::kToCaller ? copy.to : copy.from;
    gpu::Pages& pool = move.direction == Direction::kToCaller ? copy.from : copy.to;
    caller = LayerOf(side_of(move), first_plane, planes);
    pool = {};
    pool.base = value.pool + first_plane * pages.piece_bytes;
    pool.plane_stride = pages.piece_bytes;
    pool.page_stride = page_bytes;
    if (place->kind == gpu::Place::Kind::kPageable) {
      if (moonpool::Status valid = gpu::Validate(copy, true, true); !valid) return valid;
      for (uint32_t page = 0; page < copy.page_count; ++page) {
        for (uint32_t plane = 0; plane < planes; ++plane) {
          batch->Copy(keys[move.move], {gpu::PieceAddress(copy.to, page, plane),
                                        gpu::PieceAddress(copy.from, page, plane),
                                        copy.piece_bytes});
        }
      }
      continue;
    }
    if (layers_ == 1 && place->kind == gpu::Place::Kind::kPinned && value.bytes >= kOwnPageCopy) {
      batch->CopyPages(keys[move.move], copy);
      continue;
    }
    const auto fits = [&](const Shared& shared) {
      return shared.place.kind == place->kind && shared.place.device == place->device &&
             shared.place.device_offset == place->device_offset &&
             shared.first->direction == move.direction &&
             SameLayout(shared.first->pages, side_of(*shared.first), pages, side_of(move));
    };
    auto found = std::find_if(launches.begin(), launches.end(), fits);
    if (found == launches.end()) {
      found = launches.insert(launches.end(), Shared{&move, *place, {}});
    }
    found->all.push_back(&move);
  }
  for (const Shared& shared : launches) {
    const gpu::PageCopy& like = shared.first->pages;
    const uint32_t planes = like.plane_count / layers_;
    const uint32_t first_plane = layer * planes;
    const uint64_t page_bytes = like.plane_count * like.piece_bytes;
    std::vector<char*>& pointers = tables->pointers.emplace_back();
    std::vector<int64_t>& entries = tables->entries.emplace_back();
    for (const PagesMove* move : shared.all) {
      for (uint32_t page = 0; page < move->pages.page_count; ++page) {
        pointers.push_back(moves_[move->move].pool + page * page_bytes +
                           first_plane * like.piece_bytes);
        entries.push_back(EntryOf(side_of(*move), page));
      }
    }
    gpu::PageCopy copy = like;
    copy.page_count = static_cast<uint32_t>(pointers.size());
    copy.plane_count = planes;
    const bool to_caller = shared.first->direction == Direction::kToCaller;
    gpu::Pages& caller = to_caller ? copy.to : copy.from;
    gpu::Pages& pool = to_caller ? copy.from : copy.to;
    caller = LayerOf(side_of(*shared.first), first_plane, planes);
    caller.table = gpu::PageTable::Of(std::span<const int64_t>(entries));
    pool = {};
    pool.plane_stride = like.piece_bytes;
    pool.table = gpu::PageTable::Of(std::span<char* const>(pointers));
    batch->CopyPages(keys[shared.all[0]->move], copy);
    for (const PagesMove* move : shared.all) batch->Share(keys[move->move]);
  }
  return {};
}

Result<gpu::Completion> GpuWork::Send(Group& group, Clock::time_point deadline) const {
  gpu::CopyBatch batch(group.device, stream_);
  std::vector<size_t> keys(moves_.size());
  for (const size_t move : group.moves) {
    keys[move] = batch.AddKey(moves_[move].counter, moves_[move].generation);
  }
  Tables tables;
  size_t next = 0;  // of the pieces, which are in the order of their layers
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    const bool last = layer + 1 == layers_;
    for (; next < group.pieces.size() && (last || group.pieces[next].second.layer <= layer);
         ++next) {
      batch.Copy(keys[group.pieces[next].first], group.pieces[next].second.piece);
    }
    if (moonpool::Status status = AddPagesOfLayer(group, layer, keys, &tables, &batch); !status) {
      return tl::unexpected(std::move(status.error()));
    }
    // An event for each, empty ones among them.
    if (layers_ > 1) batch.EndLayer();
  }
  Result<gpu::Completion> completion = std::move(batch).Submit(&group.completion);
  if (completion || !group.completion) return completion;
  // Memory that a part of it goes to must not be used as if nothing were under way.
  group.refused = true;
  const Result<bool> done = group.completion->WaitUntil(deadline);
  if (done && !*done) return tl::unexpected(StillUnderWay());
  group.completion.reset();
  group.refused = false;
  return completion;
}

bool GpuWork::DropUnusable(Group& group) {
  gpu::PlaceCache places(group.device);
  std::vector<bool> bad(moves_.size());
  const auto drop = [&](size_t move, Error error) {
    bad[move] = true;
    moves_[move].outcome = GpuMove::Outcome::kFailed;
    moves_[move].error = std::move(error);
  };
  for (const auto& [move, piece] : group.pieces) {
    if (bad[move] || piece.piece.bytes == 0) continue;
    for (const void* address : {static_cast<const void*>(piece.piece.to), piece.piece.from}) {
      if (address == nullptr) {
        drop(move, {ErrorCode::kInvalidArgument, "a buffer's address is null"});
      } else if (auto place = places.Find(address, piece.piece.bytes); !place && !bad[move]) {
        drop(move, std::move(place.error()));
      }
    }
  }
  for (const PagesMove& pages : group.pages) {
    // The pool's side is not known yet; any address does.
    gpu::PageCopy copy = pages.pages;
    (pages.direction == Direction::kToCaller ? copy.from : copy.to) = {
        {}, moves_[pages.move].pool, copy.piece_bytes, copy.plane_count * copy.piece_bytes, {}, 0};
    if (auto valid = gpu::Validate(copy, true, true); !valid) {
      drop(pages.move, std::move(valid.error()));
    }
  }
  std::erase_if(group.pieces, [&](const auto& piece) { return bad[piece.first]; });
  std::erase_if(group.pages, [&](const PagesMove& pages) { return bad[pages.move]; });
  return std::erase_if(group.moves, [&](size_t move) { return bad[move]; }) > 0;
}

bool GpuWork::given_up(const gpu::Device* device) const {
  return std::find(given_up_.begin(), given_up_.end(), device) != given_up_.end();
}

void GpuWork::Submit(Group& group, Clock::time_point deadline) {
  if (std::exchange(group.submitted, true)) return;
  if (!deferred() && (given_up(group.device) || (parked_ != nullptr && parked_->full()))) {
    return Fail(group, NotTried());
  }
  std::stable_sort(group.pieces.begin(), group.pieces.end(), [](const auto& a, const auto& b) {
    return a.second.layer < b.second.layer;
  });
  Result<gpu::Completion> completion = Send(group, deadline);
  // One bad buffer must not fail the keys beside it.
  if (!completion && completion.error().code == ErrorCode::kInvalidArgument &&
      DropUnusable(group)) {
    completion = Send(group, deadline);
  }
  if (completion) {
    group.completion = std::move(*completion);
  } else if (group.refused) {
    GiveUp(group.device);
    Fail(group, completion.error(), GpuMove::Outcome::kLeft);
  } else {
    Fail(group, completion.error());
  }
}

void GpuWork::Submit(Clock::time_point deadline) {
  for (Group& group : groups_) Submit(group, deadline);
}

void GpuWork::Fail(const Group& group, const Error& error, GpuMove::Outcome outcome) {
  for (const size_t move : group.moves) {
    moves_[move].outcome = outcome;
    moves_[move].error = error;
  }
}

bool GpuWork::Done() const {
  return std::all_of(groups_.begin(), groups_.end(), [](const Group& group) {
    if (!group.completion || group.done || group.refused) return true;
    const Result<bool> done = group.completion->Done();
    return !done || *done;  // an error is told by WaitUntil()
  });
}

bool GpuWork::WaitUntil(Clock::time_point deadline) {
  bool all = true;
  for (Group& group : groups_) {
    if (!group.completion || group.done || group.refused) continue;
    const Result<bool> done = group.completion->WaitUntil(deadline);
    group.done = !done || *done;
    if (!done) {
      Fail(group, done.error());
      continue;
    }
    if (!*done) {
      all = false;
      GiveUp(group.device);
      Fail(group, StillUnderWay(), GpuMove::Outcome::kLeft);
      continue;
    }
    for (size_t key = 0; key < group.moves.size(); ++key) {
      moves_[group.moves[key]].outcome = group.completion->Unchanged(key)
                                             ? GpuMove::Outcome::kDone
                                             : GpuMove::Outcome::kChanged;
    }
  }
  return all;
}

void GpuWork::Park(Group& group) {
  if (!group.completion || group.done) return;
  const Result<bool> done = group.completion->Done();
  if (!done || *done) return;
  ParkedWork work{{blocks_.begin(), blocks_.end()},
                  group.moves.size(),
                  deferred(),
                  std::move(*group.completion)};
  for (const size_t index : group.moves) {
    const GpuMove& move = moves_[index];
    if (move.mapping != nullptr) work.held.push_back(move.mapping);
    if (move.memory != nullptr) {
      work.held.push_back(move.memory);
      work.held.push_back(move.memory->KeepWhatGoes());
    }
    // The server gives a session's extents to nobody else while it lives.
    if (move.token != 0) work.held.push_back(move.channel);
  }
  group.completion.reset();
  parked_->Add(std::move(work));
}

void GpuWork::Settle() {
  for (Group& group : groups_) {
    if (group.refused) Park(group);
  }
  for (GpuMove& move : moves_) {
    move.pool = nullptr;
    move.counter = nullptr;
    move.mapping = nullptr;
    move.memory = nullptr;
    move.channel = nullptr;
  }
  for (Group& group : groups_) {
    group.pieces = {};
    group.pages = {};
  }
  ForgetStaged();
}

const gpu::Event* GpuWork::LayerEvent(size_t layer) const {
  if (groups_.empty() || !groups_[0].completion || groups_[0].refused) return nullptr;
  return &groups_[0].completion->layer(layer);
}

void GpuWork::Clear() {
  if (parked_ != nullptr) {
    for (Group& group : groups_) Park(group);
  }
  groups_.clear();
  moves_.clear();
  ForgetStaged();
}

void GpuWork::ForgetStaged() {
  blocks_.clear();
  staged_at_ = nullptr;
  staged_left_ = 0;
  staged_bytes_ = 0;
}

}  // namespace moonpool::client
