// Verbs and connections over librdmacm.
#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "rdma/ibverbs.h"
#include "rdma/ibverbs_device.h"

namespace moonpool::rdma {

namespace {

// Where the kernel lists devices, and the door to its connection manager.
constexpr const char* kDevices = "/sys/class/infiniband";
constexpr const char* kConnectionManager = "/dev/infiniband/rdma_cm";

struct Sockaddr {
  sockaddr_storage storage{};
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

Result<Sockaddr> Numeric(const std::string& address, uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string service = std::to_string(port);
  const int error = getaddrinfo(address.c_str(), service.c_str(), &hints, &found);
  if (error != 0) {
    return Fail(ErrorCode::kInvalidArgument,
                "'" + address + "' is no numeric address: " + gai_strerror(error));
  }
  Sockaddr result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return result;
}

std::string HostOf(const sockaddr* address) {
  char host[NI_MAXHOST] = "";
  const socklen_t length =
      address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (getnameinfo(address, length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST) != 0) return {};
  return host;
}

std::string Text(const sockaddr* address) {
  if (address == nullptr || address->sa_family == 0) return "?";
  const std::string host = HostOf(address);
  const uint16_t port = ntohs(address->sa_family == AF_INET6
                                  ? reinterpret_cast<const sockaddr_in6*>(address)->sin6_port
                                  : reinterpret_cast<const sockaddr_in*>(address)->sin_port);
  return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" +
         std::to_string(port);
}

bool LinkLocal(const sockaddr* address) {
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

class IbConnection : public Connection {
 public:
  IbConnection(rdma_cm_id* id, IbDevices& devices) : id_(id), devices_(devices) {
    id_->context = this;
  }
  ~IbConnection() override {
    if (id_->qp != nullptr) rdma_destroy_qp(id_);
    rdma_destroy_id(id_);
  }

  Status ResolveAddress(const std::string& source, const std::string& destination, uint16_t port,
                        int timeout_ms) override {
    auto to = Numeric(destination, port);
    if (!to) return tl::unexpected<Error>(std::move(to.error()));
    Sockaddr from;
    if (!source.empty()) {
      auto parsed = Numeric(source, 0);
      if (!parsed) return tl::unexpected<Error>(std::move(parsed.error()));
      from = *parsed;
    }
    if (rdma_resolve_addr(id_, source.empty() ? nullptr : from.get(), to->get(), timeout_ms) != 0) {
      return FailErrno("resolving " + destination);
    }
    return {};
  }

  Status ResolveRoute(int timeout_ms) override {
    if (rdma_resolve_route(id_, timeout_ms) != 0) return FailErrno("resolving a route");
    return {};
  }

  Status Connect(const ConnectParameters& parameters) override {
    SetAckTimeout(parameters);
    rdma_conn_param raw = Raw(parameters);
    if (rdma_connect(id_, &raw) != 0) return FailErrno("connecting to " + peer());
    return {};
  }

  Status Listen(const std::string& address, uint16_t port, int backlog) override {
    auto at = Numeric(address.empty() ? "::" : address, port);
    if (!at) return tl::unexpected<Error>(std::move(at.error()));
    if (rdma_bind_addr(id_, at->get()) != 0) {
      // A kernel without IPv6.
      if (!address.empty() || !(at = Numeric("0.0.0.0", port)) ||
          rdma_bind_addr(id_, at->get()) != 0) {
        return FailErrno("binding RDMA port " + std::to_string(port) + " of " +
                         (address.empty() ? "all addresses" : address));
      }
    }
    if (rdma_listen(id_, backlog) != 0) return FailErrno("listening on RDMA port");
    return {};
  }

  uint16_t port() const override { return ntohs(rdma_get_src_port(id_)); }

  Status Accept(const ConnectParameters& parameters) override {
    SetAckTimeout(parameters);
    rdma_conn_param raw = Raw(parameters);
    if (rdma_accept(id_, &raw) != 0) return FailErrno("accepting " + peer());
    return {};
  }

  Status Reject(std::string_view private_data) override {
    if (rdma_reject(id_, private_data.data(), static_cast<uint8_t>(private_data.size())) != 0) {
      return FailErrno("rejecting " + peer());
    }
    return {};
  }

  Device* device() const override {
    return id_->verbs == nullptr ? nullptr : devices_.Of(id_->verbs);
  }

  Status CreateQueuePair(ProtectionDomain& domain, CompletionQueue& completions,
                         const QueuePairLimits& limits) override {
    const auto* device = static_cast<IbDevice*>(this->device());
    if (device == nullptr) return Fail(ErrorCode::kUnavailable, "the connection has no device yet");
    const ibv_device_attr& can = device->attributes();
    ibv_qp_init_attr attributes{};
    attributes.send_cq = attributes.recv_cq = static_cast<IbCompletionQueue&>(completions).cq();
    attributes.qp_type = IBV_QPT_RC;
    const auto most = static_cast<uint32_t>(can.max_qp_wr);
    const int pieces = can.max_sge_rd > 0 ? std::min(can.max_sge, can.max_sge_rd) : can.max_sge;
    attributes.cap.max_send_wr = std::min(limits.depth, most);
    attributes.cap.max_recv_wr = std::min(limits.receives, most);
    attributes.cap.max_send_sge = std::min(limits.max_pieces, static_cast<uint32_t>(pieces));
    attributes.cap.max_recv_sge = 1;
    attributes.cap.max_inline_data = limits.inline_bytes;
    const ibv_qp_cap wanted = attributes.cap;
    ibv_pd* const pd = static_cast<IbProtectionDomain&>(domain).pd();
    if (rdma_create_qp(id_, pd, &attributes) != 0) {
      // Devices without inline data refuse it, rather than give less.
      attributes.cap = wanted;
      attributes.cap.max_inline_data = 0;
      if (limits.inline_bytes == 0 || rdma_create_qp(id_, pd, &attributes) != 0) {
        return FailErrno("a queue pair on " + device->name());
      }
    }
    // The device may give more; what was asked for is what is used, so that both sides agree.
    const QueuePairLimits made{wanted.max_send_wr, wanted.max_recv_wr, wanted.max_send_sge,
                               std::min(limits.inline_bytes, attributes.cap.max_inline_data),
                               id_->verbs->device->transport_type == IBV_TRANSPORT_IWARP};
    queue_pair_ = std::make_unique<IbQueuePair>(id_->qp, made);
    return {};
  }

  QueuePair* queue_pair() const override { return queue_pair_.get(); }
  void Disconnect() override { rdma_disconnect(id_); }
  std::string peer() const override { return Text(rdma_get_peer_addr(id_)); }

 private:
  static rdma_conn_param Raw(const ConnectParameters& parameters) {
    rdma_conn_param raw{};
    raw.private_data = parameters.private_data.data();
    raw.private_data_len = static_cast<uint8_t>(parameters.private_data.size());
    raw.responder_resources = parameters.reads_served;
    raw.initiator_depth = parameters.reads_made;
    raw.retry_count = parameters.retries;
    raw.rnr_retry_count = 7;
    return raw;
  }

  // Not every kernel and transport has it: then it is as the connection manager has it.
  void SetAckTimeout(const ConnectParameters& parameters) {
    uint8_t exponent = parameters.ack_timeout_exponent;
    if (exponent == 0) return;
    rdma_set_option(id_, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &exponent, sizeof(exponent));
  }

  rdma_cm_id* const id_;
  IbDevices& devices_;
  std::unique_ptr<IbQueuePair> queue_pair_;
};

ConnectionEvent::Kind KindOf(rdma_cm_event_type type) {
  switch (type) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      return ConnectionEvent::Kind::kAddressResolved;
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
      return ConnectionEvent::Kind::kRouteResolved;
    case RDMA_CM_EVENT_CONNECT_REQUEST:
      return ConnectionEvent::Kind::kRequest;
    case RDMA_CM_EVENT_ESTABLISHED:
      return ConnectionEvent::Kind::kEstablished;
    case RDMA_CM_EVENT_REJECTED:
      return ConnectionEvent::Kind::kRejected;
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      return ConnectionEvent::Kind::kFailed;
    case RDMA_CM_EVENT_DISCONNECTED:
      return ConnectionEvent::Kind::kDisconnected;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return ConnectionEvent::Kind::kDeviceRemoved;
    default:
      return ConnectionEvent::Kind::kOther;
  }
}

class IbConnectionEvents : public ConnectionEvents {
 public:
  IbConnectionEvents(rdma_event_channel* channel, IbDevices& devices)
      : channel_(channel), devices_(devices) {}
  ~IbConnectionEvents() override { rdma_destroy_event_channel(channel_); }

