#include "server/placement.h"

#include <algorithm>
#include <bit>

#include "gpu/uuid.h"

namespace moonpool::server {

namespace {

// Tiers the protocol knows; a server has some of them.
constexpr std::string_view kKnownTiers[] = {"gpu", "dram", "cxl", "ssd"};
constexpr std::string_view kOneGpu = "gpu:";

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

Result<Placement::Usable> Placement::FirstUsable(std::string_view tiers,
                                                 storage::DeviceSet reach) const {
  using protocol::Tier;
  const auto names = Split(tiers, ',');
  if (names.empty()) return Fail(ErrorCode::kInvalidArgument, "no tier is named");
  for (const std::string_view name : names) {
    const bool one_gpu = name.substr(0, kOneGpu.size()) == kOneGpu;
    if (one_gpu ? !gpu::Uuid::Parse(name.substr(kOneGpu.size()))
                : std::find(std::begin(kKnownTiers), std::end(kKnownTiers), name) ==
                      std::end(kKnownTiers)) {
      return Fail(ErrorCode::kInvalidArgument,
                  "'" + std::string(name) + "' is no tier (gpu, gpu:UUID, dram, cxl, ssd)");
    }
  }
  Usable usable;
  storage::Preference gpus(Tier::kGpu, 0);
  for (const std::string_view name : names) {
    const auto tier = protocol::ParseTier(name.substr(0, name.find(':')));
    if (tier == Tier::kGpu) {
      usable.any |= AddGpus(name, reach, &gpus);
      continue;
    }
    if (gpus.devices != 0) break;
    if (tier == Tier::kDram || (tier == Tier::kCxl && has_cxl_)) {
      usable.any = true;
      usable.first = storage::Preference(*tier);
      return usable;
    }
  }
  if (gpus.devices != 0) usable.first = gpus;
  return usable;
}

bool Placement::AddGpus(std::string_view name, storage::DeviceSet reach,
                        storage::Preference* gpus) const {
  const auto uuid = gpu::Uuid::Parse(name.substr(std::min(kOneGpu.size(), name.size())));
  const auto rank = static_cast<uint8_t>(std::popcount(gpus->devices));
  bool here = false;
  for (size_t i = 0; i < devices_.size(); ++i) {
    if (name != "gpu" && uuid != gpu::Uuid::Parse(devices_[i])) continue;
    here = true;
    const storage::DeviceSet device = storage::DeviceSet{1} << i;
    if ((reach & device & ~gpus->devices) == 0) continue;
    gpus->devices |= device;
    gpus->ranks[i] = rank;
  }
  return here;
}

Status Placement::Configure(std::string_view setting) {
  const auto words = Split(setting, ' ');
  if (words.size() % 2 != 0) {
    return Fail(ErrorCode::kInvalidArgument, "prefer wants pairs: prefix tier[,tier]");
  }
  std::vector<Rule> rules;
  for (size_t i = 0; i < words.size(); i += 2) {
    if (const auto usable = FirstUsable(words[i + 1], storage::kAllDevices); !usable) {
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

Result<storage::Preference> Placement::Preferred(std::string_view tiers,
                                                 storage::DeviceSet reach) const {
  const auto usable = FirstUsable(tiers, reach);
  if (!usable) return tl::unexpected<Error>(usable.error());
  if (usable->any) return usable->first.value_or(storage::Preference());
  return Fail(ErrorCode::kInvalidArgument, "this server has none of the tiers " +
                                               std::string(tiers) + "; it has dram" +
                                               (has_cxl_ ? " and cxl" : "") +
                                               (devices_.empty() ? "" : " and gpu"));
}

storage::Preference Placement::Choose(std::string_view key, storage::DeviceSet reach) const {
  if (any_rule_.load(std::memory_order_relaxed)) {
    MutexLock lock(mu_);
    for (const Rule& rule : rules_) {
      if (key.substr(0, rule.prefix.size()) != rule.prefix) continue;
      const auto usable = FirstUsable(rule.tiers, reach);
      if (usable && usable->first) return *usable->first;
      break;
    }
  }
  return {};
}

}  // namespace moonpool::server
