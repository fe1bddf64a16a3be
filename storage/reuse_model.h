// How likely is what was just used to be used again before long?
//
// Logistic regression over bucketed features and some pairs of them, trained as the answers come
// in (cf. H. B. McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013; and,
// for caches, Z. Song et al., "Learning relaxed Belady for content distribution network
// caching", NSDI 2020, which follows samples until they are used again or too late).
// Whether an answer is right matters little: what a score is worth is counted by ReuseTimes.
//
// Threads: none of its own.  Memory: 16 KiB.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "storage/chain_nodes.h"
#include "storage/reuse_times.h"

namespace moonpool::storage {

class ReuseModel {
 public:
  ReuseModel();
  // A count as a feature: 0, 1, 2, 3, 4-5, 6-7, 8-11, ..., below 16.
  static uint8_t Bucket(uint64_t count);

  // The class for ReuseTimes of a node as it is now.
  uint8_t Score(const ChainNode& node) const;
  // `answer`: 1 when the node's last use was followed by another at once, less the longer it took,
  // 0 when it took too long.
  void Learn(const ChainNode& node, float answer);

 private:
  static constexpr size_t kFeatures = 18;
  static constexpr size_t kWeights = 2048;
  using Features = std::array<uint16_t, kFeatures>;

  static Features FeaturesOf(const ChainNode& node);
  float LogOdds(const Features& features) const;

  std::array<float, kWeights> weights_{};
  std::array<float, kWeights> counts_{};  // answers each was changed by
};

}  // namespace moonpool::storage
