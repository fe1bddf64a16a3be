#include "tests/rdma/fake_objects.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace moonpool::rdma::test {

namespace {

constexpr uint64_t kPage = 4096;

}  // namespace

// --- completions ---------------------------------------------------------------------------

CompletionQueue* FakeChannel::Next() {
  MutexLock lock(fabric_.mu_);
  if (events.empty()) {
    signal.Lower();
    return nullptr;
  }
  FakeQueue* const queue = events.front();
  events.pop_front();
  return queue;
}

FakeQueue::~FakeQueue() {
  MutexLock lock(fabric_.mu_);
  if (channel != nullptr) std::erase(channel->events, this);
}

size_t FakeQueue::Poll(std::span<Completion> completions) {
  MutexLock lock(fabric_.mu_);
  size_t count = 0;
  while (count < completions.size() && !completions_.empty()) {
    completions[count++] = completions_.front();
    completions_.pop_front();
  }
  return count;
}

Status FakeQueue::Arm() {
  MutexLock lock(fabric_.mu_);
  armed = true;
  return {};
}

void FakeQueue::Push(const Completion& completion) {
  completions_.push_back(completion);
  if (!armed || channel == nullptr) return;
  armed = false;
  channel->events.push_back(this);
  channel->signal.Raise();
}

// --- devices -------------------------------------------------------------------------------

Result<DeviceAttributes> FakeDevice::Query() {
  MutexLock lock(fabric_.mu_);
  DeviceAttributes attributes;
  attributes.iwarp = protocol == Protocol::kIwarp;
  attributes.max_depth = 1024;
  attributes.max_pieces = 16;
  attributes.max_reads_served = 16;
  attributes.max_reads_made = 16;
  attributes.max_registration_bytes = 1ull << 40;
  PortAttributes port;
  port.active = up;
  port.ethernet = true;
  port.mtu_bytes = 4096;
  port.speed_mbps = 100000;
  port.gids.push_back({0, {}, protocol});
  attributes.ports.push_back(port);
  return attributes;
}

Result<std::unique_ptr<ProtectionDomain>> FakeDevice::NewProtectionDomain() {
  return std::make_unique<FakeDomain>(fabric_, *this);
}

Result<std::unique_ptr<CompletionChannel>> FakeDevice::NewCompletionChannel() {
  return std::make_unique<FakeChannel>(fabric_);
}

Result<std::unique_ptr<CompletionQueue>> FakeDevice::NewCompletionQueue(
    uint32_t, CompletionChannel* channel) {
  return std::make_unique<FakeQueue>(fabric_, static_cast<FakeChannel*>(channel));
}

void FakeDevice::TakeEvents() {
  MutexLock lock(fabric_.mu_);
  signal.Lower();
  seen_up = up;
}

std::shared_ptr<FakeFabric::Mapping> FakeFabric::Mapping::Of(int fd, uint64_t offset,
                                                             uint64_t bytes) {
  struct stat file {};
  if (fstat(fd, &file) != 0 || offset + bytes > static_cast<uint64_t>(file.st_size)) return nullptr;
  const uint64_t skipped = offset % kPage;
  void* const start = mmap(nullptr, skipped + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                           static_cast<off_t>(offset - skipped));
  if (start == MAP_FAILED) return nullptr;
  return std::shared_ptr<Mapping>(new Mapping(static_cast<char*>(start), skipped, skipped + bytes));
}

FakeFabric::Mapping::~Mapping() {
  munmap(start_, mapped_bytes_);
}

class FakeRegistered : public Registered {
 public:
  FakeRegistered(FakeFabric& fabric, FakeDevice& device, uint32_t key)
      : fabric_(fabric), device_(device), key_(key) {}
  ~FakeRegistered() override {
    MutexLock lock(fabric_.mu_);
    const auto found = device_.registrations.find(key_);
    if (found->second.mapping != nullptr) --fabric_.counters_.dmabufs;
    device_.registrations.erase(found);
    --fabric_.counters_.registrations;
  }
  uint32_t local_key() const override { return key_; }
  uint32_t remote_key() const override { return key_; }

 private:
  FakeFabric& fabric_;
  FakeDevice& device_;
  const uint32_t key_;
};

