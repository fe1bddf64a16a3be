// Where new values should live: PREFER in KV.ALLOC, and the setting `prefer`.
//
// A preference is tiers in order, "cxl,dram": the first that this server has takes the value, as
// long as it has room; otherwise dram does.
// Threads: any; set_has_cxl() and the first Configure() before there are others.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/descriptor.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::server {

class Placement {
 public:
  void set_has_cxl(bool has_cxl) { has_cxl_ = has_cxl; }
  // Takes the setting: "prefix tiers [prefix tiers ...]"; the longest matching prefix counts.
  Status Configure(std::string_view setting);

  // The tier that a preference means, which goes before the setting.  An error when it names a
  // word that is no tier, or none that exists here.
  Result<protocol::Tier> Preferred(std::string_view tiers) const;
  // The tier for a new value of `key`; dram takes what no rule places.
  protocol::Tier Choose(std::string_view key) const;

 private:
  struct Rule {
    std::string prefix;
    std::string tiers;
  };
  Result<std::optional<protocol::Tier>> FirstUsable(std::string_view tiers) const;

  bool has_cxl_ = false;
  mutable Mutex mu_;
  std::vector<Rule> rules_ GUARDED_BY(mu_);  // longest prefix first
  std::atomic<bool> any_rule_{false};
};

}  // namespace moonpool::server
