// FakeFabric: what moves, and in which order.
#include "tests/rdma/fake_verbs.h"

#include <algorithm>
#include <cstring>

#include "protocol/seqlock.h"
#include "tests/rdma/fake_objects.h"

namespace moonpool::rdma::test {

FakeFabric::FakeFabric(Moves moves, uint64_t seed) : moves_(moves), random_(seed) {
  if (moves_ != Moves::kByThread) return;
  thread_ = std::thread([this] {
    MutexLock lock(mu_);
    while (!stop_) {
      if (!StepLocked()) posted_.WaitFor(mu_, std::chrono::milliseconds(1));
      mu_.Unlock();
      std::this_thread::yield();
      mu_.Lock();
    }
  });
}

FakeFabric::~FakeFabric() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    posted_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void FakeFabric::AddDevice(const std::string& host, const std::string& device,
                           const std::string& address, Protocol protocol) {
  MutexLock lock(mu_);
  devices_.push_back(std::make_shared<FakeDevice>(*this, host, device, address, protocol));
}

void FakeFabric::TakePort(const std::string& address, uint16_t port) {
  MutexLock lock(mu_);
  listeners_.emplace(std::pair(address, port), nullptr);
}

FakeDevice* FakeFabric::DeviceAt(const std::string& address) {
  for (const auto& device : devices_) {
    if (device->address == address) return device.get();
  }
  return nullptr;
}

FakeDevice* FakeFabric::Named(const std::string& device) {
  for (const auto& candidate : devices_) {
    if (candidate->name() == device) return candidate.get();
  }
  MOONPOOL_CHECK(false);
  return nullptr;
}

// --- moving --------------------------------------------------------------------------------

// Requests of the pair that may be carried out next.
std::vector<size_t> FakeFabric::Eligible(const FakeQueuePair& pair) {
  std::vector<size_t> result;
  if (pair.broken || pair.device.silent || (pair.peer != nullptr && pair.peer->device.silent)) {
    return result;
  }
  bool all_before = true;  // carried out
  bool all_sends_before = true;
  for (size_t i = 0; i < pair.slots.size(); ++i) {
    const Slot& slot = pair.slots[i];
    const bool read = slot.request.kind == WorkRequest::Kind::kRead;
    if (!slot.executed) {
      if (slot.request.fenced && !all_before) break;  // nor anything behind it
      // Over iWARP a READ is looked at when what was sent before it was placed.
      const bool overtakes = read && pair.device.protocol != Protocol::kIwarp;
      if (overtakes || all_sends_before) result.push_back(i);
      if (slot.request.fenced) break;  // what follows waits for it to begin
      all_before = false;
      if (!read) all_sends_before = false;
    }
  }
  return result;
}

bool FakeFabric::StepLocked() {
  std::vector<std::pair<FakeQueuePair*, size_t>> choices;
  bool any_slow = false;
  for (FakeQueuePair* pair : pairs_) {
    const std::vector<size_t> eligible = Eligible(*pair);
    if (eligible.empty()) continue;
    const uint32_t slowness =
        std::max(pair->device.slowness, pair->peer == nullptr ? 1u : pair->peer->device.slowness);
    if (slowness > 1 && random_.Below(slowness) != 0) {
      any_slow = true;
      continue;
    }
    for (const size_t index : eligible) choices.emplace_back(pair, index);
  }
  if (choices.empty()) return any_slow;
  const auto [pair, index] = choices[random_.Below(choices.size())];
  Execute(pair, index);
  return true;
}

bool FakeFabric::Step() {
  MutexLock lock(mu_);
  return StepLocked();
}

void FakeFabric::StepAll() {
  while (Step()) {
  }
}

size_t FakeFabric::pending() {
  MutexLock lock(mu_);
  size_t count = 0;
  for (const FakeQueuePair* pair : pairs_) {
    for (const Slot& slot : pair->slots) count += slot.executed ? 0 : 1;
  }
  return count;
}

void FakeFabric::Execute(FakeQueuePair* pair, size_t index) {
  Slot& slot = pair->slots[index];
  if (on_execute_) on_execute_(slot.request, pair->device.name());
  slot.status = Carry(pair, &slot);
  slot.executed = true;
  const bool good = slot.status == Completion::Status::kOk;
  const bool sent = pair->device.protocol == Protocol::kIwarp &&
                    slot.request.kind == WorkRequest::Kind::kWrite;
  if (sent && slot.status == Completion::Status::kRemoteRefused) {
    slot.status = Completion::Status::kOk;  // as far as its sender sees
  }
  if (!good) {
    // What is before it in the queue completes, what is behind is flushed.
    for (size_t i = 0; i < index; ++i) {
      Slot& before = pair->slots[i];
      if (before.executed) continue;
      before.status = Carry(pair, &before);
      before.executed = true;
    }
    Break(pair);
    return;
  }
  Complete(pair);
}

char* FakeFabric::Reach(FakeDevice* device, const void* domain, uint64_t address, uint64_t bytes,
                        uint32_t key, uint32_t access, std::shared_ptr<Mapping>* mapping) {
  const auto found = device->registrations.find(key);
  if (found == device->registrations.end()) return nullptr;
  const Registration& registration = found->second;
  if (registration.domain != domain || (registration.access & access) != access ||
      address < registration.address ||
      address + bytes > registration.address + registration.bytes) {
    return nullptr;
  }
  if (registration.mapping == nullptr) return reinterpret_cast<char*>(address);
  if (mapping != nullptr) *mapping = registration.mapping;
  return registration.mapping->data() + (address - registration.address);
}

Completion::Status FakeFabric::Carry(FakeQueuePair* pair, Slot* slot) {
  using Status = Completion::Status;
  FakeQueuePair* const peer = pair->peer;
  if (peer == nullptr || peer->broken || !pair->device.up || !peer->device.up) {
    slot->text = "no answer";
    return Status::kUnreachable;
  }
  uint64_t bytes = 0;
  for (const Piece& piece : slot->pieces) bytes += piece.length;
  const WorkRequest& request = slot->request;
  const bool read = request.kind == WorkRequest::Kind::kRead;
  const bool iwarp = pair->device.protocol == Protocol::kIwarp;
  if (iwarp && read && request.fenced) {
    slot->text = "a READ cannot be fenced";
    return Status::kLocalError;
  }
  const uint32_t lands = !read ? kLocalRead : iwarp ? kLocalWrite | kRemoteWrite : kLocalWrite;
  char* remote = nullptr;
  std::pair<uint64_t, Piece> receive;
  if (request.kind == WorkRequest::Kind::kSend) {
    if (peer->receives.empty()) {
      slot->text = "receiver not ready";
      return Status::kUnreachable;
    }
    receive = peer->receives.front();
    peer->receives.pop_front();
    MOONPOOL_CHECK(bytes <= receive.second.length);
    remote = Reach(&peer->device, peer->domain, receive.second.address, bytes,
                   receive.second.local_key, kLocalWrite);
    MOONPOOL_CHECK(remote != nullptr);
  } else if (bytes > 0) {  // nothing may be read of anything
    remote = Reach(&peer->device, peer->domain, request.remote_address, bytes, request.remote_key,
                   read ? kRemoteRead : kRemoteWrite);
    if (remote == nullptr) {
      slot->text = "remote access error";
      return Status::kRemoteRefused;
    }
  }
  uint64_t at = 0;
  for (const Piece& piece : slot->pieces) {
    if (bytes == 0) break;
    std::shared_ptr<Mapping> dmabuf;
    char* const local = request.inlined ? slot->inlined.data() + at
                                        : Reach(&pair->device, pair->domain, piece.address,
                                                piece.length, piece.local_key, lands, &dmabuf);
    if (local == nullptr) {
      slot->text = "local protection error";
      return Status::kLocalError;
    }
    if (read && dmabuf != nullptr && on_dmabuf_write_) {
      std::vector<char> brought(piece.length);
      protocol::RacyCopy(brought.data(), remote + at, piece.length);
      on_dmabuf_write_(piece.address, [local, dmabuf, brought = std::move(brought)] {
        std::memcpy(local, brought.data(), brought.size());
      });
    } else if (read) {
      // What is read may be written meanwhile, as with a real NIC.
      protocol::RacyCopy(local, remote + at, piece.length);
    } else {
      std::memcpy(remote + at, local, piece.length);
    }
    at += piece.length;
  }
  if (request.kind == WorkRequest::Kind::kSend) {
    peer->queue.Push({receive.first, Status::kOk, static_cast<uint32_t>(bytes), ""});
  } else {
    counters_.bytes += bytes;
    counters_.device_bytes[pair->device.name()] += bytes;
  }
  return Status::kOk;
}

// Completions of what is carried out, in order.
void FakeFabric::Complete(FakeQueuePair* pair) {
  while (!pair->slots.empty() && pair->slots.front().executed) {
    const Slot& slot = pair->slots.front();
    if (slot.request.signalled || slot.status != Completion::Status::kOk) {
      ++counters_.completions;
      pair->queue.Push({slot.request.id, slot.status, 0, slot.text});
    }
    pair->slots.pop_front();
  }
}

// Into the error state.
void FakeFabric::Break(FakeQueuePair* pair) {
  pair->broken = true;
  if (pair->device.never_flushes) return;
  for (Slot& slot : pair->slots) {
    if (slot.executed) continue;
    slot.executed = true;
    slot.status = Completion::Status::kFlushed;
    slot.text = "flushed";
  }
  Complete(pair);
  for (const auto& [id, piece] : pair->receives) {
    pair->queue.Push({id, Completion::Status::kFlushed, 0, "flushed"});
  }
  pair->receives.clear();
}

// --- what goes wrong -----------------------------------------------------------------------

void FakeFabric::SetPort(const std::string& device, bool up) {
  MutexLock lock(mu_);
  FakeDevice* const found = Named(device);
  found->up = up;
  found->signal.Raise();
}

void FakeFabric::SetSilent(const std::string& device, bool silent) {
  MutexLock lock(mu_);
  Named(device)->silent = silent;
}

void FakeFabric::SetSlowness(const std::string& device, uint32_t slowness) {
  MutexLock lock(mu_);
  Named(device)->slowness = slowness;
}

void FakeFabric::SetClosing(Closing closing) {
  MutexLock lock(mu_);
  closing_ = closing;
}

void FakeFabric::SetNeverFlushes(const std::string& device, bool never) {
  MutexLock lock(mu_);
  Named(device)->never_flushes = never;
}

void FakeFabric::BreakQueuePairs(const std::string& device) {
  MutexLock lock(mu_);
  for (FakeQueuePair* pair : pairs_) {
    if (pair->device.name() == device) Break(pair);
  }
}

void FakeFabric::RefusePosts(const std::string& device, uint32_t count) {
  MutexLock lock(mu_);
  Named(device)->refused_posts = count;
}

void FakeFabric::RefuseRegistrations(const std::string& device, bool refuse) {
  MutexLock lock(mu_);
  Named(device)->refuses_registrations = refuse;
}

void FakeFabric::RefuseDmabufs(const std::string& device, bool refuse) {
  MutexLock lock(mu_);
  Named(device)->refuses_dmabufs = refuse;
}

void FakeFabric::OnDmabufWrite(
    std::function<void(uint64_t address, std::function<void()> write)> on_dmabuf_write) {
  MutexLock lock(mu_);
  on_dmabuf_write_ = std::move(on_dmabuf_write);
}

void FakeFabric::OnExecute(
    std::function<void(const WorkRequest&, const std::string& device)> on_execute) {
  MutexLock lock(mu_);
  on_execute_ = std::move(on_execute);
}

FakeFabric::Counters FakeFabric::counters() {
  MutexLock lock(mu_);
  return counters_;
}

}  // namespace moonpool::rdma::test
