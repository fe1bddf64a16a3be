// Where new values should live: PREFER in KV.ALLOC, and the setting `prefer`.
//
// A preference is tiers in order, "cxl,dram": the first that this server has takes the value, as
// long as it has room; otherwise dram does.  GPUs that follow each other, "gpu:A,gpu:B,gpu", count as
// one tier: a value is on the first of them that has room ("gpu": the emptiest of all).
// Threads: any; set_has_cxl() and the first Configure() before there are others.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/descriptor.h"
#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/tenant.h"

namespace moonpool::server {

class Placement {
 public:
  void set_has_cxl(bool has_cxl) { has_cxl_ = has_cxl; }
  // The GPUs by number, by the names that "gpu:<name>" takes.  Likewise before there are others.
  void set_devices(std::vector<std::string> names) { devices_ = std::move(names); }
  // Takes the setting: "prefix tiers [prefix tiers ...]"; the longest matching prefix counts.
  Status Configure(std::string_view setting);

  // Where a preference, which goes before the setting, wants a value: in the first of its tiers that
  // is here and, if it is of a GPU, that the writer reaches.  An error when it names a word that is no
  // tier, or none that exists here.
  Result<storage::Preference> Preferred(std::string_view tiers, storage::DeviceSet reach) const;
  // The same for a new value of `key`; dram takes what no rule places.
  storage::Preference Choose(std::string_view key, storage::DeviceSet reach) const;

 private:
  struct Rule {
    std::string prefix;
    std::string tiers;
  };
  struct Usable {
    std::optional<storage::Preference> first;
    bool any = false;  // some tier of the list is here, if not for this writer
  };
  Result<Usable> FirstUsable(std::string_view tiers, storage::DeviceSet reach) const;
  // The GPUs that a word names, behind those that are there.  False: none of them is here.
  bool AddGpus(std::string_view name, storage::DeviceSet reach, storage::Preference* gpus) const;

  bool has_cxl_ = false;
  std::vector<std::string> devices_;
  mutable Mutex mu_;
  std::vector<Rule> rules_ GUARDED_BY(mu_);  // longest prefix first
  std::atomic<bool> any_rule_{false};
};

}  // namespace moonpool::server