Result<std::unique_ptr<Registered>> FakeDomain::Register(void* data, size_t bytes,
                                                         uint32_t access) {
  {
    MutexLock lock(fabric_.mu_);
    if (device_.refuses_registrations) {
      return Fail(ErrorCode::kOutOfMemory, device_.name() + " registers nothing");
    }
  }
  return Add({reinterpret_cast<uint64_t>(data), bytes, access, this});
}

Result<std::unique_ptr<Registered>> FakeDomain::RegisterDmabuf(int fd, uint64_t offset,
                                                               size_t bytes, uint64_t address,
                                                               uint32_t access) {
  {
    MutexLock lock(fabric_.mu_);
    ++fabric_.counters_.dmabuf_tries;
    if (device_.refuses_dmabufs) {
      return Fail(ErrorCode::kUnavailable, device_.name() + " takes no dma-buf");
    }
    if (device_.refuses_registrations) {
      return Fail(ErrorCode::kOutOfMemory, device_.name() + " registers nothing");
    }
  }
  auto mapping = FakeFabric::Mapping::Of(fd, offset, bytes);
  if (mapping == nullptr || offset % kPage != address % kPage) {
    return Fail(ErrorCode::kSystem, device_.name() + ": there is no such part of the dma-buf");
  }
  return Add({address, bytes, access, this, std::move(mapping)});
}

std::unique_ptr<Registered> FakeDomain::Add(FakeFabric::Registration registration) {
  uint32_t key;
  {
    MutexLock lock(fabric_.mu_);
    uint32_t& access = registration.access;
    if ((access & kReadTarget) != 0) access |= kLocalWrite;
    if ((access & kReadTarget) != 0 && device_.protocol == Protocol::kIwarp) access |= kRemoteWrite;
    if (registration.mapping != nullptr) ++fabric_.counters_.dmabufs;
    key = ++fabric_.next_key_;
    device_.registrations[key] = std::move(registration);
    ++fabric_.counters_.registrations;
  }
  return std::make_unique<FakeRegistered>(fabric_, device_, key);
}

// --- queue pairs ---------------------------------------------------------------------------

FakeQueuePair::FakeQueuePair(FakeFabric& fabric, FakeDevice& d, const void* in, FakeQueue& q,
                             const QueuePairLimits& limits, uint32_t number)
    : device(d), domain(in), queue(q), fabric_(fabric), limits_(limits), number_(number) {
  limits_.iwarp = device.protocol == Protocol::kIwarp;
}

FakeQueuePair::~FakeQueuePair() {
  MutexLock lock(fabric_.mu_);
  std::erase(fabric_.pairs_, this);
  --fabric_.counters_.queue_pairs;
  if (peer != nullptr) peer->peer = nullptr;
}

size_t FakeQueuePair::Post(std::span<const WorkRequest> requests) {
  MutexLock lock(fabric_.mu_);
  ++fabric_.counters_.doorbells;
  if (device.refused_posts > 0) {
    --device.refused_posts;
    requests = requests.first(requests.size() / 2);
  }
  for (const WorkRequest& request : requests) {
    MOONPOOL_CHECK(slots.size() < limits_.depth && request.pieces.size() <= limits_.max_pieces);
    ++fabric_.counters_.requests;
    FakeFabric::Slot slot;
    slot.request = request;
    slot.pieces.assign(request.pieces.begin(), request.pieces.end());
    if (request.inlined) {
      for (const Piece& piece : slot.pieces) {
        slot.inlined.append(reinterpret_cast<const char*>(piece.address), piece.length);
      }
    }
    slots.push_back(std::move(slot));
  }
  if (broken) {
    fabric_.Break(this);
  } else if (fabric_.moves_ == FakeFabric::Moves::kAtOnce) {
    for (size_t i = 0; i < slots.size() && !broken;) {
      const std::vector<size_t> eligible = fabric_.Eligible(*this);
      if (eligible.empty()) break;
      fabric_.Execute(this, eligible.front());
      i = 0;
    }
  }
  fabric_.posted_.NotifyAll();
  return requests.size();
}

Status FakeQueuePair::PostReceive(uint64_t id, const Piece& piece) {
  MutexLock lock(fabric_.mu_);
  receives.emplace_back(id, piece);
  return {};
}

