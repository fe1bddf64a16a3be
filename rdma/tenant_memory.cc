#include "rdma/tenant_memory.h"

namespace moonpool::rdma {

namespace {

// Never writable from outside.
uint32_t AccessTo(bool writable) {
  return kRemoteRead | (writable ? kLocalWrite : kLocalRead);
}

}  // namespace

Result<std::shared_ptr<TenantMemory>> TenantMemory::Create(
    const NicSet& nics, char* generations, uint64_t generations_bytes, uint64_t slice_bytes,
    std::function<void(const std::string&)> refused) {
  std::shared_ptr<TenantMemory> memory(new TenantMemory());
  memory->slice_bytes_ = slice_bytes;
  memory->refused_ = std::move(refused);
  auto domains = Domains::Create(nics.devices());
  if (!domains) return tl::unexpected<Error>(std::move(domains.error()));
  memory->domains_ = std::move(*domains);
  // In one slice: an acceptance has room for one key.
  auto table = Registration::Create(*memory->domains_, generations, generations_bytes, kRemoteRead,
                                    generations_bytes, memory->refused_);
  if (!table) return tl::unexpected<Error>(std::move(table.error()));
  memory->generations_ = std::move(*table);
  return memory;
}

Status TenantMemory::Add(uint32_t region, char* data, uint64_t bytes, bool writable) {
  return Show(region, Registration::Create(*domains_, data, bytes, AccessTo(writable), slice_bytes_,
                                           refused_));
}

Status TenantMemory::AddPeer(uint32_t region, std::shared_ptr<PeerMemory> peer, char* data,
                             uint64_t bytes, bool writable) {
  return Show(region,
              Registration::CreatePeer(std::move(peer), *domains_, data, bytes, AccessTo(writable),
                                       slice_bytes_, {}, Registration::Needs::kEveryNic));
}

Status TenantMemory::Show(uint32_t region, Result<std::unique_ptr<Registration>> made) {
  if (!made) return tl::unexpected<Error>(std::move(made.error()));
  MutexLock lock(mu_);
  regions_[region] = {std::move(*made), false};
  return {};
}

void TenantMemory::Hide(uint32_t region) {
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  if (found != regions_.end()) found->second.hidden = true;
}

void TenantMemory::Remove(uint32_t region) {
  std::shared_ptr<Registration> last;  // deregistered without the lock
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  if (found == regions_.end()) return;
  last = std::move(found->second.registration);
  regions_.erase(found);
}

std::optional<TenantMemory::Reach> TenantMemory::ReachOf(const Registration& registration,
                                                         uint64_t offset, size_t device) {
  if (offset >= registration.bytes()) return std::nullopt;
  const Registration::Part part = registration.At(offset);
  const SliceKeys::Keys& keys = part.keys->on[device];
  if (!keys.valid) return std::nullopt;
  return Reach{part.offset, part.length,
               reinterpret_cast<uint64_t>(registration.data() + part.offset), keys.remote,
               registration.bytes()};
}

std::optional<TenantMemory::Reach> TenantMemory::Find(uint32_t region, uint64_t offset,
                                                      size_t device) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  if (found == regions_.end() || found->second.hidden) return std::nullopt;
  return ReachOf(*found->second.registration, offset, device);
}

std::optional<TenantMemory::Reach> TenantMemory::Generations(size_t device) const {
  return ReachOf(*generations_, 0, device);
}

std::shared_ptr<const Registration> TenantMemory::Keys(uint32_t region) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  if (found == regions_.end()) return nullptr;
  return found->second.registration;
}

}  // namespace moonpool::rdma
