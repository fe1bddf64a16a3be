// The NICs that this process uses, and which of them are up.
//
// Found once; what happens to them afterwards is seen by Watch().
// Threads: any.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rdma/devices.h"
#include "rdma/registration.h"

namespace moonpool::rdma {

class NicSet {
 public:
  // kUnavailable when no NIC is left; the message says why each was left out.
  static Result<std::unique_ptr<NicSet>> Open(std::unique_ptr<Verbs> verbs,
                                              const NicFilter& filter);

  Verbs& verbs() const { return *verbs_; }
  const std::vector<Nic>& nics() const { return nics_; }
  const std::vector<Discovery::LeftOut>& left_out() const { return left_out_; }
  // Every device once; a device with two ports is two NICs.
  const std::vector<std::shared_ptr<Device>>& devices() const { return devices_; }
  // Of devices().
  size_t device_of(size_t nic) const { return device_of_[nic]; }

  // Takes note of what happened to the devices; does not block.
  void Watch();
  // Whether the NIC's port was up at the last Watch().
  bool up(size_t nic) const { return nics_[nic].device->port_up(nics_[nic].port); }

 private:
  NicSet() = default;

  std::unique_ptr<Verbs> verbs_;
  std::vector<Nic> nics_;
  std::vector<Discovery::LeftOut> left_out_;
  std::vector<std::shared_ptr<Device>> devices_;
  std::vector<size_t> device_of_;
};

}  // namespace moonpool::rdma
