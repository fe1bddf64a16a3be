// Service: who may have a queue pair, and how they end.
#include <algorithm>

#include "rdma/service.h"

namespace moonpool::rdma {

Service::Session* Service::Find(uint64_t session) {
  const auto found = sessions_.find(session);
  return found == sessions_.end() ? nullptr : found->second.get();
}

void Service::HandleConnectionEvents() {
  while (auto event = events_->Next()) {
    if (event->kind == ConnectionEvent::Kind::kRequest) {
      // The beginning of its session may have come after this round's tasks.
      RunTasks();
      Request(std::move(*event));
      continue;
    }
    const auto found = by_connection_.find(event->connection);
    if (found == by_connection_.end()) continue;
    awake_.insert(found->second->id);
    for (ServerLane& lane : found->second->lanes) {
      if (lane.connection != event->connection) continue;
      if (event->kind == ConnectionEvent::Kind::kDisconnected) {
        // Its receives may have been flushed before this was told.
        lane.closed_by_client = lane.lane->open() || lane.lane->flushed();
        lane.lane->Fail("the client has closed it");
      } else if (event->kind == ConnectionEvent::Kind::kDeviceRemoved) {
        lane.lane->Fail("the device was removed");
      } else if (event->kind == ConnectionEvent::Kind::kFailed) {
        lane.lane->Fail(event->text);
      }
    }
  }
}

void Service::Request(ConnectionEvent event) {
  Session* session = nullptr;
  RejectReason reason = RejectReason::kBadRequest;
  Connection* const raw = event.incoming.get();
  const std::string peer = raw->peer();
  auto lane = Admit(&event, &session, &reason);
  if (!lane) {
    counters_.rejected.fetch_add(1, std::memory_order_relaxed);
    Log("rdma: refused " + peer + ": " + std::string(RejectText(reason)) +
        (lane.error().message.empty() ? "" : " (" + lane.error().message + ")"));
    ConnectReject reject;
    reject.reason = reason;
    if (event.incoming != nullptr) (void)event.incoming->Reject(Encode(reject));
    return;
  }
  ServerLane entry{std::make_unique<RemoteKeys>(), std::move(*lane), raw};
  const auto request = DecodeRequest(event.private_data);
  const size_t device = entry.lane->device();
  const auto generations = session->memory->Generations(device);
  DeviceAttributes can;
  for (size_t i = 0; i < nics_.nics().size(); ++i) {
    if (nics_.device_of(i) == device) can = nics_.nics()[i].attributes;
  }
  ConnectAccept accept;
  accept.version = std::min(kNewestVersion, request->newest_version);
  accept.nic = static_cast<uint8_t>(device);
  accept.epoch = options_.epoch;
  accept.limits = Smaller(entry.lane->limits(), request->limits);
  accept.limits.reads = static_cast<uint8_t>(std::max<uint32_t>(
      1, std::min<uint32_t>({accept.limits.reads, can.max_reads_served, event.reads_served})));
  accept.generations_address = generations->address;
  accept.generations_bytes = generations->length;
  accept.generations_key = generations->key;
  const std::string data = Encode(accept);
  ConnectParameters parameters;
  parameters.reads_served = accept.limits.reads;
  parameters.reads_made =
      static_cast<uint8_t>(std::min<uint32_t>(event.reads_made, can.max_reads_made));
  parameters.ack_timeout_exponent = options_.ack_timeout_exponent;
  parameters.private_data = data;
  if (Status status = raw->Accept(parameters); !status) {
    counters_.rejected.fetch_add(1, std::memory_order_relaxed);
    Log("rdma: " + status.error().message);
    return;
  }
  entry.lane->Open(accept.limits, entry.remote.get());
  awake_.insert(session->id);  // it is armed there, and what came before is taken
  by_queue_[&entry.lane->completions()] = session;
  by_connection_[raw] = session;
  session->engine.AddLane(entry.lane.get());
  session->lanes.push_back(std::move(entry));
  counters_.accepted.fetch_add(1, std::memory_order_relaxed);
  counters_.lanes.fetch_add(1, std::memory_order_relaxed);
  if (options_.on_lanes) options_.on_lanes(session->id, session->lanes.size());
}

// Everything a request must fulfil; makes its queue pair.  A refused connection stays in `event`.
Result<std::unique_ptr<Lane>> Service::Admit(ConnectionEvent* event, Session** session,
                                             RejectReason* reason) {
  const auto request = DecodeRequest(event->private_data);
  const auto refuse = [&](RejectReason why) {
    *reason = why;
    return Fail(ErrorCode::kPermissionDenied, "");
  };
  if (!request) return tl::unexpected<Error>(request.error());
  if (request->oldest_version > kNewestVersion || request->newest_version < kOldestVersion) {
    return refuse(RejectReason::kVersion);
  }
  if (request->epoch != options_.epoch) return refuse(RejectReason::kWrongEpoch);
  if (const auto bad = tokens_.Redeem(request->token, request->session, NowMs())) {
    return refuse(*bad);
  }
  *session = Find(request->session);
  if (*session == nullptr) return refuse(RejectReason::kWrongSession);
  if ((*session)->lanes.size() >= options_.lanes_per_session ||
      counters_.lanes.load(std::memory_order_relaxed) >= options_.lanes) {
    return refuse(RejectReason::kTooMany);
  }
  const Domains& domains = (*session)->memory->domains();
  const size_t device = domains.IndexOf(event->incoming->device());
  if (device == domains.size() || !(*session)->memory->Generations(device)) {
    *reason = RejectReason::kNoMemory;
    return Fail(ErrorCode::kUnavailable, "it came over a NIC that is not used");
  }
  *reason = RejectReason::kNoMemory;
  // Lane::Create takes the connection: on failure it is destroyed, which the client sees as a
  // refusal without a reason.
  return Lane::Create(std::move(event->incoming), domains, channels_[device].get(),
                      Smaller(options_.limits, request->limits));
}

// REQUIRES: it is fenced.
void Service::LaneEnded(Session* session, size_t index) {
  ServerLane& entry = session->lanes[index];
  session->engine.RemoveLane(entry.lane.get());
  by_queue_.erase(&entry.lane->completions());
  by_connection_.erase(entry.connection);
  for (Withdrawal& withdrawal : withdrawals_) std::erase(withdrawal.unanswered, entry.lane.get());
  counters_.lanes.fetch_sub(1, std::memory_order_relaxed);
  // When only the flush was seen yet, it is the same: nothing of ours failed.
  if (!entry.closed_by_client && !entry.lane->flushed()) {
    counters_.lanes_failed.fetch_add(1, std::memory_order_relaxed);
    Log("rdma: a queue pair of session " + std::to_string(session->id) +
        " failed: " + entry.lane->why());
  }
  session->lanes.erase(session->lanes.begin() + static_cast<ptrdiff_t>(index));
  if (options_.on_lanes) options_.on_lanes(session->id, session->lanes.size());
}

void Service::Fence(Session* session) {
  for (ServerLane& entry : session->lanes) {
    if (entry.lane->open()) entry.lane->connection().Disconnect();
    session->engine.Destroy(entry.lane.get());
  }
  // What was to be moved ends as unreachable.
  TransferEngine::Messages messages;
  session->engine.Progress(&messages);
  FinishMoves(session);
  for (const ServerLane& entry : session->lanes) {
    session->engine.RemoveLane(entry.lane.get());
    by_queue_.erase(&entry.lane->completions());
    by_connection_.erase(entry.connection);
    for (Withdrawal& withdrawal : withdrawals_) std::erase(withdrawal.unanswered, entry.lane.get());
    counters_.lanes.fetch_sub(1, std::memory_order_relaxed);
  }
  session->lanes.clear();
}

}  // namespace moonpool::rdma
