// What the tests of partitions share: what a keyspace says of its partitions, beside what is in it.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "storage/keyspace.h"

namespace moonpool::storage {

inline std::vector<PartitionOptions> PartitionsOf(std::string_view text) {
  auto parsed = ParsePartitions(text);
  EXPECT_TRUE(parsed) << parsed.error().message;
  return parsed ? std::move(*parsed) : std::vector<PartitionOptions>();
}

inline Partitions::Counts CountsOf(const Keyspace& keyspace, std::string_view name) {
  for (const auto& report : keyspace.PartitionReports()) {
    if (report.options.name == name) return report.counts;
  }
  ADD_FAILURE() << "there is no partition " << name;
  return {};
}

// Where the counts of partitions are not those of the large values with such keys; empty: nowhere.
// What moves meanwhile may count twice, or not at all.
inline std::string WrongCounts(Keyspace& keyspace, int64_t now_ms) {
  struct Sums {
    uint64_t dram_bytes = 0, dram_keys = 0, cxl_bytes = 0, cxl_keys = 0, gpu_bytes = 0,
             gpu_keys = 0, ssd_bytes = 0, ssd_keys = 0;
  };
  // Keys that are gone count until they are met.
  while (keyspace.SweepVoids(now_ms)) {
  }
  while (keyspace.ExpireSome(1 << 20, now_ms) > 0) {
  }
  std::map<uint8_t, Sums> sums;
  std::string wrong;
  const auto set = keyspace.partition_set();
  uint64_t cursor = 0;
  std::vector<std::string> names;
  do {
    names.clear();
    cursor = keyspace.Scan(cursor, 100, now_ms, &names);
    for (const std::string& name : names) {
      KeyLock lock(keyspace, name, now_ms);
      const Entry* entry = lock.key.Find();
      if (entry == nullptr || entry->is_inline()) continue;
      const uint8_t slot = set == nullptr ? 0 : set->Match(name);
      Sums& sum = sums[slot];
      SsdPlace place;
      if (entry->has(Entry::kBulk)) {
        EXPECT_EQ(entry->bulk()->partition(), slot) << name;
        using protocol::Tier;
        const Tier tier = entry->bulk()->tier();
        (tier == Tier::kDram  ? sum.dram_bytes
         : tier == Tier::kCxl ? sum.cxl_bytes
                              : sum.gpu_bytes) += entry->bulk()->policy_bytes;
        ++(tier == Tier::kDram  ? sum.dram_keys
           : tier == Tier::kCxl ? sum.cxl_keys
                                : sum.gpu_keys);
        place = entry->bulk()->place();
      } else {
        place = entry->place();
      }
      if (!place) continue;
      EXPECT_EQ(place.slot(), slot) << name;
      sum.ssd_bytes += place.length;
      ++sum.ssd_keys;
    }
  } while (cursor != 0);
  for (size_t i = 0; i < Partitions::kSlots; ++i) {
    const auto slot = static_cast<uint8_t>(i);
    const Partitions::Counts counts = keyspace.partitions().counts(slot);
    const Sums sum = sums[slot];
    const auto compare = [&](const char* what, uint64_t counted, uint64_t found) {
      if (counted == found) return;
      wrong += "slot " + std::to_string(i) + ": " + what + " is " + std::to_string(counted) +
               ", found " + std::to_string(found) + "\n";
    };
    compare("dram_bytes", counts.dram_bytes, sum.dram_bytes);
    compare("dram_keys", counts.dram_keys, sum.dram_keys);
    compare("cxl_bytes", counts.cxl_bytes, sum.cxl_bytes);
    compare("cxl_keys", counts.cxl_keys, sum.cxl_keys);
    compare("gpu_bytes", counts.gpu_bytes, sum.gpu_bytes);
    compare("gpu_keys", counts.gpu_keys, sum.gpu_keys);
    compare("ssd_bytes", counts.ssd_bytes, sum.ssd_bytes);
    compare("ssd_keys", counts.ssd_keys, sum.ssd_keys);
  }
  return wrong;
}

// Nothing moves meanwhile.
inline void ExpectExactCounts(Keyspace& keyspace, int64_t now_ms) {
  EXPECT_EQ(WrongCounts(keyspace, now_ms), "");
}

}  // namespace moonpool::storage
