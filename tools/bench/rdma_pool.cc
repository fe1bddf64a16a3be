#include "tools/bench/rdma_pool.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "rdma/ibverbs.h"
#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kRegionBytes = 256ull << 20;
constexpr double kConnectSeconds = 10;
constexpr size_t kRawDepth = 128;
constexpr size_t kRawSignalEvery = 32;
constexpr int kWaitMs = 1000;

template <typename T>
T Need(Result<T> result) {
  if (!result) throw Failure(result.error().message);
  return std::move(*result);
}

void Need(const Status& status) {
  if (!status) throw Failure(status.error().message);
}

}  // namespace

RdmaPool::RdmaPool(const std::string& devices, const std::string& exclude, uint64_t pool_bytes)
    : nics_(Need(
          rdma::NicSet::Open(Need(rdma::OpenVerbs()), rdma::ParseNicFilter(devices, exclude)))),
      budget_(pool_bytes + 2 * kRegionBytes) {
  rdma::ServiceOptions options;
  options.epoch = kEpoch;
  service_ = Need(rdma::Service::Start(*nics_, std::move(options)));
  storage::PoolOptions pool;
  pool.region_bytes = kRegionBytes;
  pool.generation_slots = 1 << 20;
  pool_ = Need(storage::ExtentPool::Create(pool, &budget_));
  exporter_ = Need(rdma::RdmaExporter::Create(*service_, pool_->generations()));
}

RdmaPool::~RdmaPool() {
  values_.clear();
  exporter_ = nullptr;
}

std::vector<rdma::RemoteNic> RdmaPool::told() const {
  std::vector<rdma::RemoteNic> result;
  for (const rdma::Nic& nic : nics_->nics()) {
    result.push_back({nic.name(), nic.addresses, nic.protocol, nic.speed_mbps});
  }
  return result;
}

std::unique_ptr<rdma::NicSet> RdmaPool::OpenNic(size_t nic) const {
  return Need(rdma::NicSet::Open(Need(rdma::OpenVerbs()),
                                 rdma::ParseNicFilter(nics_->nics()[nic].name(), "")));
}

rdma::EndpointTarget RdmaPool::NewSession(uint64_t session) {
  service_->BeginSession(session, exporter_->memory());
  return {kEpoch, session, service_->port(), told()};
}

void RdmaPool::Fill(uint64_t bytes, size_t count) {
  values_.clear();
  for (size_t i = 0; i < count; ++i) {
    storage::WriteHandle handle = Need(pool_->Reserve(bytes));
    pool_->FaultIn(handle);
    FillPattern(handle.data(), bytes, i, 1);
    values_.push_back(std::move(handle).Publish());
  }
  for (const storage::RegionInfo& region : pool_->Regions()) {
    if (exporter_->memory()->Keys(region.id) == nullptr) {
      Need(exporter_->Export(pool_->FindRegion(region.id)));
    }
  }
}

// --- what a client does --------------------------------------------------------------------

PoolReader::PoolReader(RdmaPool& pool, rdma::NicSet& nics, uint64_t session, uint64_t buffer_bytes)
    : pool_(pool),
      buffer_(MemoryBlock::Anonymous(buffer_bytes)),
      domains_(Need(rdma::Domains::Create(nics.devices()))),
      cache_(std::make_unique<rdma::BufferCache>(*domains_, buffer_bytes)) {
  rdma::EndpointTarget target = pool.NewSession(session);
  // A NIC alone talks to its like.
  if (nics.nics().size() == 1) target.nics = {pool.told().front()};
  endpoint_ = std::make_unique<rdma::Endpoint>(
      nics, *domains_, std::move(target),
      [&pool, session]() -> Result<rdma::Token> { return pool.service().IssueToken(session); },
      rdma::EndpointOptions());
  Need(cache_->Declare(buffer_.data(), buffer_bytes));
  Need(endpoint_->Open());
}

void PoolReader::Read(const std::vector<uint32_t>& numbers) {
  std::vector<rdma::LocalPiece> pieces;
  pieces.reserve(numbers.size());
  std::vector<rdma::TransferItem> items(numbers.size());
  pins_.clear();
  char* to = buffer_.data();
  for (size_t i = 0; i < numbers.size(); ++i) {
    const storage::Extent& extent = pool_.extent(numbers[i]);
    const size_t first = pieces.size();
    cache_->Describe(to, extent.length, &pieces, &pins_);
    if (pieces.size() != first + 1) throw Failure("the buffer is registered in pieces");
    items[i] = {
        extent.region->id(), extent.offset,    extent.length, std::span(&pieces[first], 1), true,
        extent.slot,         extent.generation};
    to += extent.length;
  }
  endpoint_->Repair();
  rdma::Transfer transfer(rdma::Transfer::Direction::kRead, std::move(items));
  endpoint_->Run(&transfer, rdma::Endpoint::Clock::now() + std::chrono::seconds(30));
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (transfer.outcome(i) != rdma::Outcome::kDone) {
      throw Failure("a value was not read: " + transfer.error());
    }
  }
}

bool PoolReader::Check(const std::vector<uint32_t>& numbers) const {
  const char* from = buffer_.data();
  for (const uint32_t number : numbers) {
    const uint64_t bytes = pool_.extent(number).length;
    if (!CheckPattern(from, bytes, number)) return false;
    from += bytes;
  }
  return true;
}

