#include "rdma/endpoint.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>

namespace moonpool::rdma {

namespace {

// How long a wait for completions lasts before the lanes are looked at.
constexpr int64_t kTickMs = 10;
// With several lanes they are looked at every so many waits, too.
constexpr uint32_t kLookEvery = 16;
// For the other lanes, once one is open.
constexpr int64_t kGraceMs = 100;

int DefaultSpins() {
  // With one processor whoever is waited for cannot run meanwhile.
  return sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2000 : 0;
}

}  // namespace

Endpoint::Endpoint(NicSet& nics, const Domains& domains, EndpointTarget target, Tokens tokens,
                   const EndpointOptions& options)
    : nics_(nics),
      domains_(domains),
      target_(std::move(target)),
      tokens_(std::move(tokens)),
      options_(options),
      spins_(options.spins >= 0 ? options.spins : DefaultSpins()),
      engine_(domains, options.engine) {
  for (NicPair& pair : PairNics(nics_.nics(), target_.nics)) {
    slots_.emplace_back(std::move(pair), options_);
  }
}

Endpoint::~Endpoint() {
  Close("closed");
}

int64_t Endpoint::NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
      .count();
}

Status Endpoint::Open() {
  if (slots_.empty()) {
    return Fail(ErrorCode::kUnavailable,
                "no NIC of this host speaks the same protocol as one of the server's");
  }
  if (events_ == nullptr) {
    auto events = nics_.verbs().NewConnectionEvents();
    if (!events) return tl::unexpected<Error>(std::move(events.error()));
    events_ = std::move(*events);
    for (const auto& device : nics_.devices()) {
      auto channel = device->NewCompletionChannel();
      if (!channel) return tl::unexpected<Error>(std::move(channel.error()));
      channels_.push_back(std::move(*channel));
    }
  }
  Repair();
  for (int64_t first_ms = 0; connecting();) {
    Wait(kTickMs);
    Step();
    // The others may still come; a NIC that does not answer is not waited for.
    if (!has_lane()) continue;
    if (first_ms == 0) first_ms = NowMs();
    if (NowMs() - first_ms >= kGraceMs) break;
  }
  if (has_lane()) return {};
  std::string why;
  for (const Slot& slot : slots_) {
    why += (why.empty() ? "" : "; ") + slot.pair.source + " - " + slot.pair.destination + ": " +
           (slot.why.empty() ? "not tried yet" : slot.why);
  }
  return Fail(ErrorCode::kUnavailable, why);
}

void Endpoint::Repair() {
  // Nothing to do, as a rule: what happened to lanes is seen when they are used.
  if (events_ == nullptr || std::all_of(slots_.begin(), slots_.end(), [](const Slot& slot) {
        return slot.in_engine && slot.lane->open();
      })) {
    return;
  }
  Pump();
  const int64_t now_ms = NowMs();
  for (Slot& slot : slots_) {
    if (slot.lane == nullptr && slot.connecting == nullptr && slot.backoff.MayTry(now_ms) &&
        nics_.up(slot.pair.local)) {
      Begin(&slot, now_ms);
    }
  }
}

bool Endpoint::has_lane() const {
  return std::any_of(slots_.begin(), slots_.end(),
                     [](const Slot& slot) { return slot.in_engine && slot.lane->open(); });
}

void Endpoint::Run(Transfer* transfer, Clock::time_point deadline) {
  engine_.Start(transfer);
  bool late = false;
  int spins = spins_;
  uint32_t waits = 0;
  while (!transfer->done()) {
    if (Step()) {
      spins = spins_;
      continue;
    }
    if (spins > 0) {
      --spins;
      continue;
    }
    const bool arrived = Wait(kTickMs);
    // Asking for the time costs more than a completion, on some machines.
    if (late || (arrived && ++waits % kLookEvery != 0) || Clock::now() < deadline) continue;
    late = true;
    engine_.GiveUp(transfer, "the deadline passed");
    // What is under way could still write to the caller's memory.
    for (Slot& slot : slots_) {
      if (slot.lane != nullptr && slot.lane->outstanding() > 0) slot.lane->Fail("too late");
    }
  }
}