  int fd() const override { return channel_->fd; }

  std::optional<ConnectionEvent> Next() override {
    rdma_cm_event* raw = nullptr;
    if (rdma_get_cm_event(channel_, &raw) != 0) return std::nullopt;
    ConnectionEvent event;
    event.kind = KindOf(raw->event);
    if (event.kind == ConnectionEvent::Kind::kRequest) {
      event.connection = static_cast<IbConnection*>(raw->listen_id->context);
      event.incoming = std::make_unique<IbConnection>(raw->id, devices_);
    } else {
      event.connection = static_cast<IbConnection*>(raw->id->context);
    }
    if (event.kind == ConnectionEvent::Kind::kFailed) {
      event.text = rdma_event_str(raw->event);
      if (raw->status < 0) event.text += std::string(": ") + std::strerror(-raw->status);
    }
    const bool has_data = event.kind == ConnectionEvent::Kind::kRequest ||
                          event.kind == ConnectionEvent::Kind::kEstablished ||
                          event.kind == ConnectionEvent::Kind::kRejected;
    if (has_data) {
      const rdma_conn_param& from = raw->param.conn;
      event.reads_served = from.responder_resources;
      event.reads_made = from.initiator_depth;
      if (from.private_data != nullptr) {
        event.private_data.assign(static_cast<const char*>(from.private_data),
                                  from.private_data_len);
      }
    }
    // At once: an id cannot be destroyed before.
    rdma_ack_cm_event(raw);
    return event;
  }

