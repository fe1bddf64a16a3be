#include "client/verbs_transport.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "client/errors.h"
#include "client/fork_guard.h"
#include "rdma/ibverbs.h"

namespace moonpool::client {

namespace {

constexpr int64_t kFirstPauseMs = 1000;
constexpr int64_t kLongestPauseMs = 300'000;
constexpr int64_t kNobody = -1;

// ForkCount() of the process that opened the libraries: their devices are not a child's.
std::atomic<int64_t> opened_under{kNobody};

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::optional<rdma::Protocol> ParseProtocol(std::string_view text) {
  using enum rdma::Protocol;
  for (const rdma::Protocol protocol : {kInfiniBand, kRoceV1, kRoceV2, kIwarp}) {
    if (rdma::ProtocolName(protocol) == text) return protocol;
  }
  return std::nullopt;
}

// A GPU's memory, as registrations know it.
class GpuMemory final : public rdma::PeerMemory {
 public:
  explicit GpuMemory(gpu::Device* device) : device_(*device) {}
  Result<File> Export(char* data, uint64_t bytes) override {
    auto exported = device_.ExportDmabuf(data, bytes);
    if (!exported) return tl::unexpected<Error>(std::move(exported.error()));
    return File{std::move(exported->fd), exported->offset};
  }
  moonpool::Status Flush() override { return device_.FlushRemoteWrites(); }

 private:
  gpu::Device& device_;
};

}  // namespace

VerbsTransport::VerbsTransport(const Options& options, Library library)
    : options_(options), library_(std::move(library)), backoff_(kFirstPauseMs, kLongestPauseMs) {}

VerbsTransport::~VerbsTransport() = default;

bool VerbsTransport::MayTry() {
  MutexLock lock(mu_);
  return backoff_.MayTry(NowMs());
}

std::shared_ptr<VerbsShared> VerbsTransport::shared() const {
  MutexLock lock(mu_);
  return shared_;
}

Status VerbsTransport::Failed(const std::string& why) {
  MutexLock lock(mu_);
  backoff_.Failed(NowMs());
  error_ = why;
  return {Code::kUnavailable, why};
}

Result<std::shared_ptr<VerbsShared>> VerbsTransport::OpenLibrary() {
  const auto forks = static_cast<int64_t>(ForkCount());
  int64_t opener = kNobody;
  const bool first = opened_under.compare_exchange_strong(opener, forks);
  if (!first && opener != forks) {
    return Fail(
        ErrorCode::kUnavailable,
        "this process was forked from one that uses RDMA, and cannot: start it with exec, or "
        "connect first in the child");
  }
  auto verbs = library_();
  if (!verbs) {
    // Nothing was opened that a child could not open for itself.
    if (first) opened_under = kNobody;
    return tl::unexpected<Error>(std::move(verbs.error()));
  }
  auto nics = rdma::NicSet::Open(
      std::move(*verbs), rdma::ParseNicFilter(options_.rdma_devices, options_.rdma_exclude));
  if (!nics) return tl::unexpected<Error>(std::move(nics.error()));
  for (const auto& device : (*nics)->devices()) {
    if (device->command_fd() >= 0) CloseInChildren(device->command_fd());
  }
  auto domains = rdma::Domains::Create((*nics)->devices());
  if (!domains) return tl::unexpected<Error>(std::move(domains.error()));
  return std::make_shared<VerbsShared>(std::move(*nics), std::move(*domains), options_);
}

Status VerbsTransport::OpenDevices() {
  if (!MayTry()) return {Code::kUnavailable, error()};
  MutexLock open_lock(open_mu_);
  if (shared() != nullptr) return {};
  auto opened = OpenLibrary();
  if (!opened) return Failed(opened.error().message);
  MutexLock lock(mu_);
  for (const Declared& buffer : declared_) {
    // Whoever declared them has seen to it that none overlaps another.
    MOONPOOL_CHECK((*opened)->buffers.Declare(buffer.data, buffer.bytes, buffer.peer));
  }
  shared_ = std::move(*opened);
  return {};
}

Status VerbsTransport::Open(const RdmaOffer& offer, MoreTokens more,
                            std::unique_ptr<RdmaSession>* session) {
  if (Status opened = OpenDevices(); !opened.ok()) return opened;
  const auto token = rdma::ParseToken(offer.token);
  if (!token) return Failed("the server's token is none");
  rdma::EndpointTarget target{offer.epoch, offer.session, offer.port, {}};
  for (const RdmaOffer::Nic& nic : offer.nics) {
    const auto protocol = ParseProtocol(nic.protocol);
    if (protocol) target.nics.push_back({nic.name, nic.addresses, *protocol, nic.speed_mbps});
  }
  auto made = std::make_unique<VerbsSession>(shared(), std::move(target), *token, std::move(more));
  if (!made->Ready() && !made->busy()) {
    return Failed(
        "no queue pair to the server: " + made->why() +
        " (rdma_devices and rdma_exclude choose NICs; both sides' must reach each other)");
  }
  *session = std::move(made);
  MutexLock lock(mu_);
  backoff_.Reset();
  error_.clear();
  return {};
}

void VerbsTransport::Declare(void* data, size_t bytes, gpu::Device* device) {
  std::shared_ptr<VerbsShared> shared;
  {
    MutexLock lock(mu_);
    Declared buffer{static_cast<char*>(data), bytes, nullptr};
    if (device != nullptr) {
      std::shared_ptr<rdma::PeerMemory>& peer = peers_[device];
      if (peer == nullptr) peer = std::make_shared<GpuMemory>(device);
      buffer.peer = peer;
    }
    declared_.push_back(buffer);
    shared = shared_;
    if (shared == nullptr) return;
    MOONPOOL_CHECK(shared->buffers.Declare(buffer.data, bytes, buffer.peer));
  }
  // So that the first transfer finds it registered.
  std::vector<rdma::LocalPiece> pieces;
  rdma::BufferCache::Pins pins;
  shared->buffers.Describe(static_cast<char*>(data), bytes, &pieces, &pins);
}

void VerbsTransport::Withdraw(void* data) {
  std::shared_ptr<VerbsShared> shared;
  {
    MutexLock lock(mu_);
    std::erase_if(declared_, [&](const Declared& buffer) { return buffer.data == data; });
    shared = shared_;
  }
  if (shared != nullptr) shared->buffers.Withdraw(static_cast<char*>(data));
}

uint64_t VerbsTransport::registered_bytes() const {
  const auto opened = shared();
  return opened == nullptr ? 0 : opened->buffers.counters().bytes;
}

std::string VerbsTransport::error() const {
  MutexLock lock(mu_);
  return error_;
}

std::string VerbsTransport::device_memory_error() const {
  const auto opened = shared();
  return opened == nullptr ? std::string() : opened->buffers.peer_error();
}

std::shared_ptr<RdmaTransport> NewRdmaTransport(const Options& options) {
  return std::make_shared<VerbsTransport>(options, &rdma::OpenVerbs);
}

}  // namespace moonpool::client
