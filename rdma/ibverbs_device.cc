#include "rdma/ibverbs_device.h"

#include <fcntl.h>
#include <rdma/rdma_cma.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace moonpool::rdma {

namespace {

constexpr size_t kMaxGids = 1024;
constexpr size_t kPollAtOnce = 32;

// Megabits per second of one lane, from the code of a port (InfiniBand specification 14.2.5.6).
uint64_t LaneMbps(uint8_t speed) {
  switch (speed) {
    case 1:
      return 2500;
    case 2:
      return 5000;
    case 4:
    case 8:
      return 10000;
    case 16:
      return 14000;
    case 32:
      return 25000;
    case 64:
      return 50000;
    case 128:
      return 100000;
    default:
      return 0;
  }
}

uint64_t Lanes(uint8_t width) {
  switch (width) {
    case 2:
      return 4;
    case 4:
      return 8;
    case 8:
      return 12;
    case 16:
      return 2;
    default:
      return 1;
  }
}

Protocol ProtocolOf(const ibv_gid_entry& entry, bool iwarp) {
  if (iwarp) return Protocol::kIwarp;
  switch (entry.gid_type) {
    case IBV_GID_TYPE_ROCE_V2:
      return Protocol::kRoceV2;
    case IBV_GID_TYPE_ROCE_V1:
      return Protocol::kRoceV1;
    default:
      return Protocol::kInfiniBand;
  }
}

Completion::Status StatusOf(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return Completion::Status::kOk;
    case IBV_WC_WR_FLUSH_ERR:
      return Completion::Status::kFlushed;
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
      return Completion::Status::kRemoteRefused;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
      return Completion::Status::kUnreachable;
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
      return Completion::Status::kLocalError;
    default:
      return Completion::Status::kOther;
  }
}

class IbRegistered : public Registered {
 public:
  explicit IbRegistered(ibv_mr* mr) : mr_(mr) {}
  ~IbRegistered() override { ibv_dereg_mr(mr_); }
  uint32_t local_key() const override { return mr_->lkey; }
  uint32_t remote_key() const override { return mr_->rkey; }

 private:
  ibv_mr* const mr_;
};

class IbCompletionChannel : public CompletionChannel {
 public:
  explicit IbCompletionChannel(ibv_comp_channel* channel) : channel_(channel) {}
  ~IbCompletionChannel() override { ibv_destroy_comp_channel(channel_); }
  ibv_comp_channel* channel() const { return channel_; }
  int fd() const override { return channel_->fd; }
  CompletionQueue* Next() override {
    ibv_cq* cq = nullptr;
    void* queue = nullptr;
    if (ibv_get_cq_event(channel_, &cq, &queue) != 0) return nullptr;
    ibv_ack_cq_events(cq, 1);
    return static_cast<IbCompletionQueue*>(queue);
  }

 private:
  ibv_comp_channel* const channel_;
};

// What to do about a registration that failed.
std::string Cure(int error) {
  rlimit limit{};
  if (error == ENOMEM && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    return " (the limit on locked memory is " + std::to_string(limit.rlim_cur >> 10) +
           " KiB: raise it with ulimit -l or LimitMEMLOCK=)";
  }
  if (error == EFAULT || error == EOPNOTSUPP) {
    return " (memory of files on disk cannot be registered)";
  }
  return {};
}

}  // namespace

Status SetNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return FailErrno("O_NONBLOCK");
  return {};
}

// --- devices -------------------------------------------------------------------------------

IbDevice::IbDevice(ibv_context* context)
    : context_(context), name_(ibv_get_device_name(context->device)) {
  if (ibv_query_device(context_, &attributes_) != 0) attributes_ = {};
}

Result<DeviceAttributes> IbDevice::Query() {
  ibv_device_attr fresh{};
  if (ibv_query_device(context_, &fresh) != 0) return FailErrno("asking " + name_);
  DeviceAttributes result;
  result.iwarp = context_->device->transport_type == IBV_TRANSPORT_IWARP;
  result.max_depth = static_cast<uint32_t>(fresh.max_qp_wr);
  result.max_pieces = static_cast<uint32_t>(
      fresh.max_sge_rd > 0 ? std::min(fresh.max_sge, fresh.max_sge_rd) : fresh.max_sge);
  result.max_reads_served = static_cast<uint32_t>(fresh.max_qp_rd_atom);
  result.max_reads_made = static_cast<uint32_t>(fresh.max_qp_init_rd_atom);
  result.max_registration_bytes = fresh.max_mr_size;
  for (uint8_t number = 1; number <= fresh.phys_port_cnt; ++number) {
    ibv_port_attr attributes{};
    if (ibv_query_port(context_, number, &attributes) != 0) continue;
    PortAttributes port;
    port.number = number;
    port.active = attributes.state == IBV_PORT_ACTIVE;
    port.ethernet = attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
    port.mtu_bytes = 128u << attributes.active_mtu;
    port.speed_mbps = LaneMbps(attributes.active_speed) * Lanes(attributes.active_width);
    result.ports.push_back(std::move(port));
  }
  std::vector<ibv_gid_entry> gids(kMaxGids);
  const ssize_t count = ibv_query_gid_table(context_, gids.data(), gids.size(), 0);
  for (ssize_t i = 0; i < count; ++i) {
    for (PortAttributes& port : result.ports) {
      if (port.number != gids[static_cast<size_t>(i)].port_num) continue;
      const ibv_gid_entry& entry = gids[static_cast<size_t>(i)];
      GidEntry gid{entry.gid_index, {}, ProtocolOf(entry, result.iwarp)};
      std::memcpy(gid.gid.data(), entry.gid.raw, gid.gid.size());
      port.gids.push_back(gid);
    }
  }
  return result;
}

