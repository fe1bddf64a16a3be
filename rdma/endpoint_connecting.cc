// Endpoint: how lanes are connected, and what happens when they are no more.
#include "rdma/endpoint.h"

namespace moonpool::rdma {

bool Endpoint::connecting() const {
  for (const Slot& slot : slots_) {
    if (slot.connecting != nullptr ||
        (slot.lane != nullptr && slot.lane->state() == Lane::State::kConnecting)) {
      return true;
    }
  }
  return false;
}

Endpoint::Slot* Endpoint::SlotOf(const Connection* connection) {
  for (Slot& slot : slots_) {
    if (slot.connecting.get() == connection ||
        (slot.lane != nullptr && slot.lane->state() != Lane::State::kFenced &&
         &slot.lane->connection() == connection)) {
      return &slot;
    }
  }
  return nullptr;
}

void Endpoint::Begin(Slot* slot, int64_t now_ms) {
  auto token = tokens_();
  if (!token) return Failed(slot, token.error().message);
  slot->token = *token;
  auto connection = events_->NewConnection();
  if (!connection) return Failed(slot, connection.error().message);
  slot->connecting = std::move(*connection);
  slot->deadline_ms = now_ms + options_.connect_timeout_ms;
  if (Status status = slot->connecting->ResolveAddress(slot->pair.source, slot->pair.destination,
                                                       target_.port, options_.connect_timeout_ms);
      !status) {
    Failed(slot, status.error().message);
  }
}

bool Endpoint::HandleConnectionEvents() {
  bool any = false;
  while (const auto event = events_->Next()) {
    any = true;
    Handle(*event);
  }
  return any;
}

void Endpoint::Handle(const ConnectionEvent& event) {
  Slot* const slot = SlotOf(event.connection);
  if (slot == nullptr) return;  // of one that was given up meanwhile
  switch (event.kind) {
    case ConnectionEvent::Kind::kAddressResolved:
      if (Status status = slot->connecting->ResolveRoute(options_.connect_timeout_ms); !status) {
        Failed(slot, status.error().message);
      }
      return;
    case ConnectionEvent::Kind::kRouteResolved:
      return RouteKnown(slot);
    case ConnectionEvent::Kind::kEstablished:
      return Established(slot, event);
    case ConnectionEvent::Kind::kRejected: {
      const auto reject = DecodeReject(event.private_data);
      return Failed(slot, reject ? "refused: " + std::string(RejectText(reject->reason))
                                 : "refused: nobody listens there");
    }
    case ConnectionEvent::Kind::kFailed:
      return Failed(slot, event.text);
    case ConnectionEvent::Kind::kDisconnected:
      if (slot->lane != nullptr) slot->lane->Fail("the server has closed it");
      return;
    case ConnectionEvent::Kind::kDeviceRemoved:
      return Failed(slot, "the device was removed");
    default:
      return;
  }
}

void Endpoint::RouteKnown(Slot* slot) {
  const size_t device = domains_.IndexOf(slot->connecting->device());
  if (device == domains_.size()) return Failed(slot, "the route is over another NIC");
  auto lane =
      Lane::Create(std::move(slot->connecting), domains_, channels_[device].get(), options_.limits);
  if (!lane) return Failed(slot, lane.error().message);
  slot->lane = std::move(*lane);
  const DeviceAttributes& can = nics_.nics()[slot->pair.local].attributes;
  ConnectRequest request;
  request.epoch = target_.epoch;
  request.session = target_.session;
  request.token = slot->token;
  request.limits = slot->lane->limits();
  request.limits.reads = static_cast<uint8_t>(
      std::max<uint32_t>(1, std::min<uint32_t>(request.limits.reads, can.max_reads_made)));
  const std::string data = Encode(request);
  ConnectParameters parameters;
  parameters.reads_made = request.limits.reads;
  parameters.reads_served =
      static_cast<uint8_t>(std::min<uint32_t>(options_.limits.reads, can.max_reads_served));
  parameters.retries = options_.retries;
  parameters.ack_timeout_exponent = options_.ack_timeout_exponent;
  parameters.private_data = data;
  if (Status status = slot->lane->connection().Connect(parameters); !status) {
    Failed(slot, status.error().message);
  }
}

void Endpoint::Established(Slot* slot, const ConnectionEvent& event) {
  const auto accept = DecodeAccept(event.private_data);
  if (!accept) return Failed(slot, accept.error().message);
  if (accept->epoch != target_.epoch) return Failed(slot, "the server is of another epoch");
  slot->remote_nic = accept->nic;
  std::unique_ptr<RemoteKeys>& remote = remote_[accept->nic];
  if (remote == nullptr) remote = std::make_unique<RemoteKeys>();
  remote->generations = {0, accept->generations_bytes, accept->generations_address,
                         accept->generations_key, kRemoteRead};
  slot->lane->Open(accept->limits, remote.get());
  engine_.AddLane(slot->lane.get());
  slot->in_engine = true;
  slot->why.clear();
  for (auto& [buffer, announced] : announced_) {
    if (!announced.going) AnnounceOn(slot->lane.get(), buffer, &announced);
  }
}

// The slot has no lane any more; what it carried goes over the others.  `at_once`: it was no fault
// of the lane, so that it may be tried again without a pause.
void Endpoint::Failed(Slot* slot, const std::string& why, bool at_once) {
  slot->why = why;
  ++slot->failures;
  slot->connecting = nullptr;
  if (slot->lane != nullptr) {
    slot->past_bytes += slot->lane->pace.completed_bytes;
    // Only what has carried something has shown that it works.
    if (slot->lane->pace.completed_bytes > 0) slot->backoff.Reset();
    for (auto& [buffer, announced] : announced_) {
      std::erase(announced.unanswered, slot->lane.get());
    }
    std::erase_if(unsent_, [&](const auto& missing) { return missing.lane == slot->lane.get(); });
    engine_.Destroy(slot->lane.get());
    if (slot->in_engine) engine_.RemoveLane(slot->lane.get());
    slot->in_engine = false;
    slot->lane = nullptr;
  }
  if (!at_once) slot->backoff.Failed(NowMs());
}

}  // namespace moonpool::rdma
