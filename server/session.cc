#include "server/session.h"

#include <fcntl.h>

#include <algorithm>

#include "protocol/seqlock.h"
#include "server/attach_server.h"
#include "server/connection.h"
#include "server/late_writers.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/rdma.h"
#include "server/server.h"
#include "server/values.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::AttachMessage;

// Leases that do not run out in the order they were granted are looked for this often.
constexpr int64_t kSweepMs = 1000;

}  // namespace

Session::Session(Server& server, Connection& connection, bool redirect, bool rdma,
                 storage::DeviceSet devices)
    : server_(server),
      connection_(connection),
      tenant_(connection.tenant()),
      info_(std::make_shared<SessionInfo>()),
      rdma_(rdma),
      devices_(devices) {
  info_->id = server.NextSessionId();
  info_->client_id = connection.id();
  info_->address = connection.info().address;
  info_->tenant = tenant_.name();
  info_->redirect = redirect;
  server_.AddSession(info_);
  if (rdma_) server_.rdma()->BeginSession(info_->id, tenant_);
  connection.loop().AddSession(this);
}

Session::~Session() {
  if (token_) server_.attach_server()->Revoke(*token_);
  if (rdma_) server_.rdma()->EndSession(info_->id);
  tenant_.holds().fetch_sub(holds_.size(), std::memory_order_relaxed);
  reservations_.clear();
  Detach();
  connection_.loop().RemoveSession(this);
  server_.RemoveSession(info_->id);
}

protocol::AttachToken Session::NewAttachToken() {
  token_ = server_.attach_server()->Issue(connection_.loop(), connection_.id(), info_->id);
  return *token_;
}

// --- leases ------------------------------------------------------------------------------------

int64_t Session::Capped(const storage::BulkValue& value, const LeaseRequest& request) const {
  const Config& config = server_.config();
  const int64_t ms = std::min(request.ms.value_or(config.number(Key::kLeaseDefault)),
                              config.number(Key::kLeaseMax));
  switch (tenant_.LeasePressure(value)) {
    case storage::Tenant::Pressure::kNone:
      return ms;
    case storage::Tenant::Pressure::kShortLeases:
      return std::min(ms, config.number(Key::kLeaseShort));
    case storage::Tenant::Pressure::kNoLeases:
      return 0;
  }
  __builtin_unreachable();
}

void Session::Grant(const storage::ValueRef& value, const LeaseRequest& request, int64_t now_ms,
                    protocol::Descriptor* descriptor) {
  const Config& config = server_.config();
  LoopStats& stats = connection_.loop().stats();
  if (request.hold) {
    const auto mine = static_cast<uint64_t>(config.number(Key::kSessionMaxHolds));
    const auto all = static_cast<uint64_t>(config.number(Key::kTenantMaxHolds));
    if (holds_.size() < mine && tenant_.holds().load(std::memory_order_relaxed) < all &&
        tenant_.LeasePressure(*value) == storage::Tenant::Pressure::kNone) {
      tenant_.holds().fetch_add(1, std::memory_order_relaxed);
      descriptor->lease = next_hold_++;
      descriptor->lease_ms = protocol::Descriptor::kHold;
      holds_.emplace(descriptor->lease, value.Share());
      info_->holds.Set(holds_.size());
      stats.holds.Add();
      return;
    }
    stats.holds_refused.Add();  // a lease instead: the client copies
  }
  const int64_t ms = Capped(*value, request);
  if (ms <= 0 ||
      leases_.size() >= static_cast<uint64_t>(config.number(Key::kSessionMaxLeases))) {
    return;
  }
  descriptor->lease = first_lease_ + leases_.size();
  descriptor->lease_ms = ms;
  leases_.push_back({value.Share(), now_ms + ms});
  connection_.loop().LeaseEnds(now_ms + ms);
  info_->leases.Set(++live_leases_);
  stats.leases.Add();
}

void Session::Describe(Context& context, const storage::ValueRef& value,
                       const LeaseRequest& request) {
  protocol::Descriptor descriptor = DescriptorOf(*value);
  Grant(value, request, context.now_ms, &descriptor);
  context.loop.stats().descriptors.Add();
  protocol::AppendDescriptor(context.reply, descriptor);
}