Result<std::unique_ptr<ProtectionDomain>> IbDevice::NewProtectionDomain() {
  ibv_pd* const pd = ibv_alloc_pd(context_);
  if (pd == nullptr) return FailErrno("a protection domain on " + name_);
  return std::make_unique<IbProtectionDomain>(pd);
}

Result<std::unique_ptr<CompletionChannel>> IbDevice::NewCompletionChannel() {
  ibv_comp_channel* const channel = ibv_create_comp_channel(context_);
  if (channel == nullptr) return FailErrno("a completion channel on " + name_);
  auto result = std::make_unique<IbCompletionChannel>(channel);
  if (Status status = SetNonBlocking(channel->fd); !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  return result;
}

Result<std::unique_ptr<CompletionQueue>> IbDevice::NewCompletionQueue(uint32_t entries,
                                                                      CompletionChannel* channel) {
  auto result = std::make_unique<IbCompletionQueue>();
  ibv_comp_channel* const events =
      channel == nullptr ? nullptr : static_cast<IbCompletionChannel*>(channel)->channel();
  ibv_cq* const cq = ibv_create_cq(context_, static_cast<int>(entries), result.get(), events, 0);
  if (cq == nullptr) {
    return FailErrno("a completion queue of " + std::to_string(entries) + " on " + name_);
  }
  result->Take(cq);
  return result;
}

void IbDevice::TakeEvents() {
  ibv_async_event event{};
  while (ibv_get_async_event(context_, &event) == 0) {
    const auto port = static_cast<uint8_t>(event.element.port_num);
    if (event.event_type == IBV_EVENT_PORT_ACTIVE) {
      down_[port] = false;
    } else if (event.event_type == IBV_EVENT_PORT_ERR) {
      down_[port] = true;
    } else if (event.event_type == IBV_EVENT_DEVICE_FATAL) {
      for (std::atomic<bool>& down : down_) down = true;
    }
    // At once: a queue pair or completion queue cannot be destroyed before.
    ibv_ack_async_event(&event);
  }
}

IbDevices& IbDevices::OfProcess() {
  // Never destroyed, like the contexts: somebody may still hold a device when the process ends.
  static IbDevices* const devices = new IbDevices();
  return *devices;
}

IbDevice* IbDevices::Find(ibv_context* context) {
  for (const auto& device : devices_) {
    if (device->context() == context) return device.get();
  }
  return nullptr;
}

Result<std::vector<std::shared_ptr<Device>>> IbDevices::All() {
  int count = 0;
  ibv_context** const contexts = rdma_get_devices(&count);
  if (contexts == nullptr) return FailErrno("listing RDMA devices");
  std::vector<std::shared_ptr<Device>> result;
  MutexLock lock(mu_);
  for (int i = 0; i < count; ++i) {
    if (Find(contexts[i]) == nullptr) {
      if (!SetNonBlocking(contexts[i]->async_fd)) continue;
      devices_.push_back(std::make_shared<IbDevice>(contexts[i]));
    }
    for (const auto& device : devices_) {
      if (device->context() == contexts[i]) result.push_back(device);
    }
  }
  rdma_free_devices(contexts);
  return result;
}

IbDevice* IbDevices::Of(ibv_context* context) {
  MutexLock lock(mu_);
  return Find(context);
}

// --- memory, queues ------------------------------------------------------------------------

int IbProtectionDomain::Flags(uint32_t access) const {
  int flags = 0;
  const bool iwarp = pd_->context->device->transport_type == IBV_TRANSPORT_IWARP;
  if ((access & kReadTarget) != 0) access |= kLocalWrite;
  if ((access & kReadTarget) != 0 && iwarp) access |= kRemoteWrite;
  if ((access & kLocalWrite) != 0) flags |= IBV_ACCESS_LOCAL_WRITE;
  if ((access & kRemoteRead) != 0) flags |= IBV_ACCESS_REMOTE_READ;
  if ((access & kRemoteWrite) != 0) flags |= IBV_ACCESS_REMOTE_WRITE;
  return flags;
}

Result<std::unique_ptr<Registered>> IbProtectionDomain::Register(void* data, size_t bytes,
                                                                 uint32_t access) {
  ibv_mr* const mr = ibv_reg_mr(pd_, data, bytes, static_cast<unsigned>(Flags(access)));
  if (mr == nullptr) {
    const int error = errno;
    return Fail(error == ENOMEM ? ErrorCode::kOutOfMemory : ErrorCode::kSystem,
                "registering " + std::to_string(bytes) + " bytes on " +
                    ibv_get_device_name(pd_->context->device) + ": " + std::strerror(error) +
                    Cure(error));
  }
  return std::make_unique<IbRegistered>(mr);
}

Result<std::unique_ptr<Registered>> IbProtectionDomain::RegisterDmabuf(int fd, uint64_t offset,
                                                                       size_t bytes,
                                                                       uint64_t address,
                                                                       uint32_t access) {
  ibv_mr* const mr = ibv_reg_dmabuf_mr(pd_, offset, bytes, address, fd, Flags(access));
  if (mr == nullptr) {
    const int error = errno;
    // The library's answer where the provider has no such call, and the kernel's.
    const bool never = error == EOPNOTSUPP || error == ENOSYS;
    return Fail(never             ? ErrorCode::kUnavailable
                : error == ENOMEM ? ErrorCode::kOutOfMemory
                                  : ErrorCode::kSystem,
                "registering " + std::to_string(bytes) + " bytes of a device's memory on " +
                    ibv_get_device_name(pd_->context->device) + ": " + std::strerror(error) +
                    (never ? " (it takes a NIC, and a driver and kernel, with dma-buf)" : ""));
  }
  return std::make_unique<IbRegistered>(mr);
}

size_t IbCompletionQueue::Poll(std::span<Completion> completions) {
  size_t taken = 0;
  while (taken < completions.size()) {
    ibv_wc found[kPollAtOnce];
    const size_t room = std::min(completions.size() - taken, kPollAtOnce);
    const int count = ibv_poll_cq(cq_, static_cast<int>(room), found);
    if (count <= 0) break;
    for (int i = 0; i < count; ++i) {
      Completion& to = completions[taken++];
      to.id = found[i].wr_id;
      to.status = StatusOf(found[i].status);
      to.bytes = found[i].byte_len;
      to.text = ibv_wc_status_str(found[i].status);
    }
    if (static_cast<size_t>(count) < room) break;
  }
  return taken;
}

Status IbCompletionQueue::Arm() {
  if (const int error = ibv_req_notify_cq(cq_, 0); error != 0) {
    errno = error;
    return FailErrno("asking for a completion event");
  }
  return {};
}

// --- queue pairs ---------------------------------------------------------------------------

size_t IbQueuePair::Post(std::span<const WorkRequest> requests) {
  // Kept from call to call: a chain has as many as the queue is deep.
  thread_local std::vector<ibv_send_wr> chain;
  thread_local std::vector<ibv_sge> pieces;
  chain.clear();
  pieces.clear();
  size_t total = 0;
  for (const WorkRequest& request : requests) total += request.pieces.size();
  pieces.reserve(total);
  chain.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    const WorkRequest& request = requests[i];
    ibv_send_wr& wr = chain[i];
    wr = {};
    wr.wr_id = request.id;
    wr.next = i + 1 < requests.size() ? &chain[i + 1] : nullptr;
    wr.sg_list = pieces.data() + pieces.size();
    wr.num_sge = static_cast<int>(request.pieces.size());
    for (const Piece& piece : request.pieces) {
      pieces.push_back({piece.address, piece.length, piece.local_key});
    }
    wr.opcode = request.kind == WorkRequest::Kind::kRead    ? IBV_WR_RDMA_READ
                : request.kind == WorkRequest::Kind::kWrite ? IBV_WR_RDMA_WRITE
                                                            : IBV_WR_SEND;
    if (request.signalled) wr.send_flags |= IBV_SEND_SIGNALED;
    if (request.fenced) wr.send_flags |= IBV_SEND_FENCE;
    if (request.inlined) wr.send_flags |= IBV_SEND_INLINE;
    wr.wr.rdma.remote_addr = request.remote_address;
    wr.wr.rdma.rkey = request.remote_key;
  }
  if (chain.empty()) return 0;
  ibv_send_wr* refused = nullptr;
  if (ibv_post_send(qp_, chain.data(), &refused) == 0) return requests.size();
  return refused == nullptr ? 0 : static_cast<size_t>(refused - chain.data());
}

Status IbQueuePair::PostReceive(uint64_t id, const Piece& piece) {
  ibv_sge sge{piece.address, piece.length, piece.local_key};
  ibv_recv_wr wr{};
  wr.wr_id = id;
  wr.sg_list = &sge;
  wr.num_sge = 1;
  ibv_recv_wr* refused = nullptr;
  if (const int error = ibv_post_recv(qp_, &wr, &refused); error != 0) {
    errno = error;
    return FailErrno("posting a receive");
  }
  return {};
}

Status IbQueuePair::ToError() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  if (const int error = ibv_modify_qp(qp_, &attributes, IBV_QP_STATE); error != 0) {
    errno = error;
    return FailErrno("a queue pair into the error state");
  }
  return {};
}

}  // namespace moonpool::rdma
