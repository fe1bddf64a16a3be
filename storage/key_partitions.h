// The partitions of the keys of one command, for Keyspace::NoteBatch().
// Threads: one.  Costs a relaxed load while there are no partitions.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "storage/partitions.h"

namespace moonpool::storage {

class KeyPartitions {
 public:
  // `set`: Keyspace::partition_set(); null: there are none, and nothing is gathered.
  explicit KeyPartitions(std::shared_ptr<const PartitionSet> set) : set_(std::move(set)) {}

  void Add(std::string_view key) {
    if (set_ != nullptr) slots_.push_back(set_->Match(key));
  }
  // One per key, or empty: all are of the default partition.
  std::span<const uint8_t> slots() const { return slots_; }

 private:
  std::shared_ptr<const PartitionSet> set_;
  std::vector<uint8_t> slots_;
};

}  // namespace moonpool::storage