int64_t Session::Renew(uint64_t lease, const LeaseRequest& request, int64_t now_ms) {
  if (lease >= kFirstHold) {
    return holds_.contains(lease) ? protocol::Descriptor::kHold : 0;
  }
  if (lease < first_lease_ || lease - first_lease_ >= leases_.size()) return 0;
  Lease& entry = leases_[lease - first_lease_];
  if (!entry.value || entry.deadline_ms <= now_ms) return 0;
  entry.deadline_ms = std::max(entry.deadline_ms, now_ms + Capped(*entry.value, request));
  return entry.deadline_ms - now_ms;
}

bool Session::Release(uint64_t lease) {
  if (lease >= kFirstHold) {
    if (holds_.erase(lease) == 0) return false;
    tenant_.holds().fetch_sub(1, std::memory_order_relaxed);
    info_->holds.Set(holds_.size());
    return true;
  }
  if (lease < first_lease_ || lease - first_lease_ >= leases_.size()) return false;
  Lease& entry = leases_[lease - first_lease_];
  if (!entry.value) return false;
  entry.value.Reset();
  info_->leases.Set(--live_leases_);
  while (!leases_.empty() && !leases_.front().value) {
    leases_.pop_front();
    ++first_lease_;
  }
  return true;
}

int64_t Session::ExpireLeases(int64_t now_ms) {
  // They end in crowds, each with a value that nobody has looked at since.
  constexpr size_t kAhead = 8;
  while (!leases_.empty() &&
         (!leases_.front().value || leases_.front().deadline_ms <= now_ms)) {
    if (leases_.size() > kAhead) __builtin_prefetch(leases_[kAhead].value.get(), 1);
    if (leases_.front().value) --live_leases_;
    leases_.pop_front();
    ++first_lease_;
  }
  info_->leases.Set(live_leases_);
  return leases_.empty() ? INT64_MAX : leases_.front().deadline_ms;
}

void Session::OnTick(int64_t now_ms) {
  ExpireLeases(now_ms);
  if (now_ms >= next_sweep_ms_) {
    next_sweep_ms_ = now_ms + kSweepMs;
    for (Lease& lease : leases_) {
      if (!lease.value || lease.deadline_ms > now_ms) continue;
      lease.value.Reset();
      --live_leases_;
    }
    for (auto& [token, reservation] : reservations_) {
      if (reservation.overdue || reservation.deadline_ms > now_ms) continue;
      reservation.overdue = true;
      connection_.loop().stats().reservation_timeouts.Add();
    }
  }
}

// --- reservations ------------------------------------------------------------------------------

std::optional<uint64_t> Session::AddReservation(Reservation reservation) {
  const Config& config = server_.config();
  if (reservations_.size() >=
      static_cast<uint64_t>(config.number(Key::kSessionMaxReservations))) {
    reservation.handle.WriterDone();  // no client was told of it
    return std::nullopt;
  }
  reservation.deadline_ms = connection_.loop().now_ms() +
                            config.number(Key::kReservationTimeout) * 1000;
  const uint64_t token = next_token_++;
  reservations_.emplace(token, std::move(reservation));
  info_->reservations.Set(reservations_.size());
  return token;
}

const storage::Extent* Session::Reserved(uint64_t token, std::string_view key) const {
  const auto found = reservations_.find(token);
  if (found == reservations_.end() || found->second.key != key || found->second.overdue) {
    return nullptr;
  }
  return &found->second.handle.extent();
}

std::optional<Session::Reservation> Session::TakeReservation(uint64_t token,
                                                             std::string_view key) {
  const auto found = reservations_.find(token);
  if (found == reservations_.end() || found->second.key != key) return std::nullopt;
  Reservation reservation = std::move(found->second);
  reservations_.erase(found);
  info_->reservations.Set(reservations_.size());
  return reservation;
}

// --- shared memory -----------------------------------------------------------------------------