// Takes completions and events, and posts.  True when anything happened.
bool Endpoint::Step() {
  messages_.clear();
  bool any = engine_.Progress(&messages_);
  const TransferEngine::Messages messages = std::move(messages_);
  for (const auto& [lane, message] : messages) HandleMessage(lane, message);
  SendMissing();
  for (Slot& slot : slots_) {
    // One that is being flushed is nothing that happened: Wait() looks after it.
    if (!slot.in_engine || slot.lane->state() != Lane::State::kFenced) continue;
    any = true;
    DropLane(&slot);
  }
  return any;
}

// Sleeps until something may have happened, `most_ms` at most.  False when nothing did.
bool Endpoint::Wait(int64_t most_ms) {
  for (Slot& slot : slots_) {
    if (slot.lane != nullptr) slot.lane->Arm();
  }
  // What came before that makes no event.
  if (Step()) return true;
  std::vector<pollfd> fds;
  for (const auto& channel : channels_) fds.push_back({channel->fd(), POLLIN, 0});
  fds.push_back({events_->fd(), POLLIN, 0});
  for (const auto& device : nics_.devices()) fds.push_back({device->event_fd(), POLLIN, 0});
  const int ready = poll(fds.data(), fds.size(), static_cast<int>(most_ms));
  for (size_t i = 0; i < channels_.size(); ++i) {
    if (fds[i].revents == 0) continue;
    // At most one of each lane; what is left is seen the next time.
    const CompletionQueue* const queue = channels_[i]->Next();
    for (Slot& slot : slots_) {
      if (slot.lane != nullptr && &slot.lane->completions() == queue) slot.lane->Armed(false);
    }
  }
  bool events = false;
  for (size_t i = channels_.size(); i < fds.size(); ++i) events |= fds[i].revents != 0;
  if (ready <= 0 || events || (slots_.size() > 1 && ++waits_ % kLookEvery == 0)) Look(NowMs());
  return ready > 0;
}

// Looks after the lanes: events, NICs that come and go, what takes too long.
void Endpoint::Look(int64_t now_ms) {
  HandleConnectionEvents();
  nics_.Watch();
  for (Slot& slot : slots_) {
    const bool up = nics_.up(slot.pair.local);
    if (up && !slot.was_up) slot.backoff.Reset();
    slot.was_up = up;
    if (!up && slot.lane != nullptr && slot.lane->open()) slot.lane->Fail("the port is down");
    const bool half = slot.connecting != nullptr ||
                      (slot.lane != nullptr && slot.lane->state() == Lane::State::kConnecting);
    if (half && (!up || now_ms >= slot.deadline_ms)) {
      Failed(&slot, up ? "no answer within " + std::to_string(options_.connect_timeout_ms) + " ms"
                       : "the port is down");
    }
  }
  engine_.CheckStuck(now_ms);
}

void Endpoint::Pump() {
  if (events_ == nullptr) return;
  while (Step()) {
  }
  Look(NowMs());
  while (Step()) {
  }
}

void Endpoint::DropLane(Slot* slot) {
  Failed(slot, slot->lane->why(), slot->lane->refused());
}

void Endpoint::Close(const std::string& why) {
  for (Slot& slot : slots_) {
    if (slot.lane == nullptr && slot.connecting == nullptr) continue;
    if (slot.lane != nullptr && slot.lane->open()) slot.lane->connection().Disconnect();
    Failed(&slot, why);
  }
}

std::vector<LaneInfo> Endpoint::lanes() const {
  std::vector<LaneInfo> result;
  for (const Slot& slot : slots_) {
    LaneInfo info{slot.pair.why, false, slot.past_bytes, 0, slot.failures, slot.why};
    if (slot.lane != nullptr) {
      info.open = slot.lane->open();
      info.bytes += slot.lane->pace.completed_bytes;
      info.rate = slot.lane->pace.rate;
    }
    result.push_back(std::move(info));
  }
  return result;
}

// --- messages ------------------------------------------------------------------------------

void Endpoint::SendMissing() {
  for (const TransferEngine::Missing& missing : engine_.TakeMissing()) unsent_.push_back(missing);
  std::erase_if(unsent_, [&](const TransferEngine::Missing& missing) {
    Message message;
    message.type = Message::kWant;
    message.id = missing.remote;
    message.offset = missing.offset;
    message.total = missing.offset;
    return missing.lane->Send(message);
  });
}