Status FakeQueuePair::ToError() {
  MutexLock lock(fabric_.mu_);
  fabric_.Break(this);
  return {};
}

// --- connections ---------------------------------------------------------------------------

FakeConnection::FakeConnection(FakeFabric& fabric, FakeEvents& e) : events(&e), fabric_(fabric) {}

FakeConnection::~FakeConnection() {
  // Requests nobody took are connections, too: they go without the lock.
  std::vector<ConnectionEvent> unseen;
  {
    MutexLock lock(fabric_.mu_);
    Part();
    if (listening_) fabric_.listeners_.erase({address_, port_});
    for (ConnectionEvent& event : events->queue) {
      if (event.connection == this) unseen.push_back(std::move(event));
    }
    std::erase_if(events->queue,
                  [&](const ConnectionEvent& event) { return event.connection == this; });
  }
  pair_ = nullptr;
}

// The other side learns that this one is gone.
void FakeConnection::Part() {
  fabric_.mu_.AssertHeld();
  if (other == nullptr) return;
  ConnectionEvent event;
  event.kind = ConnectionEvent::Kind::kDisconnected;
  event.connection = other;
  const bool silent = device_ != nullptr && device_->silent;
  if (!silent) {
    using Closing = FakeFabric::Closing;
    if (other->pair_ != nullptr && fabric_.closing_ != Closing::kEventAlone) {
      fabric_.Break(other->pair_.get());
    }
    if (fabric_.closing_ != Closing::kFlushAlone) other->events->Push(std::move(event));
  }
  other->other = nullptr;
  other = nullptr;
}

Status FakeConnection::ResolveAddress(const std::string& source, const std::string& destination,
                                      uint16_t port, int) {
  MutexLock lock(fabric_.mu_);
  ConnectionEvent event;
  event.connection = this;
  device_ = fabric_.DeviceAt(source);
  destination_ = destination;
  port_ = port;
  const bool good = device_ != nullptr && device_->up && fabric_.DeviceAt(destination) != nullptr;
  event.kind = good ? ConnectionEvent::Kind::kAddressResolved : ConnectionEvent::Kind::kFailed;
  event.text = good ? "" : "no such address";
  events->Push(std::move(event));
  return {};
}

Status FakeConnection::ResolveRoute(int) {
  MutexLock lock(fabric_.mu_);
  ConnectionEvent event;
  event.connection = this;
  event.kind = ConnectionEvent::Kind::kRouteResolved;
  events->Push(std::move(event));
  return {};
}

Status FakeConnection::Connect(const ConnectParameters& parameters) {
  MOONPOOL_CHECK(parameters.private_data.size() <= kMaxRequestBytes && pair_ != nullptr);
  MutexLock lock(fabric_.mu_);
  FakeDevice* const to = fabric_.DeviceAt(destination_);
  if (device_->silent || to->silent || !device_->up || !to->up) return {};  // no answer, ever
  auto listener = fabric_.listeners_.find({destination_, port_});
  if (listener == fabric_.listeners_.end() && to->protocol != Protocol::kIwarp) {
    listener = fabric_.listeners_.find({"", port_});
  }
  ConnectionEvent event;
  if (listener == fabric_.listeners_.end()) {
    event.connection = this;
    event.kind = ConnectionEvent::Kind::kRejected;
    events->Push(std::move(event));
    return {};
  }
  FakeEvents* const there = listener->second->events;
  auto incoming = std::make_unique<FakeConnection>(fabric_, *there);
  incoming->device_ = to;
  incoming->destination_ = device_->address;
  incoming->other = this;
  other = incoming.get();
  event.connection = listener->second;
  event.kind = ConnectionEvent::Kind::kRequest;
  event.reads_served = parameters.reads_made;
  event.reads_made = parameters.reads_served;
  // As the connection manager does: padded.
  event.private_data = std::string(parameters.private_data);
  event.private_data.resize(kMaxRequestBytes);
  event.incoming = std::move(incoming);
  there->Push(std::move(event));
  return {};
}