void Session::Attach(UniqueFd fd) {
  token_.reset();
  Detach();
  attach_fd_ = std::move(fd);
  fcntl(attach_fd_.get(), F_SETFL, fcntl(attach_fd_.get(), F_GETFL) | O_NONBLOCK);
  event_assign(&attach_event_, connection_.loop().base(), attach_fd_.get(), EV_READ | EV_PERSIST,
               OnAttachReadable, this);
  event_add(&attach_event_, nullptr);
  info_->attached = true;
  if (devices_ != 0) peer_ = server_.late_writers()->PeerOf(attach_fd_.get());
  AttachMessage welcome;
  welcome.type = AttachMessage::kWelcome;
  welcome.bytes = tenant_.pool().generations().bytes();
  welcome.epoch = server_.epoch();
  if (!SendAttach(welcome, tenant_.pool().generations().fd())) Detach();
}

void Session::Detach() {
  if (attach_fd_) {
    event_del(&attach_event_);
    info_->attached = false;
    // What was reserved for this client's mappings cannot be filled any more.
    reservations_.clear();
    info_->reservations.Set(0);
    if (tenant_.pool().HasLateWrites(info_->id)) {
      server_.late_writers()->Await(tenant_.pool(), info_->id, std::move(attach_fd_),
                                    std::move(peer_));
    }
    attach_fd_.Reset();
    peer_.Reset();
  }
  tenant_.pool().SessionEnded(info_->id);
}

bool Session::SendAttach(const AttachMessage& message, int fd) {
  // A client that does not read its attach socket is not worth waiting for.
  return static_cast<bool>(protocol::SendAttachMessage(attach_fd_.get(), message, fd));
}

void Session::RegionGone(uint32_t region) {
  if (!attached()) return;
  AttachMessage gone;
  gone.type = AttachMessage::kGone;
  gone.region = region;
  if (!SendAttach(gone)) Detach();
}

void Session::OnAttachReadable(evutil_socket_t, short, void* context) {
  auto* session = static_cast<Session*>(context);
  for (;;) {
    auto received = protocol::ReceiveAttachMessage(session->attach_fd_.get());
    if (!received && received.error().code == ErrorCode::kTimeout) return;
    if (!received || received->fd || !session->HandleAttachMessage(received->message)) {
      session->Detach();
      return;
    }
  }
}

bool Session::SendDeviceRegion(const storage::Region& region) {
  AttachMessage reply;
  reply.region = region.id();
  reply.type = AttachMessage::kGone;
  if ((devices_ >> region.device_number() & 1) == 0) return SendAttach(reply);
  const storage::DeviceMemory::Handle& handle = region.handle();
  reply.type = AttachMessage::kRegion;
  reply.bytes = region.bytes();
  reply.writable = 1;
  reply.tier = region.tier();
  reply.handle = handle.kind;
  reply.device = region.device()->uuid();
  reply.opaque = handle.opaque;
  return SendAttach(reply, handle.fd.get());
}

bool Session::HandleAttachMessage(const AttachMessage& message) {
  storage::ExtentPool& pool = tenant_.pool();
  AttachMessage reply;
  reply.region = message.region;
  switch (message.type) {
    case AttachMessage::kWant: {
      // Only this tenant's pool is asked, so no session can name another tenant's region.
      const std::shared_ptr<storage::Region> region = pool.FindRegion(message.region);
      if (region == nullptr) {
        reply.type = AttachMessage::kGone;
        return SendAttach(reply);
      }
      if (region->device() != nullptr) return SendDeviceRegion(*region);
      const bool writable = pool.MayMapWritable(info_->id, message.region);
      if (region->kind() == storage::Region::Kind::kArena && !writable &&
          !pool.ArenaSealed(message.region)) {
        reply.type = AttachMessage::kGone;  // nothing is committed there yet
        return SendAttach(reply);
      }
      reply.type = AttachMessage::kRegion;
      reply.bytes = region->bytes();
      reply.writable = writable ? 1 : 0;
      return SendAttach(reply, writable ? region->fd() : region->read_fd());
    }
    case AttachMessage::kMapped: {
      if (Status sealed = pool.ArenaMapped(info_->id, message.region); !sealed) {
        Log(LogLevel::kWarning, "session {}: {}", info_->id, sealed.error().message);
        return false;
      }
      reply.type = AttachMessage::kSealed;
      return SendAttach(reply);
    }
    case AttachMessage::kUnmapped:
      return true;  // the next look of the upkeep thread proves it, or does not
    case AttachMessage::kDone:
      reservations_.clear();
      pool.WriterGone(info_->id);
      return false;
    default:
      return false;
  }
}

}  // namespace moonpool::server
