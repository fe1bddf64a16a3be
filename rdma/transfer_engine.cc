#include "rdma/transfer_engine.h"

#include <algorithm>

#include "rdma/staging.h"
#include "rdma/ticks.h"

namespace moonpool::rdma {

namespace {

// Of a lane's depth, for reading generations.
constexpr uint32_t kRoomForChecks = 8;
// How often a lane's rate is taken, in bytes it delivered, and how much the newest counts.
constexpr uint64_t kMeasureBytes = 1 << 20;
constexpr double kNewest = 0.3;
// Between two looks at what is stuck.
constexpr int64_t kMostUnseenMs = 40;

}  // namespace

TransferEngine::TransferEngine(const Domains& domains, const EngineOptions& options)
    : domains_(domains), options_(options) {}

TransferEngine::~TransferEngine() = default;

void TransferEngine::AddLane(Lane* lane) {
  lanes_.push_back(lane);
  LookAgain();
}

void TransferEngine::RemoveLane(Lane* lane) {
  MOONPOOL_CHECK(lane->state() == Lane::State::kFenced && lane->outstanding() == 0);
  std::erase(lanes_, lane);
  std::erase_if(asked_, [&](const Asked& asked) { return asked.what.lane == lane; });
  std::erase_if(missing_, [&](const Missing& missing) { return missing.lane == lane; });
  // What waits for an answer over it.
  LookAgain();
}

void TransferEngine::Start(Transfer* transfer) {
  transfer->open_items_ = transfer->items_.size();
  transfers_.push_back(transfer);
  Cut(transfer);
  look_for_checks_ = true;
  for (uint32_t i = 0; i < transfer->items_.size(); ++i) {
    if (transfer->items_[i].length > 0) continue;
    transfer->states_[i].fate = Outcome::kDone;
    Close(transfer, i);
  }
}

bool TransferEngine::Progress(Messages* messages) {
  bool any = false;
  for (Lane* lane : lanes_) {
    ends_.clear();
    lane_messages_.clear();
    if (!lane->Poll(&ends_, &lane_messages_)) continue;
    any = true;
    for (const Lane::End& end : ends_) Ended(lane, end);
    if (lanes_.size() > 1) Measure(lane);
    for (const Message& message : lane_messages_) messages->emplace_back(lane, message);
  }
  any |= Assign();
  if (!to_check_.empty() || look_for_checks_) any |= PostChecks();
  for (Lane* lane : lanes_) {
    if (lane->open()) lane->Post();
  }
  std::erase_if(transfers_, [](const Transfer* transfer) { return transfer->done(); });
  if (transfers_.empty()) {
    std::erase_if(asked_, [](const Asked& asked) { return asked.denied; });
  }
  return any;
}

void TransferEngine::GiveUp(Transfer* transfer, const std::string& why) {
  if (transfer->error_.empty()) transfer->error_ = why;
  for (Transfer::ItemState& state : transfer->states_) {
    if (state.fate == Outcome::kPending) state.fate = Outcome::kUnreachable;
  }
  DropQueued(transfer);
}

void TransferEngine::DropQueued(Transfer* transfer) {
  std::vector<Queued> dropped;
  std::erase_if(queue_, [&](const Queued& queued) {
    if (queued.transfer != transfer) return false;
    dropped.push_back(queued);
    queued_bytes_ -= transfer->slices_[queued.slice].length;
    return true;
  });
  for (const uint32_t slice : std::exchange(transfer->waiting_, {})) {
    dropped.push_back({transfer, slice});
  }
  for (const Queued& queued : dropped) FinishSlice(queued, Outcome::kUnreachable);
  std::erase_if(to_check_, [&](const Member& member) {
    if (member.first != transfer) return false;
    Close(transfer, member.second);
    return true;
  });
}

void TransferEngine::Destroy(Lane* lane) {
  ends_.clear();
  lane->Destroy(&ends_);
  const std::vector<Lane::End> ends = std::move(ends_);
  for (const Lane::End& end : ends) Ended(lane, end);
}

void TransferEngine::KeysCame(const Lane* lane, uint32_t remote) {
  std::erase_if(asked_, [&](const Asked& asked) {
    return asked.what.lane == lane && asked.what.remote == remote;
  });
  LookAgain();
}

void TransferEngine::LookAgain() {
  for (Transfer* transfer : transfers_) {
    for (const uint32_t slice : std::exchange(transfer->waiting_, {})) {
      queue_.push_back({transfer, slice});
      queued_bytes_ += transfer->slices_[slice].length;
    }
  }
}

void TransferEngine::NotThere(const Lane* lane, uint32_t remote) {
  for (Asked& asked : asked_) {
    if (asked.what.lane == lane && asked.what.remote == remote) asked.denied = true;
  }
  LookAgain();
}

// --- who carries what ----------------------------------------------------------------------

bool TransferEngine::Assign() {
  bool any = false;
  while (!queue_.empty() && AssignFront()) any = true;
  return any;
}

// False when it must wait.
bool TransferEngine::AssignFront() {
  const Queued queued = queue_.front();
  Transfer* const transfer = queued.transfer;
  const auto take = [&] {
    queue_.pop_front();
    queued_bytes_ -= transfer->slices_[queued.slice].length;
  };
  const Transfer::Slice& slice = transfer->slices_[queued.slice];
  bool wanted = false;
  for (uint32_t i = 0; i < slice.items; ++i) {
    wanted |= transfer->states_[transfer->order_[slice.first_item + i]].fate == Outcome::kPending;
  }
  if (!wanted) {
    take();
    FinishSlice(queued, Outcome::kUnreachable);
    return true;
  }
  bool carries = false;
  bool missing = false;
  Lane* const lane = BestLane(queued, &carries, &missing);
  if (lane == nullptr) {
    if (carries) return false;
    const bool any_open = std::any_of(lanes_.begin(), lanes_.end(), [&](const Lane* candidate) {
      return candidate->open() && MayCarry(*candidate, *transfer, slice);
    });
    take();
    if (missing) {
      transfer->waiting_.push_back(queued.slice);
    } else {
      if (!any_open && transfer->error_.empty()) transfer->error_ = "no lane is open";
      FinishSlice(queued, any_open ? Outcome::kNotThere : Outcome::kUnreachable);
    }
    return true;
  }
  if (slice.staged || !KeysFit(*lane, *transfer, slice)) {
    if (!EnsureStaging()) {
      if (transfer->error_.empty()) transfer->error_ = staging_error_;
      take();
      FinishSlice(queued, Outcome::kUnreachable);
      return true;
    }
    if (free_staging_.empty()) return false;
  }
  take();
  bool ignored = false;
  PostSlice(lane, queued, *Reachable(*lane, slice, &ignored));
  return true;
}

const RemotePart* TransferEngine::Reachable(Lane& lane, const Transfer::Slice& slice,
                                            bool* missing) {
  if (!lane.open() || lane.remote() == nullptr) return nullptr;
  const RemotePart* const part = lane.remote()->Find(slice.remote, slice.offset);
  if (part != nullptr) return part;
  for (const Asked& asked : asked_) {
    if (asked.what.lane == &lane && asked.what.remote == slice.remote) {
      *missing |= !asked.denied;
      return nullptr;
    }
  }
  *missing = true;
  asked_.push_back({{&lane, slice.remote, slice.offset}, false});
  missing_.push_back(asked_.back().what);
  return nullptr;
}

bool TransferEngine::KeysFit(const Lane& lane, const Transfer& transfer,
                             const Transfer::Slice& slice) const {
  for (uint32_t i = 0; i < slice.pieces; ++i) {
    const LocalPiece& piece = transfer.pieces_[slice.first_piece + i];
    if (piece.keys == nullptr || !piece.keys->on[lane.device()].valid) return false;
  }
  return true;
}

// A slice with memory of a device cannot be staged: only NICs that have all of it carry it.
bool TransferEngine::MayCarry(const Lane& lane, const Transfer& transfer,
                              const Transfer::Slice& slice) const {
  if (slice.staged) return true;
  bool peer = false;
  for (uint32_t i = 0; i < slice.pieces; ++i) {
    const SliceKeys* const keys = transfer.pieces_[slice.first_piece + i].keys;
    peer |= keys != nullptr && keys->peer;
  }
  return !peer || KeysFit(lane, transfer, slice);
}

// The lane that would have the slice soonest; null when it has no room, or when another would have
// everything before this one is here.  `any_carries`: some lane could carry it; `any_missing`: some
// lane could if it had the keys.
Lane* TransferEngine::BestLane(const Queued& queued, bool* any_carries, bool* any_missing) {
  const Transfer::Slice& slice = queued.transfer->slices_[queued.slice];
  double known = 0;
  size_t known_lanes = 0;
  for (const Lane* lane : lanes_) {
    if (lane->open() && lane->pace.rate > 0) {
      known += lane->pace.rate;
      ++known_lanes;
    }
  }
  const double guess = known_lanes > 0 ? known / static_cast<double>(known_lanes) : 1;
  double total_rate = 0;
  uint64_t total_bytes = queued_bytes_;
  double soonest = 0;
  double soonest_with_room = 0;
  Lane* best = nullptr;
  bool first = true;
  for (Lane* lane : lanes_) {
    if (!MayCarry(*lane, *queued.transfer, slice)) continue;
    if (Reachable(*lane, slice, any_missing) == nullptr) continue;
    *any_carries = true;
    const double rate = lane->pace.rate > 0 ? lane->pace.rate : guess;
    total_rate += rate;
    total_bytes += lane->outstanding_bytes();
    const double end = static_cast<double>(lane->outstanding_bytes() + slice.length) / rate;
    if (first || end < soonest) soonest = end;
    first = false;
    const bool room = lane->room() > kRoomForChecks &&
                      (lane->outstanding_bytes() == 0 ||
                       lane->outstanding_bytes() + slice.length <= options_.window_bytes);
    if (room && (best == nullptr || end < soonest_with_room)) {
      best = lane;
      soonest_with_room = end;
    }
  }
  if (best == nullptr || soonest_with_room <= soonest) return best;
  return soonest_with_room <= static_cast<double>(total_bytes) / total_rate ? best : nullptr;
}

void TransferEngine::PostSlice(Lane* lane, const Queued& queued, const RemotePart& part) {
  Transfer* const transfer = queued.transfer;
  if (!transfer->slices_[queued.slice].staged &&
      !KeysFit(*lane, *transfer, transfer->slices_[queued.slice])) {
    transfer->slices_[queued.slice].staged = true;
  }
  uint64_t most = part.offset + part.length - transfer->slices_[queued.slice].offset;
  if (transfer->slices_[queued.slice].staged) most = std::min(most, kStagingBlockBytes);
  if (most < transfer->slices_[queued.slice].length) SplitSlice(queued, most);
  Transfer::Slice& slice = transfer->slices_[queued.slice];
  pieces_.clear();
  if (slice.staged) {
    MOONPOOL_CHECK(Stage(*transfer, &slice));
    const uint64_t at = static_cast<uint64_t>(slice.staging) * kStagingBlockBytes;
    pieces_.push_back({reinterpret_cast<uint64_t>(staging_.data() + at),
                       static_cast<uint32_t>(slice.length),
                       staging_keys_->At(at).keys->on[lane->device()].local});
  } else {
    for (uint32_t i = 0; i < slice.pieces; ++i) {
      const LocalPiece& piece = transfer->pieces_[slice.first_piece + i];
      pieces_.push_back({reinterpret_cast<uint64_t>(piece.data),
                         static_cast<uint32_t>(piece.length),
                         piece.keys->on[lane->device()].local});
    }
  }
  for (uint32_t i = 0; i < slice.items; ++i) {
    Transfer::ItemState& state = transfer->states_[transfer->order_[slice.first_item + i]];
    state.on_one_lane = state.outstanding == 0 || (state.on_one_lane && state.lane == lane);
    state.lane = lane;
    ++state.outstanding;
  }
  if (lane->outstanding_bytes() == 0 && lanes_.size() > 1) {
    lane->pace.since_ticks = Ticks();
    lane->pace.since_bytes = lane->pace.completed_bytes;
  }
  const auto kind = transfer->direction_ == Transfer::Direction::kRead ? WorkRequest::Kind::kRead
                                                                       : WorkRequest::Kind::kWrite;
  lane->Add(kind, pieces_, part.address + (slice.offset - part.offset), part.key, false,
            {transfer, queued.slice, slice.length});
  ++counters_.slices;
  look_for_checks_ = true;
}

void TransferEngine::Measure(Lane* lane) {
  Lane::Pace& pace = lane->pace;
  const uint64_t bytes = pace.completed_bytes - pace.since_bytes;
  if (bytes < kMeasureBytes && (bytes == 0 || lane->outstanding_bytes() > 0)) return;
  const uint64_t now = Ticks();
  if (now > pace.since_ticks) {
    const double rate = static_cast<double>(bytes) / static_cast<double>(now - pace.since_ticks);
    pace.rate = pace.rate == 0 ? rate : (1 - kNewest) * pace.rate + kNewest * rate;
  }
  pace.since_ticks = now;
  pace.since_bytes = pace.completed_bytes;
}

bool TransferEngine::CheckStuck(int64_t now_ms) {
  // A process that was not running saw nothing arrive: that says nothing about the lanes.
  const int64_t passed_ms = checked_ms_ == 0 ? 0 : std::min(now_ms - checked_ms_, kMostUnseenMs);
  checked_ms_ = now_ms;
  bool one_works = false;
  for (Lane* lane : lanes_) {
    Lane::Pace& pace = lane->pace;
    if (lane->outstanding() == 0 || lane->ended() != pace.seen_ended) {
      pace.seen_ended = lane->ended();
      pace.stuck_ms = 0;
    } else {
      pace.stuck_ms += passed_ms;
    }
    one_works |= lane->open() && pace.stuck_ms < options_.stall_ms;
  }
  // When nothing arrives on any of them, the other side is busy sooner than all of them are broken.
  const int64_t stall_ms = one_works ? options_.stall_ms : options_.lone_stall_ms;
  bool any = false;
  for (Lane* lane : lanes_) {
    Lane::Pace& pace = lane->pace;
    if (lane->open() && pace.stuck_ms >= stall_ms) {
      lane->Fail("nothing arrived for " + std::to_string(pace.stuck_ms) + " ms");
      pace.stuck_ms = 0;
      any = true;
    } else if (lane->state() == Lane::State::kFailed && pace.stuck_ms >= options_.drain_ms) {
      Destroy(lane);
      any = true;
    }
  }
  return any;
}

// --- how it ended --------------------------------------------------------------------------

void TransferEngine::Ended(Lane* lane, const Lane::End& end) {
  if (end.ticket.owner == nullptr) {
    CheckEnded(end.ticket.index, end);
  } else {
    SliceEnded(lane,
               {static_cast<Transfer*>(end.ticket.owner), static_cast<uint32_t>(end.ticket.index)},
               end);
  }
}

void TransferEngine::SliceEnded(Lane* lane, const Queued& queued, const Lane::End& end) {
  Transfer* const transfer = queued.transfer;
  Transfer::Slice& slice = transfer->slices_[queued.slice];
  const bool good = end.status == Completion::Status::kOk;
  Unstage(*transfer, &slice, good);
  for (uint32_t i = 0; i < slice.items; ++i) {
    --transfer->states_[transfer->order_[slice.first_item + i]].outstanding;
  }
  if (good) {
    FinishSlice(queued, Outcome::kPending);
    return;
  }
  if (transfer->error_.empty()) transfer->error_ = end.text;
  switch (end.status) {
    case Completion::Status::kRemoteRefused:
      if (lane->remote() != nullptr) lane->remote()->Drop(slice.remote);
      FinishSlice(queued, Outcome::kNotThere);
      return;
    case Completion::Status::kLocalError:
      FinishSlice(queued, Outcome::kUnreachable);
      return;
    default:
      if (++slice.tries >= options_.tries) {
        FinishSlice(queued, Outcome::kUnreachable);
      } else {
        Requeue(queued);
      }
  }
}

void TransferEngine::Requeue(const Queued& queued) {
  ++counters_.retried_slices;
  queue_.push_front(queued);
  queued_bytes_ += queued.transfer->slices_[queued.slice].length;
  look_for_checks_ = true;
}

// The slice is over; `fate` of its values, kPending when it is complete.
void TransferEngine::FinishSlice(const Queued& queued, Outcome fate) {
  Transfer* const transfer = queued.transfer;
  const Transfer::Slice& slice = transfer->slices_[queued.slice];
  for (uint32_t i = 0; i < slice.items; ++i) {
    const uint32_t item = transfer->order_[slice.first_item + i];
    Transfer::ItemState& state = transfer->states_[item];
    --state.slices;
    if (fate != Outcome::kPending && state.fate == Outcome::kPending) state.fate = fate;
    if (state.slices > 0) continue;
    if (state.fate == Outcome::kPending && !state.checking) {
      if (transfer->items_[item].checked) {
        to_check_.emplace_back(transfer, item);
        continue;
      }
      state.fate = Outcome::kDone;
    }
    Close(transfer, item);
  }
}

// Tells the caller what became of the item, once nothing of it is posted.
void TransferEngine::Close(Transfer* transfer, uint32_t item) {
  Transfer::ItemState& state = transfer->states_[item];
  if (state.outcome != Outcome::kPending || state.fate == Outcome::kPending || state.slices > 0 ||
      state.checking) {
    return;
  }
  state.outcome = state.fate;
  --transfer->open_items_;
}

}  // namespace moonpool::rdma