Status FakeConnection::Listen(const std::string& address, uint16_t port, int) {
  MutexLock lock(fabric_.mu_);
  port_ = port != 0 ? port : fabric_.next_port_++;
  address_ = address;
  listening_ = fabric_.listeners_.emplace(std::pair(address_, port_), this).second;
  if (!listening_) return Fail(ErrorCode::kSystem, "the port is in use");
  return {};
}

Status FakeConnection::Accept(const ConnectParameters& parameters) {
  MOONPOOL_CHECK(parameters.private_data.size() <= kMaxAcceptBytes && pair_ != nullptr);
  MutexLock lock(fabric_.mu_);
  if (other == nullptr) return Fail(ErrorCode::kUnavailable, "the client is gone");
  pair_->peer = other->pair_.get();
  other->pair_->peer = pair_.get();
  for (FakeConnection* side : {this, other}) {
    ConnectionEvent event;
    event.connection = side;
    event.kind = ConnectionEvent::Kind::kEstablished;
    if (side == other) {
      event.reads_served = parameters.reads_made;
      event.reads_made = parameters.reads_served;
      event.private_data = std::string(parameters.private_data);
      event.private_data.resize(kMaxAcceptBytes);
    }
    side->events->Push(std::move(event));
  }
  return {};
}

Status FakeConnection::Reject(std::string_view private_data) {
  MOONPOOL_CHECK(private_data.size() <= kMaxRejectBytes);
  MutexLock lock(fabric_.mu_);
  if (other == nullptr) return {};
  ConnectionEvent event;
  event.connection = other;
  event.kind = ConnectionEvent::Kind::kRejected;
  event.private_data = std::string(private_data);
  event.private_data.resize(kMaxRejectBytes);
  other->events->Push(std::move(event));
  other->other = nullptr;
  other = nullptr;
  return {};
}

Status FakeConnection::CreateQueuePair(ProtectionDomain& domain, CompletionQueue& completions,
                                       const QueuePairLimits& limits) {
  MutexLock lock(fabric_.mu_);
  pair_ = std::make_unique<FakeQueuePair>(fabric_, *device_, &domain,
                                          static_cast<FakeQueue&>(completions), limits,
                                          fabric_.next_pair_++);
  fabric_.pairs_.push_back(pair_.get());
  ++fabric_.counters_.queue_pairs;
  return {};
}

void FakeConnection::Disconnect() {
  MutexLock lock(fabric_.mu_);
  Part();
  if (pair_ != nullptr) fabric_.Break(pair_.get());
}

std::optional<ConnectionEvent> FakeEvents::Next() {
  MutexLock lock(fabric_.mu_);
  if (queue.empty()) {
    signal.Lower();
    return std::nullopt;
  }
  std::optional<ConnectionEvent> event = std::move(queue.front());
  queue.pop_front();
  return event;
}

Result<std::unique_ptr<Connection>> FakeEvents::NewConnection() {
  MutexLock lock(fabric_.mu_);
  return std::make_unique<FakeConnection>(fabric_, *this);
}

// --- hosts ---------------------------------------------------------------------------------

class FakeVerbs : public Verbs {
 public:
  FakeVerbs(FakeFabric& fabric, std::string host) : fabric_(fabric), host_(std::move(host)) {}

  Result<std::vector<std::shared_ptr<Device>>> Devices() override {
    MutexLock lock(fabric_.mu_);
    std::vector<std::shared_ptr<Device>> result;
    for (const auto& device : fabric_.devices_) {
      if (device->host == host_) result.push_back(device);
    }
    return result;
  }
  std::vector<LocalAddress> Addresses() override {
    MutexLock lock(fabric_.mu_);
    std::vector<LocalAddress> result;
    for (const auto& device : fabric_.devices_) {
      if (device->host == host_) result.push_back({device->address, device->name(), 1});
    }
    return result;
  }
  Result<std::unique_ptr<ConnectionEvents>> NewConnectionEvents() override {
    return std::make_unique<FakeEvents>(fabric_, host_);
  }

 private:
  FakeFabric& fabric_;
  const std::string host_;
};

std::unique_ptr<Verbs> FakeFabric::Host(const std::string& host) {
  return std::make_unique<FakeVerbs>(*this, host);
}

}  // namespace moonpool::rdma::test
