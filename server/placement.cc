#include "server/placement.h"

#include <algorithm>

namespace moonpool::server {

namespace {

// Tiers the protocol knows; a server has some of them.
constexpr std::string_view kKnownTiers[] = {"gpu", "dram", "cxl", "ssd"};

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t end = std::min(text.find(separator), text.size());
    if (end > 0) parts.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parts;
}

}  // namespace

// The first tier of the list that exists here; empty when none does.
Result<std::optional<protocol::Tier>> Placement::FirstUsable(std::string_view tiers) const {
  const auto names = Split(tiers, ',');
  if (names.empty()) return Fail(ErrorCode::kInvalidArgument, "no tier is named");
  for (const std::string_view name : names) {
    if (std::find(std::begin(kKnownTiers), std::end(kKnownTiers), name) ==
        std::end(kKnownTiers)) {
      return Fail(ErrorCode::kInvalidArgument,
                  "'" + std::string(name) + "' is no tier (gpu, dram, cxl, ssd)");
    }
  }
  for (const std::string_view name : names) {
    const auto tier = protocol::ParseTier(name);
    if (tier == protocol::Tier::kDram || (tier == protocol::Tier::kCxl && has_cxl_)) return tier;
  }
  return std::optional<protocol::Tier>();
}

Status Placement::Configure(std::string_view setting) {
  const auto words = Split(setting, ' ');
  if (words.size() % 2 != 0) {
    return Fail(ErrorCode::kInvalidArgument, "prefer wants pairs: prefix tier[,tier]");
  }
  std::vector<Rule> rules;
  for (size_t i = 0; i < words.size(); i += 2) {
    if (const auto usable = FirstUsable(words[i + 1]); !usable) {
      return tl::unexpected<Error>(usable.error());
    }
    rules.push_back({std::string(words[i]), std::string(words[i + 1])});
  }
  std::stable_sort(rules.begin(), rules.end(), [](const Rule& a, const Rule& b) {
    return a.prefix.size() > b.prefix.size();
  });
  any_rule_.store(!rules.empty(), std::memory_order_relaxed);
  MutexLock lock(mu_);
  rules_ = std::move(rules);
  return {};
}

Result<protocol::Tier> Placement::Preferred(std::string_view tiers) const {
  const auto usable = FirstUsable(tiers);
  if (!usable) return tl::unexpected<Error>(usable.error());
  if (*usable) return **usable;
  return Fail(ErrorCode::kInvalidArgument, "this server has none of the tiers " +
                                               std::string(tiers) + "; it has dram" +
                                               (has_cxl_ ? " and cxl" : ""));
}

protocol::Tier Placement::Choose(std::string_view key) const {
  if (any_rule_.load(std::memory_order_relaxed)) {
    MutexLock lock(mu_);
    for (const Rule& rule : rules_) {
      if (key.substr(0, rule.prefix.size()) != rule.prefix) continue;
      const auto usable = FirstUsable(rule.tiers);
      if (usable && *usable) return **usable;
      break;
    }
  }
  return protocol::Tier::kDram;
}

}  // namespace moonpool::server
