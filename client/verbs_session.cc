#include "client/verbs_session.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "client/errors.h"

namespace moonpool::client {

namespace {

constexpr uint32_t kStagingBuffer = 0;
constexpr uint64_t kStagedAlign = 64;
// An unanswered connection request costs the caller at most this.
constexpr int kMostConnectMs = 2000;

}  // namespace

VerbsSession::VerbsSession(std::shared_ptr<VerbsShared> shared, rdma::EndpointTarget target,
                           rdma::Token first, RdmaTransport::MoreTokens more)
    : shared_(std::move(shared)),
      target_(std::move(target)),
      more_(std::move(more)),
      key_(shared_->next_key++),
      first_(first) {}

VerbsSession::~VerbsSession() {
  use_.Release();
  // Fenced before what the server could read goes.
  shared_->endpoints.Drop(key_);
}

Result<rdma::Token> VerbsSession::NextToken() {
  if (first_) return *std::exchange(first_, std::nullopt);
  std::string text;
  if (const Status status = more_(&text); !status.ok()) {
    return Fail(ErrorCode::kUnavailable, "KV.TOKEN: " + status.message);
  }
  const auto token = rdma::ParseToken(text);
  if (!token) return Fail(ErrorCode::kProtocol, "KV.TOKEN: not a token");
  return *token;
}

std::unique_ptr<rdma::Endpoint> VerbsSession::MakeEndpoint() {
  announced_.clear();  // the server knows nothing yet
  rdma::EndpointOptions options;
  options.connect_timeout_ms = std::min(shared_->connect_timeout_ms, kMostConnectMs);
  return std::make_unique<rdma::Endpoint>(
      *shared_->nics, *shared_->domains, target_, [this] { return NextToken(); }, options);
}

bool VerbsSession::Ready() {
  used_ = true;
  if (!use_) {
    bool is_new = false;
    auto got = shared_->endpoints.Get(key_, [&]() -> Result<std::unique_ptr<rdma::Endpoint>> {
      is_new = true;
      return MakeEndpoint();
    });
    busy_ = !got && got.error().code == ErrorCode::kBusy;
    if (!got) {
      why_ = got.error().message;
      first_.reset();  // too old when its turn comes
      return false;
    }
    use_ = std::move(*got);
    if (is_new) {
      const auto opened = use_->Open();
      why_ = opened ? std::string() : opened.error().message;
      return opened.has_value();
    }
  }
  use_->Repair();
  return use_->has_lane();
}

void VerbsSession::Tend() {
  if (std::exchange(used_, false)) return;
  const rdma::EndpointCache::Use use = shared_->endpoints.Find(key_);
  if (!use) return;
  use->Pump();
  use->Repair();
  if (Crowded()) RetractAll(*use.get());
}

Status VerbsSession::Read(std::span<const Value> values,
                          std::chrono::steady_clock::time_point deadline,
                          std::vector<Outcome>* outcomes) {
  outcomes->assign(values.size(), Outcome::kUnreachable);
  std::vector<rdma::LocalPiece> pieces;
  std::vector<size_t> ends;
  std::vector<size_t> read;  // of the values
  rdma::BufferCache::Pins pins;
  std::vector<std::pair<size_t, rdma::BufferCache::Pins>> on_device;
  pieces.reserve(values.size());
  ends.reserve(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t first = pieces.size();
    rdma::BufferCache::Pins mine;
    rdma::BufferCache::Pins& keep = values[i].on_device ? mine : pins;
    for (const Buffer& piece : values[i].into) {
      shared_->buffers.Describe(static_cast<char*>(piece.data), piece.size, &pieces, &keep);
    }
    if (values[i].on_device) {
      // Without keys it would pass through memory of the engine's, by the processor.
      if (std::any_of(pieces.begin() + static_cast<ptrdiff_t>(first), pieces.end(),
                      [](const rdma::LocalPiece& piece) { return piece.keys == nullptr; })) {
        pieces.resize(first);
        (*outcomes)[i] = Outcome::kNotRegistered;
        continue;
      }
      on_device.emplace_back(i, std::move(mine));
    }
    read.push_back(i);
    ends.push_back(pieces.size());
  }
  if (read.empty()) return {};
  std::vector<rdma::TransferItem> items;
  items.reserve(read.size());
  for (size_t i = 0; i < read.size(); ++i) {
    const Value& value = values[read[i]];
    const size_t first = i == 0 ? 0 : ends[i - 1];
    items.push_back({value.region, value.offset, value.length,
                     std::span(pieces).subspan(first, ends[i] - first), true, value.slot,
                     value.generation});
  }
  rdma::Transfer transfer(rdma::Transfer::Direction::kRead, std::move(items));
  use_->Run(&transfer, deadline);
  for (size_t i = 0; i < read.size(); ++i) {
    switch (transfer.outcome(i)) {
      case rdma::Outcome::kDone:
        (*outcomes)[read[i]] = Outcome::kDone;
        break;
      case rdma::Outcome::kChanged:
        (*outcomes)[read[i]] = Outcome::kChanged;
        break;
      case rdma::Outcome::kNotThere:
        (*outcomes)[read[i]] = Outcome::kNotThere;
        break;
      case rdma::Outcome::kUnreachable:
      case rdma::Outcome::kPending:
        (*outcomes)[read[i]] = Outcome::kUnreachable;
        break;
    }
  }
  return Flush(on_device, outcomes);
}

// Whatever became of a value: what arrived late must not fall upon bytes that come another way.
Status VerbsSession::Flush(std::span<const std::pair<size_t, rdma::BufferCache::Pins>> on_device,
                           std::vector<Outcome>* outcomes) {
  std::map<rdma::PeerMemory*, bool> flushed;
  Status failure;
  for (const auto& [value, pins] : on_device) {
    for (const auto& registration : pins) {
      rdma::PeerMemory* const peer = registration->peer();
      if (peer == nullptr) continue;
      const auto [at, is_new] = flushed.try_emplace(peer, true);
      if (is_new) {
        const moonpool::Status status = peer->Flush();
        at->second = status.has_value();
        if (!status) failure = FromDeviceError(status.error());
      }
      if (!at->second) (*outcomes)[value] = Outcome::kDeviceFailed;
    }
  }
  return failure;
}

// --- values that the server reads --------------------------------------------------------------

// Somebody found no room among the registrations since this session last looked.
bool VerbsSession::Crowded() {
  const uint64_t refused = shared_->buffers.counters().refused;
  return std::exchange(refusals_seen_, refused) != refused;
}

void VerbsSession::RetractAll(rdma::Endpoint& endpoint) {
  for (const auto& [registration, buffer] : announced_) endpoint.Retract(buffer);
  announced_.clear();
}

void VerbsSession::BeginRound() {
  staged_ = 0;
  if (Crowded()) RetractAll(*use_.get());
}

std::optional<RdmaSession::Place> VerbsSession::PlaceOf(const void* data, uint64_t bytes) {
  auto* const from = const_cast<char*>(static_cast<const char*>(data));
  std::shared_ptr<const rdma::Registration> registration = shared_->buffers.Pin(from, bytes);
  if (registration == nullptr) return std::nullopt;
  const auto offset = static_cast<uint64_t>(from - registration->data());
  const auto [at, is_new] = announced_.try_emplace(std::move(registration), next_buffer_);
  if (is_new) ++next_buffer_;
  // Of one that is known this only makes sure that lanes which came since know it too.
  if (!use_->Announce(at->second, *at->first, rdma::kRemoteRead)) {
    announced_.erase(at);
    return std::nullopt;
  }
  return Place{at->second, offset};
}

bool VerbsSession::EnsureStaging() {
  if (staging_keys_ == nullptr) {
    if (no_staging_ || shared_->staging_bytes == 0) return false;
    staging_ = std::make_unique_for_overwrite<char[]>(shared_->staging_bytes);
    auto keys = rdma::Registration::Create(*shared_->domains, staging_.get(),
                                           shared_->staging_bytes, rdma::kRemoteRead);
    if (!keys) {
      staging_ = nullptr;
      no_staging_ = true;
      return false;
    }
    staging_keys_ = std::move(*keys);
  }
  return use_->Announce(kStagingBuffer, *staging_keys_, rdma::kRemoteRead).has_value();
}

std::optional<RdmaSession::Place> VerbsSession::Stage(std::span<const ConstBuffer> pieces,
                                                      uint64_t bytes) {
  if (bytes > shared_->staging_bytes - staged_ || !EnsureStaging()) return std::nullopt;
  const uint64_t offset = staged_;
  char* to = staging_.get() + offset;
  for (const ConstBuffer& piece : pieces) {
    std::memcpy(to, piece.data, piece.size);
    to += piece.size;
  }
  const uint64_t end = (offset + bytes + kStagedAlign - 1) & ~(kStagedAlign - 1);
  staged_ = std::min(end, shared_->staging_bytes);
  return Place{kStagingBuffer, offset};
}

void VerbsSession::Fence() {
  if (use_) use_->Close("a write was given up");
}

void VerbsSession::Forget(const void* data, uint64_t bytes) {
  const auto* const first = static_cast<const char*>(data);
  const rdma::EndpointCache::Use use = shared_->endpoints.Find(key_);
  std::erase_if(announced_, [&](const auto& entry) {
    const auto& [registration, buffer] = entry;
    if (registration->data() < first || registration->data() >= first + bytes) return false;
    if (use) use->Retract(buffer);
    return true;
  });
}

}  // namespace moonpool::client
