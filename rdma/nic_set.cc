#include "rdma/nic_set.h"

#include <algorithm>

namespace moonpool::rdma {

Result<std::unique_ptr<NicSet>> NicSet::Open(std::unique_ptr<Verbs> verbs,
                                             const NicFilter& filter) {
  auto found = DiscoverNics(*verbs, filter);
  if (!found) return tl::unexpected<Error>(std::move(found.error()));
  std::unique_ptr<NicSet> set(new NicSet());
  set->verbs_ = std::move(verbs);
  set->left_out_ = std::move(found->left_out);
  for (Nic& nic : found->nics) {
    auto known = std::find(set->devices_.begin(), set->devices_.end(), nic.device);
    if (known == set->devices_.end()) {
      if (set->devices_.size() == kMaxDevices) {
        set->left_out_.push_back({nic.name(), "more devices than can be used at a time"});
        continue;
      }
      known = set->devices_.insert(known, nic.device);
    }
    set->device_of_.push_back(static_cast<size_t>(known - set->devices_.begin()));
    set->nics_.push_back(std::move(nic));
  }
  if (set->nics_.empty()) {
    std::string why;
    for (const auto& left_out : set->left_out_) {
      why += (why.empty() ? "" : "; ") + left_out.name + ": " + left_out.why;
    }
    return Fail(ErrorCode::kUnavailable, why.empty() ? "there is no RDMA device"
                                                     : "no RDMA device can be used (" + why + ")");
  }
  return set;
}

void NicSet::Watch() {
  for (const auto& device : devices_) device->TakeEvents();
}

}  // namespace moonpool::rdma
