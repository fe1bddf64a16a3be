#include "rdma/registration.h"

#include <algorithm>

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

Result<std::unique_ptr<Registration>> Registration::Create(
    const Domains& domains, char* data, uint64_t bytes, uint32_t access, uint64_t slice_bytes,
    const std::function<void(const std::string&)>& refused) {
  MOONPOOL_CHECK(bytes > 0 && slice_bytes > 0);
  std::unique_ptr<Registration> result(new Registration(data, bytes, slice_bytes));
  result->keys_.resize((bytes + slice_bytes - 1) / slice_bytes);
  size_t good_devices = 0;
  Error last{ErrorCode::kUnavailable, "there is no device to register memory on"};
  for (size_t d = 0; d < domains.size(); ++d) {
    const size_t before = result->registered_.size();
    bool good = true;
    for (size_t i = 0; i < result->keys_.size() && good; ++i) {
      const uint64_t offset = i * slice_bytes;
      auto made =
          domains.at(d).Register(data + offset, std::min(slice_bytes, bytes - offset), access);
      if (!made) {
        last = std::move(made.error());
        good = false;
        break;
      }
      result->keys_[i].on[d] = {(*made)->local_key(), (*made)->remote_key(), true};
      result->registered_.push_back(std::move(*made));
    }
    if (good) {
      ++good_devices;
      continue;
    }
    result->registered_.resize(before);
    for (SliceKeys& keys : result->keys_) keys.on[d].valid = false;
    if (refused) refused(last.message);
  }
  if (good_devices == 0) return tl::unexpected<Error>(std::move(last));
  return result;
}

Registration::Part Registration::At(uint64_t offset) const {
  MOONPOOL_CHECK(offset < bytes_);
  const uint64_t slice = offset / slice_bytes_;
  const uint64_t start = slice * slice_bytes_;
  return {start, std::min(slice_bytes_, bytes_ - start), &keys_[slice]};
}

}  // namespace moonpool::rdma