size_t PoolReader::open_lanes() const {
  const auto lanes = endpoint_->lanes();
  return static_cast<size_t>(std::count_if(lanes.begin(), lanes.end(),
                                           [](const rdma::LaneInfo& lane) { return lane.open; }));
}

void PoolReader::WaitForLanes(size_t lanes) {
  const Stopwatch watch;
  while (open_lanes() < lanes) {
    if (watch.seconds() > kConnectSeconds) throw Failure("a lane cannot be opened");
    endpoint_->Repair();
    usleep(5000);
    endpoint_->Pump();
  }
}

// --- what the device can do ----------------------------------------------------------------

RawReader::RawReader(RdmaPool& pool, uint64_t session, uint64_t buffer_bytes)
    : pool_(pool),
      buffer_(MemoryBlock::Anonymous(buffer_bytes)),
      domains_(Need(rdma::Domains::Create(pool.nics().devices()))),
      keys_(Need(
          rdma::Registration::Create(*domains_, buffer_.data(), buffer_bytes, rdma::kReadTarget))),
      events_(Need(pool.nics().verbs().NewConnectionEvents())),
      connection_(Need(events_->NewConnection())) {
  const rdma::EndpointTarget target = pool.NewSession(session);
  const auto next = [this](rdma::ConnectionEvent::Kind kind) {
    const Stopwatch watch;
    while (watch.seconds() < kConnectSeconds) {
      if (auto event = events_->Next()) {
        if (event->kind != kind) throw Failure("no connection: " + event->text);
        return;
      }
      usleep(1000);
    }
    throw Failure("no connection: no answer");
  };
  const rdma::NicPair pair = rdma::PairNics(pool.nics().nics(), target.nics).at(0);
  Need(connection_->ResolveAddress(pair.source, pair.destination, target.port, 2000));
  next(rdma::ConnectionEvent::Kind::kAddressResolved);
  Need(connection_->ResolveRoute(2000));
  next(rdma::ConnectionEvent::Kind::kRouteResolved);
  device_ = domains_->IndexOf(connection_->device());
  channel_ = Need(domains_->device(device_).NewCompletionChannel());
  completions_ = Need(domains_->device(device_).NewCompletionQueue(kRawDepth, channel_.get()));
  rdma::QueuePairLimits limits;
  limits.depth = kRawDepth;
  Need(connection_->CreateQueuePair(domains_->at(device_), *completions_, limits));
  rdma::ConnectRequest request;
  request.epoch = target.epoch;
  request.session = session;
  request.token = pool.service().IssueToken(session);
  const std::string data = Encode(request);
  const rdma::DeviceAttributes& can = pool.nics().nics()[pair.local].attributes;
  rdma::ConnectParameters parameters;
  parameters.reads_made =
      static_cast<uint8_t>(std::min<uint32_t>(request.limits.reads, can.max_reads_made));
  parameters.private_data = data;
  Need(connection_->Connect(parameters));
  next(rdma::ConnectionEvent::Kind::kEstablished);
}

RawReader::~RawReader() {
  connection_ = nullptr;
}

void RawReader::Reap(size_t at_most_left, Waits waits) {
  rdma::Completion found[kRawDepth];
  while (posted_ - done_ > at_most_left) {
    size_t count = completions_->Poll(found);
    if (count == 0 && waits == Waits::kSleeps) {
      Need(completions_->Arm());
      count = completions_->Poll(found);
      if (count == 0) {
        pollfd fd{channel_->fd(), POLLIN, 0};
        poll(&fd, 1, kWaitMs);
        while (channel_->Next() != nullptr) {
        }
      }
    }
    for (size_t i = 0; i < count; ++i) {
      if (found[i].status != rdma::Completion::Status::kOk) throw Failure(found[i].text);
      done_ = found[i].id + 1;
    }
  }
}

void RawReader::Read(const std::vector<uint32_t>& numbers, Waits waits) {
  char* to = buffer_.data();
  const uint32_t local_key = keys_->At(0).keys->on[device_].local;
  for (size_t at = 0; at < numbers.size();) {
    // So many at a time that completions come in time for the next.
    Reap(kRawDepth - kRawSignalEvery, waits);
    const size_t count = std::min(kRawSignalEvery, numbers.size() - at);
    pieces_.resize(count);
    requests_.assign(count, {});
    for (size_t i = 0; i < count; ++i) {
      const storage::Extent& extent = pool_.extent(numbers[at + i]);
      const auto reach = pool_.memory().Find(extent.region->id(), extent.offset, device_);
      pieces_[i] = {reinterpret_cast<uint64_t>(to), static_cast<uint32_t>(extent.length),
                    local_key};
      rdma::WorkRequest& request = requests_[i];
      request.id = posted_ + i;
      request.signalled = i + 1 == count;
      request.pieces = std::span(&pieces_[i], 1);
      request.remote_address = reach->address + extent.offset - reach->offset;
      request.remote_key = reach->key;
      to += extent.length;
    }
    if (connection_->queue_pair()->Post(requests_) != count) throw Failure("READs were refused");
    posted_ += count;
    at += count;
  }
}

void RawReader::Finish(Waits waits) {
  Reap(0, waits);
}

}  // namespace moonpool::bench