void Endpoint::HandleMessage(Lane* lane, const Message& message) {
  switch (message.type) {
    case Message::kRegion:
      if (lane->remote() == nullptr) return;
      lane->remote()->Add(
          message.id, {message.offset, message.length, message.address, message.key, kRemoteRead});
      engine_.KeysCame(lane, message.id);
      return;
    case Message::kUnknown:
      engine_.NotThere(lane, message.id);
      return;
    case Message::kGone: {
      if (lane->remote() != nullptr) lane->remote()->Drop(message.id);
      Message answer;
      answer.type = Message::kDropped;
      answer.id = message.id;
      lane->Send(answer, true);
      return;
    }
    case Message::kBufferKnown:
    case Message::kBufferDropped: {
      const auto found = announced_.find(message.id);
      if (found == announced_.end()) return;
      std::vector<const Lane*>& waiting = found->second.unanswered;
      const auto answered = std::find(waiting.begin(), waiting.end(), lane);
      if (answered != waiting.end()) waiting.erase(answered);
      return;
    }
    default:
      lane->Fail("the server sent a message that only clients send");
  }
}

bool Endpoint::SendPatiently(Lane* lane, const Message& message) {
  const int64_t end_ms = NowMs() + options_.answer_ms;
  while (!lane->Send(message)) {
    if (!lane->open() || NowMs() >= end_ms) return false;
    Wait(kTickMs);
  }
  return true;
}

bool Endpoint::AnnounceOn(Lane* lane, uint32_t buffer, Announced* announced) {
  const Registration& registration = *announced->registration;
  uint64_t offset = 0;
  while (offset < registration.bytes()) {
    const Registration::Part part = registration.At(offset);
    const SliceKeys::Keys& keys = part.keys->on[lane->device()];
    if (keys.valid) {
      Message message;
      message.type = Message::kBuffer;
      message.id = buffer;
      message.offset = part.offset;
      message.length = part.length;
      message.address = reinterpret_cast<uint64_t>(registration.data() + part.offset);
      message.key = keys.remote;
      message.access = announced->access;
      message.total = registration.bytes();
      if (!SendPatiently(lane, message)) return false;
      announced->unanswered.push_back(lane);
    }
    offset = part.offset + part.length;
  }
  return true;
}

Status Endpoint::Announce(uint32_t buffer, const Registration& registration, uint32_t access) {
  const auto [at, is_new] = announced_.try_emplace(buffer);
  Announced& announced = at->second;
  if (is_new) {
    announced = {&registration, access, {}, false};
    for (Slot& slot : slots_) {
      if (slot.in_engine && slot.lane->open()) AnnounceOn(slot.lane.get(), buffer, &announced);
    }
  }
  MOONPOOL_CHECK(announced.registration == &registration);
  if (AwaitAnswers(announced) && has_lane()) return {};
  Retract(buffer);
  return Fail(ErrorCode::kUnavailable, "the server does not take note of the buffer");
}

// False when an open lane does not answer.
bool Endpoint::AwaitAnswers(const Announced& announced) {
  const int64_t end_ms = NowMs() + options_.answer_ms;
  while (!announced.unanswered.empty() && has_lane() && NowMs() < end_ms) {
    if (!Step()) Wait(kTickMs);
  }
  return announced.unanswered.empty();
}

void Endpoint::Retract(uint32_t buffer) {
  const auto found = announced_.find(buffer);
  if (found == announced_.end()) return;
  Announced& announced = found->second;
  announced.going = true;
  announced.unanswered.clear();
  for (Slot& slot : slots_) {
    if (!slot.in_engine || !slot.lane->open()) continue;
    Message message;
    message.type = Message::kBufferGone;
    message.id = buffer;
    if (SendPatiently(slot.lane.get(), message)) {
      announced.unanswered.push_back(slot.lane.get());
    } else if (slot.lane != nullptr) {
      slot.lane->Fail("the server does not take messages");
    }
  }
  if (!AwaitAnswers(announced)) Close("the server does not let go of a buffer");
  announced_.erase(found);
}

}  // namespace moonpool::rdma
