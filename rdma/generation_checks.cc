// TransferEngine: generations are read behind the bytes they prove.
#include <algorithm>
#include <utility>

#include "protocol/seqlock.h"
#include "rdma/transfer_engine.h"

namespace moonpool::rdma {

namespace {

constexpr uint64_t kSlotBytes = sizeof(protocol::GenerationCounter);
// One request reads the slots within so many: they travel in one packet.
constexpr uint32_t kSpanSlots = 4096 / kSlotBytes;
constexpr size_t kLandingWords = 64 * 1024 / kSlotBytes;
// Complete values are gathered to so many, while there is other work.
constexpr size_t kGather = 32;

}  // namespace

Lane* TransferEngine::CheckLane() const {
  Lane* best = nullptr;
  for (Lane* lane : lanes_) {
    if (!lane->open() || lane->room() == 0 || lane->remote() == nullptr ||
        lane->remote()->generations.length == 0) {
      continue;
    }
    if (best == nullptr || lane->outstanding_bytes() < best->outstanding_bytes()) best = lane;
  }
  return best;
}

void TransferEngine::Unreachable(Transfer* transfer, uint32_t item, const std::string& why) {
  if (transfer->error_.empty()) transfer->error_ = why;
  transfer->states_[item].fate = Outcome::kUnreachable;
  Close(transfer, item);
}

bool TransferEngine::PostChecks() {
  bool any = false;
  if (!to_check_.empty() && (to_check_.size() >= kGather || queue_.empty())) {
    if (Lane* const lane = CheckLane(); lane != nullptr) {
      const size_t before = to_check_.size();
      PostCheck(lane, &to_check_, false);
      any = to_check_.size() != before;
    } else if (std::none_of(lanes_.begin(), lanes_.end(),
                            [](const Lane* candidate) { return candidate->open(); })) {
      for (const auto& [transfer, item] : std::exchange(to_check_, {})) {
        Unreachable(transfer, item, "no lane is open");
      }
      any = true;
    }
  }
  if (!look_for_checks_ || !queue_.empty()) return any;
  look_for_checks_ = false;
  std::vector<Member> members;
  for (Lane* lane : lanes_) {
    // Over one that does not fence, what is behind the bytes may be read before them.
    if (!lane->open() || !lane->fences_reads() || lane->room() == 0 || lane->remote() == nullptr ||
        lane->remote()->generations.length == 0) {
      continue;
    }
    members.clear();
    for (Transfer* transfer : transfers_) {
      for (uint32_t i = 0; i < transfer->items_.size(); ++i) {
        const Transfer::ItemState& state = transfer->states_[i];
        if (transfer->items_[i].checked && state.fate == Outcome::kPending && !state.checking &&
            state.slices > 0 && state.outstanding == state.slices && state.on_one_lane &&
            state.lane == lane) {
          members.emplace_back(transfer, i);
        }
      }
    }
    if (members.empty()) continue;
    any = true;
    // Those there is no room for are read when they are complete.
    PostCheck(lane, &members, true);
  }
  return any;
}

// Posts what there is room for, and takes that out of `members`.
void TransferEngine::PostCheck(Lane* lane, std::vector<Member>* members, bool fenced) {
  if (landing_keys_ == nullptr) {
    landing_.resize(kLandingWords);
    auto keys = Registration::Create(domains_, reinterpret_cast<char*>(landing_.data()),
                                     landing_.size() * kSlotBytes, kReadTarget);
    if (!keys) {
      for (const auto& [transfer, item] : std::exchange(*members, {})) {
        Unreachable(transfer, item, keys.error().message);
      }
      return;
    }
    landing_keys_ = std::move(*keys);
  }
  if (open_checks_ == 0) landing_used_ = 0;
  const RemotePart& table = lane->remote()->generations;
  const auto slot_of = [](const Member& member) {
    return member.first->items_[member.second].slot;
  };
  std::sort(members->begin(), members->end(),
            [&](const Member& a, const Member& b) { return slot_of(a) < slot_of(b); });
  uint64_t index;
  if (free_checks_.empty()) {
    index = checks_.size();
    checks_.emplace_back();
  } else {
    index = free_checks_.back();
    free_checks_.pop_back();
  }
  Check& check = checks_[index];
  check = {};
  const Registration::Part part = landing_keys_->At(0);
  size_t at = 0;
  while (at < members->size() && lane->room() > 0) {
    const uint32_t first = slot_of((*members)[at]);
    if ((uint64_t{first} + 1) * kSlotBytes > table.length) {
      // A descriptor that is not of this server.
      const auto [transfer, item] = (*members)[at++];
      transfer->states_[item].fate = Outcome::kNotThere;
      Close(transfer, item);
      continue;
    }
    size_t end = at + 1;
    while (end < members->size() && slot_of((*members)[end]) - first < kSpanSlots &&
           (uint64_t{slot_of((*members)[end])} + 1) * kSlotBytes <= table.length) {
      ++end;
    }
    const size_t words = slot_of((*members)[end - 1]) - first + 1;
    if (landing_used_ + words > landing_.size()) break;
    for (size_t i = at; i < end; ++i) {
      const auto [transfer, item] = (*members)[i];
      transfer->states_[item].checking = true;
      const size_t word = landing_used_ + slot_of((*members)[i]) - first;
      check.members.push_back({transfer, item, static_cast<uint32_t>(word)});
    }
    const Piece piece{reinterpret_cast<uint64_t>(&landing_[landing_used_]),
                      static_cast<uint32_t>(words * kSlotBytes),
                      part.keys->on[lane->device()].local};
    lane->Add(WorkRequest::Kind::kRead, std::span(&piece, 1), table.address + first * kSlotBytes,
              table.key, fenced && check.requests == 0, {nullptr, index, 0});
    ++check.requests;
    ++counters_.generation_reads;
    counters_.fenced_reads += fenced ? 1 : 0;
    landing_used_ += words;
    at = end;
  }
  members->erase(members->begin(), members->begin() + static_cast<ptrdiff_t>(at));
  if (check.requests == 0) {
    free_checks_.push_back(index);
  } else {
    ++open_checks_;
  }
}

void TransferEngine::CheckEnded(uint64_t index, const Lane::End& end) {
  Check& check = checks_[index];
  if (end.status != Completion::Status::kOk && check.status != Completion::Status::kRemoteRefused) {
    check.status = end.status;
  }
  if (--check.requests > 0) return;
  const Completion::Status status = check.status;
  for (const Check::Member& member : check.members) {
    Transfer::ItemState& state = member.transfer->states_[member.item];
    state.checking = false;
    if (status == Completion::Status::kOk) {
      const uint64_t seen = __atomic_load_n(&landing_[member.word], __ATOMIC_ACQUIRE);
      if (state.fate == Outcome::kPending) {
        state.fate = seen == member.transfer->items_[member.item].generation ? Outcome::kDone
                                                                             : Outcome::kChanged;
      }
    } else if (status == Completion::Status::kRemoteRefused) {
      if (state.fate == Outcome::kPending) state.fate = Outcome::kNotThere;
    } else if (state.fate == Outcome::kPending && state.slices == 0) {
      // Its bytes are here: only the generation is read again, over another lane.
      to_check_.emplace_back(member.transfer, member.item);
      continue;
    }
    Close(member.transfer, member.item);
  }
  check = {};
  free_checks_.push_back(index);
  --open_checks_;
}

}  // namespace moonpool::rdma