  Result<std::unique_ptr<Connection>> NewConnection() override {
    rdma_cm_id* id = nullptr;
    if (rdma_create_id(channel_, &id, nullptr, RDMA_PS_TCP) != 0) {
      return FailErrno("a connection identifier");
    }
    return std::make_unique<IbConnection>(id, devices_);
  }

 private:
  rdma_event_channel* const channel_;
  IbDevices& devices_;
};

class IbVerbs : public Verbs {
 public:
  Result<std::vector<std::shared_ptr<Device>>> Devices() override { return devices_.All(); }

  std::vector<LocalAddress> Addresses() override {
    std::vector<LocalAddress> result;
    ifaddrs* interfaces = nullptr;
    if (getifaddrs(&interfaces) != 0) return result;
    for (const ifaddrs* at = interfaces; at != nullptr; at = at->ifa_next) {
      sockaddr* const address = at->ifa_addr;
      if (address == nullptr || (address->sa_family != AF_INET && address->sa_family != AF_INET6) ||
          LinkLocal(address)) {
        continue;
      }
      // Binding asks the kernel which device and port an address leads to, whatever the transport.
      rdma_cm_id* id = nullptr;
      if (rdma_create_id(nullptr, &id, nullptr, RDMA_PS_TCP) != 0) break;
      if (rdma_bind_addr(id, address) == 0 && id->verbs != nullptr) {
        result.push_back({HostOf(address), ibv_get_device_name(id->verbs->device), id->port_num});
      }
      rdma_destroy_id(id);
    }
    freeifaddrs(interfaces);
    return result;
  }

  Result<std::unique_ptr<ConnectionEvents>> NewConnectionEvents() override {
    rdma_event_channel* const channel = rdma_create_event_channel();
    if (channel == nullptr) return FailErrno("a channel of connection events");
    auto result = std::make_unique<IbConnectionEvents>(channel, devices_);
    if (Status status = SetNonBlocking(channel->fd); !status) {
      return tl::unexpected<Error>(std::move(status.error()));
    }
    return result;
  }

 private:
  IbDevices& devices_ = IbDevices::OfProcess();
};

struct Replacement {
  Mutex mu;
  VerbsMaker maker GUARDED_BY(mu);
};
Replacement replacement;

}  // namespace

void ReplaceVerbs(VerbsMaker maker) {
  MutexLock lock(replacement.mu);
  replacement.maker = std::move(maker);
}

Result<std::unique_ptr<Verbs>> OpenVerbs() {
  VerbsMaker maker;
  {
    MutexLock lock(replacement.mu);
    maker = replacement.maker;
  }
  if (maker) return maker();
  // Looked at first, since the libraries write to standard error when they find nothing.
  struct stat found {};
  if (stat(kDevices, &found) != 0) {
    return Fail(ErrorCode::kUnavailable,
                "this kernel has no RDMA (no " + std::string(kDevices) +
                    "): load the NIC's driver, or rdma_rxe for a software device");
  }
  if (stat(kConnectionManager, &found) != 0) {
    return Fail(ErrorCode::kUnavailable, "no " + std::string(kConnectionManager) +
                                             ": load the module rdma_ucm, and in a container pass "
                                             "/dev/infiniband on");
  }
  if (access(kConnectionManager, R_OK | W_OK) != 0) {
    return FailErrno(std::string(kConnectionManager) + " is not for this user");
  }
  // Registered memory stays the parent's when the process forks.  Costs nothing where the kernel
  // sees to it (5.12 and newer).
  ibv_fork_init();
  return std::make_unique<IbVerbs>();
}

}  // namespace moonpool::rdma
