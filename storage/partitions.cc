#include "storage/partitions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

#include "storage/fast_random.h"

namespace moonpool::storage {

namespace {

// Less than this is what rounding leaves of nothing.
constexpr double kLeastShare = 1e-9;

size_t ThreadNumber() {
  static std::atomic<size_t> next{0};
  thread_local const size_t number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

// Between 0 and 1, neither included.
double RandomShare() {
  return (static_cast<double>(FastRandom() >> 11) + 0.5) * 0x1p-53;
}

}  // namespace

PartitionSet::PartitionSet(std::vector<PartitionOptions> partitions, const PartitionSet* before) {
  std::array<bool, Partitions::kSlots> taken{};
  taken[0] = true;
  if (before != nullptr) {
    for (const Member& member : before->members_) taken[member.slot] = true;
  }
  uint8_t free = 0;
  for (PartitionOptions& options : partitions) {
    const Member* known = nullptr;
    if (before != nullptr) {
      for (const Member& member : before->members_) {
        if (member.options.name == options.name) known = &member;
      }
    }
    if (known == nullptr) {
      while (taken[free]) ++free;
      taken[free] = true;
    }
    members_.push_back({known != nullptr ? known->slot : free, std::move(options)});
  }
  for (const Member& member : members_) prefixes_.push_back({member.options.prefix, member.slot});
  std::sort(prefixes_.begin(), prefixes_.end(),
            [](const Prefix& a, const Prefix& b) { return a.text.size() > b.text.size(); });
}

bool PartitionSet::Uses(uint8_t slot) const {
  return std::any_of(members_.begin(), members_.end(),
                     [slot](const Member& member) { return member.slot == slot; });
}

Partitions::Partitions(MaxmemoryPolicy policy) {
  Open(0, policy);
}

// --- what is set -----------------------------------------------------------------------------

std::optional<SsdCompression> Partitions::compression(uint8_t slot) const {
  if (!Read(slots_[slot].has_compression)) return std::nullopt;
  return Read(slots_[slot].compression);
}

bool Partitions::evicts() const {
  for (size_t i = 0; i < end(); ++i) {
    if (Read(slots_[i].used) && Read(slots_[i].policy) != MaxmemoryPolicy::kNoEviction) return true;
  }
  return false;
}

void Partitions::Open(uint8_t index, MaxmemoryPolicy policy) {
  Slot& slot = slots_[index];
  // Its bytes are not touched: values that FLUSHALL took out may still be on their way to be freed.
  Write(slot.evictions, 0);
  Write(slot.demotions, 0);
  Write(slot.drops, 0);
  for (ReadShard& shard : reads_) {
    Write(shard.slots[index].hits, 0);
    Write(shard.slots[index].misses, 0);
  }
  Write(slot.policy, policy);
  Write(slot.used, true);
  if (index >= end()) Write(end_, size_t{index} + 1);
}

void Partitions::ConfigureSlot(uint8_t index, const PartitionOptions& options,
                               MaxmemoryPolicy policy) {
  Slot& slot = slots_[index];
  Write(slot.dram_share, options.dram_share);
  Write(slot.ssd_share, options.ssd ? options.ssd_share : kNoShare);
  Write(slot.memory_only, !options.ssd);
  Write(slot.policy, options.policy.value_or(policy));
  Write(slot.admission, options.admission);
  Write(slot.has_compression, options.compression.has_value());
  Write(slot.compression, options.compression.value_or(SsdCompression::kNone));
}

void Partitions::Configure(const PartitionSet* set, MaxmemoryPolicy policy) {
  const PartitionOptions none;
  for (size_t i = 1; i < end(); ++i) {
    const auto slot = static_cast<uint8_t>(i);
    if (set != nullptr && set->Uses(slot)) continue;
    // One that goes: its keys keep its policy until they have moved.
    ConfigureSlot(slot, none, this->policy(slot));
    Write(slots_[i].dram_share, kNoShare);
    Write(slots_[i].ssd_share, kNoShare);
  }
  double dram = 1, ssd = 1;
  if (set != nullptr) {
    for (const PartitionSet::Member& member : set->members()) {
      ConfigureSlot(member.slot, member.options, policy);
      dram -= member.options.dram_share;
      ssd -= member.options.ssd_share;
    }
  }
  Write(slots_[0].dram_share, dram < kLeastShare ? 0 : dram);
  Write(slots_[0].ssd_share, ssd < kLeastShare ? 0 : ssd);
  Write(slots_[0].policy, policy);
  Write(any_, set != nullptr);
}

// --- what they have --------------------------------------------------------------------------

uint64_t Partitions::NotBelowZero(const std::atomic<int64_t>& value) {
  return static_cast<uint64_t>(std::max<int64_t>(Read(value), 0));
}

Partitions::Counts Partitions::counts(uint8_t index) const {
  const Slot& slot = slots_[index];
  Counts counts;
  using protocol::Tier;
  counts.dram_bytes = NotBelowZero(In(slot, Tier::kDram).bytes);
  counts.dram_keys = NotBelowZero(In(slot, Tier::kDram).keys);
  counts.cxl_bytes = NotBelowZero(In(slot, Tier::kCxl).bytes);
  counts.cxl_keys = NotBelowZero(In(slot, Tier::kCxl).keys);
  counts.gpu_bytes = NotBelowZero(In(slot, Tier::kGpu).bytes);
  counts.gpu_keys = NotBelowZero(In(slot, Tier::kGpu).keys);
  counts.ssd_bytes = NotBelowZero(slot.ssd_bytes);
  counts.ssd_keys = NotBelowZero(slot.ssd_keys);
  for (const ReadShard& shard : reads_) {
    counts.hits += Read(shard.slots[index].hits);
    counts.misses += Read(shard.slots[index].misses);
  }
  counts.evictions = Read(slot.evictions);
  counts.demotions = Read(slot.demotions);
  counts.drops = Read(slot.drops);
  return counts;
}

uint64_t Partitions::keys_in(protocol::Tier tier) const {
  uint64_t keys = 0;
  for (const Slot& slot : slots_) keys += NotBelowZero(In(slot, tier).keys);
  return keys;
}

void Partitions::ResetStats() {
  for (Slot& slot : slots_) {
    Write(slot.evictions, 0);
    Write(slot.demotions, 0);
    Write(slot.drops, 0);
  }
  for (ReadShard& shard : reads_) {
    for (Reads& reads : shard.slots) {
      Write(reads.hits, 0);
      Write(reads.misses, 0);
    }
  }
}

void Partitions::ClearSsd() {
  for (Slot& slot : slots_) {
    Write(slot.ssd_bytes, 0);
    Write(slot.ssd_keys, 0);
  }
}

void Partitions::CountRead(uint8_t slot, bool hit) {
  Reads& reads = reads_[ThreadNumber() % kReadShards].slots[slot];
  Add(hit ? reads.hits : reads.misses, 1);
}

// --- who gives -------------------------------------------------------------------------------

template <typename Bytes>
void Partitions::FillPressures(std::atomic<double> Slot::*share, Bytes&& bytes,
                               Pressures* pressures) const {
  const auto has_own = [&](const Slot& slot) { return Read(slot.*share) != 0; };
  const auto pressure = [](double has, double of) {
    if (has <= 0) return 0.0;
    return of > 0 ? has / of : std::numeric_limits<double>::infinity();
  };
  double shared = 0;  // bytes of the default partition and of those that count with it
  for (size_t i = 0; i < end(); ++i) {
    const Slot& slot = slots_[i];
    if (Read(slot.used) && (i == 0 || !has_own(slot))) shared += bytes(slot);
  }
  const double of_shared = pressure(shared, Read(slots_[0].*share));
  pressures->fill(0);
  for (size_t i = 0; i < end(); ++i) {
    const Slot& slot = slots_[i];
    const double has = Read(slot.used) ? bytes(slot) : 0;
    const bool own = i != 0 && has_own(slot);
    (*pressures)[i] = has <= 0 ? 0 : own ? pressure(has, Read(slot.*share)) : of_shared;
  }
}

size_t Partitions::VictimOrder(Order* order, protocol::Tier tier) const {
  if (end() == 1) {
    (*order)[0] = 0;
    return 1;
  }
  const auto bytes = [tier](const Slot& slot) {
    return static_cast<double>(Read(In(slot, tier).bytes) - Read(In(slot, tier).leaving));
  };
  Pressures pressures;
  FillPressures(&Slot::dram_share, bytes, &pressures);
  // Of those that share a share: the least of such numbers is in proportion to the bytes
  // (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
  std::array<double, kSlots> turns;
  size_t found = 0;
  for (size_t i = 0; i < end(); ++i) {
    if (!Read(slots_[i].used)) continue;
    turns[i] = -std::log(RandomShare()) / std::max(bytes(slots_[i]), 1.0);
    (*order)[found++] = static_cast<uint8_t>(i);
  }
  std::sort(order->begin(), order->begin() + static_cast<ptrdiff_t>(found),
            [&](uint8_t a, uint8_t b) {
              if (pressures[a] != pressures[b]) return pressures[a] > pressures[b];
              return turns[a] < turns[b];
            });
  return found;
}

void Partitions::SsdPressures(Pressures* pressures) const {
  FillPressures(
      &Slot::ssd_share, [](const Slot& slot) { return static_cast<double>(Read(slot.ssd_bytes)); },
      pressures);
}

}  // namespace moonpool::storage
