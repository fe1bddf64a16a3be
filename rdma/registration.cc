#include "rdma/registration.h"

#include <algorithm>
#include <utility>

namespace moonpool::rdma {

Result<std::unique_ptr<Domains>> Domains::Create(std::span<const std::shared_ptr<Device>> devices) {
  std::unique_ptr<Domains> result(new Domains());
  for (const auto& device : devices.first(std::min(devices.size(), kMaxDevices))) {
    auto domain = device->NewProtectionDomain();
    if (!domain) return tl::unexpected<Error>(std::move(domain.error()));
    result->devices_.push_back(device);
    result->domains_.push_back(std::move(*domain));
  }
  return result;
}

size_t Domains::IndexOf(const Device* device) const {
  size_t i = 0;
  while (i < devices_.size() && devices_[i].get() != device) ++i;
  return i;
}

Registration::Registration(char* data, uint64_t bytes, uint64_t slice_bytes,
                           std::shared_ptr<PeerMemory> peer)
    : peer_(std::move(peer)), data_(data), bytes_(bytes), slice_bytes_(slice_bytes) {
  MOONPOOL_CHECK(bytes > 0 && slice_bytes > 0);
  keys_.resize((bytes + slice_bytes - 1) / slice_bytes);
  for (SliceKeys& keys : keys_) keys.peer = peer_ != nullptr;
}

Result<std::unique_ptr<Registration>> Registration::Create(
    const Domains& domains, char* data, uint64_t bytes, uint32_t access, uint64_t slice_bytes,
    const std::function<void(const std::string&)>& refused) {
  std::unique_ptr<Registration> result(new Registration(data, bytes, slice_bytes, nullptr));
  if (Status status = result->Fill(domains, nullptr, access, refused, Needs::kAnyNic); !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  return result;
}

Result<std::unique_ptr<Registration>> Registration::CreatePeer(
    std::shared_ptr<PeerMemory> peer, const Domains& domains, char* data, uint64_t bytes,
    uint32_t access, uint64_t slice_bytes, const std::function<void(const std::string&)>& refused,
    Needs needs) {
  size_t takers = 0;
  for (size_t d = 0; d < domains.size(); ++d) takers += peer->refused(d) ? 0 : 1;
  if (takers < (needs == Needs::kEveryNic ? domains.size() : 1)) {
    return Fail(ErrorCode::kUnavailable, "no NIC reaches memory of that device");
  }
  const Result<PeerMemory::File> file = peer->Export(data, bytes);
  if (!file) return tl::unexpected<Error>(file.error());
  std::unique_ptr<Registration> result(new Registration(data, bytes, slice_bytes, std::move(peer)));
  if (Status status = result->Fill(domains, &*file, access, refused, needs); !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  return result;
}

Status Registration::Fill(const Domains& domains, const PeerMemory::File* file, uint32_t access,
                          const std::function<void(const std::string&)>& refused, Needs needs) {
  size_t good_devices = 0;
  Error last{ErrorCode::kUnavailable, "there is no device to register memory on"};
  for (size_t d = 0; d < domains.size(); ++d) {
    if (peer_ != nullptr && peer_->refused(d)) continue;
    const size_t before = registered_.size();
    bool good = true;
    for (size_t i = 0; i < keys_.size() && good; ++i) {
      const uint64_t offset = i * slice_bytes_;
      const uint64_t length = std::min(slice_bytes_, bytes_ - offset);
      auto made = file == nullptr ? domains.at(d).Register(data_ + offset, length, access)
                                  : domains.at(d).RegisterDmabuf(
                                        file->fd.get(), file->offset + offset, length,
                                        reinterpret_cast<uint64_t>(data_ + offset), access);
      if (!made) {
        last = std::move(made.error());
        if (peer_ != nullptr && last.code == ErrorCode::kUnavailable) peer_->Refuse(d);
        good = false;
        break;
      }
      keys_[i].on[d] = {(*made)->local_key(), (*made)->remote_key(), true};
      registered_.push_back(std::move(*made));
    }
    if (good) {
      ++good_devices;
      continue;
    }
    registered_.resize(before);
    for (SliceKeys& keys : keys_) keys.on[d].valid = false;
    if (refused) refused(last.message);
    if (needs == Needs::kEveryNic) return tl::unexpected<Error>(std::move(last));
  }
  if (good_devices == 0) return tl::unexpected<Error>(std::move(last));
  return {};
}

Registration::Part Registration::At(uint64_t offset) const {
  MOONPOOL_CHECK(offset < bytes_);
  const uint64_t slice = offset / slice_bytes_;
  const uint64_t start = slice * slice_bytes_;
  return {start, std::min(slice_bytes_, bytes_ - start), &keys_[slice]};
}

}  // namespace moonpool::rdma
