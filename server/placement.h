// Where new values should live: PREFER in KV.ALLOC, and the setting `prefer`.
//
// A preference is tiers in order, "gpu,dram": the first that this server has takes the value.
// Threads: any.
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
  // Takes the setting: "prefix tiers [prefix tiers ...]"; the longest matching prefix counts.
  Status Configure(std::string_view setting);

  // The tier for a new value of `key`.  `prefer`, if given, goes before the setting; it is an
  // error when it names a word that is no tier, or none that exists here.  Without one, dram
  // takes what no rule places.
  Result<protocol::Tier> Choose(std::string_view key, std::optional<std::string_view> prefer) const;

 private:
  struct Rule {
    std::string prefix;
    std::string tiers;
  };
  mutable Mutex mu_;
  std::vector<Rule> rules_ GUARDED_BY(mu_);  // longest prefix first
  std::atomic<bool> any_rule_{false};
};

}  // namespace moonpool::server
