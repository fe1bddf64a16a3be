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
  set->up_ = std::make_unique<std::atomic<bool>[]>(set->nics_.size());
  for (size_t i = 0; i < set->nics_.size(); ++i) set->up_[i] = true;
  return set;
}

void NicSet::Watch() {
  for (size_t d = 0; d < devices_.size(); ++d) {
    while (const auto event = devices_[d]->NextEvent()) {
      const bool up = event->kind == DeviceEvent::Kind::kPortUp;
      const bool down = event->kind == DeviceEvent::Kind::kPortDown;
      const bool fatal = event->kind == DeviceEvent::Kind::kFatal;
      if (!up && !down && !fatal) continue;
      for (size_t i = 0; i < nics_.size(); ++i) {
        if (device_of_[i] != d || (!fatal && nics_[i].port != event->port)) continue;
        up_[i].store(up, std::memory_order_relaxed);
        changes_.fetch_add(1, std::memory_order_relaxed);
      }
    }
  }
}

}  // namespace moonpool::rdma
