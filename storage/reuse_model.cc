#include "storage/reuse_model.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace moonpool::storage {

namespace {

// A weight moves this fast at first, slower the more answers it has heard, and never slower than a
// tenth of that: what is true changes.
constexpr float kRate = 0.03f;
constexpr float kSteadyAfter = 100;  // answers
constexpr float kFloor = 0.1f;
// Classes are half a unit of log odds wide.
constexpr float kLowest = -6;
constexpr float kPerUnit = 2;

}  // namespace

ReuseModel::ReuseModel() {
  // Before anything was learned: what was used more often is likelier to be used again.
  for (size_t uses = 0; uses < 16; ++uses) weights_[1 + uses] = 0.5f * static_cast<float>(uses) - 1;
}

uint8_t ReuseModel::Bucket(uint64_t count) {
  if (count < 4) return static_cast<uint8_t>(count);
  const auto log = static_cast<uint64_t>(std::bit_width(count)) - 1;
  return static_cast<uint8_t>(std::min<uint64_t>(2 * log + (count >> (log - 1) & 1), 15));
}

ReuseModel::Features ReuseModel::FeaturesOf(const ChainNode& node) {
  Features features{};
  size_t base = 0, count = 0;
  const auto add = [&](size_t value, size_t values) {
    features[count++] = static_cast<uint16_t>(base + std::min(value, values - 1));
    base += values;
  };
  const size_t uses = Bucket(node.uses);
  const size_t generation = Bucket(node.generation);
  const size_t width = Bucket(node.children);
  const auto heat =
      static_cast<size_t>(std::clamp(4 * std::log2(std::max(node.heat, 1.0f)), 0.0f, 23.0f));
  const size_t gap = node.gap;  // 0: never used before, else one for each doubling
  add(0, 1);
  add(uses, 16);
  add(generation, 12);
  add(width, 10);
  add(gap, 24);
  add(heat, 24);
  add(node.from_end, 16);
  add(node.fresh, 16);
  add(node.length, 16);
  add(Bucket(node.depth), 16);
  add(node.group % 64, 64);
  add(node.size, 16);
  add(std::min<size_t>(uses, 3) * 24 + gap, 96);
  add(std::min<size_t>(generation, 7) * 16 + node.fresh, 128);
  add(std::min<size_t>(generation, 7) * 16 + node.from_end, 128);
  add(std::min<size_t>(width, 3) * 16 + node.from_end, 64);
  add(std::min<size_t>(generation, 7) * 24 + gap, 192);
  add(node.group % 64 * 8 + std::min<size_t>(generation, 7), 512);
  return features;
}

float ReuseModel::LogOdds(const Features& features) const {
  float sum = 0;
  for (const uint16_t feature : features) sum += weights_[feature];
  return sum;
}

uint8_t ReuseModel::Score(const ChainNode& node) const {
  const float place = (LogOdds(FeaturesOf(node)) - kLowest) * kPerUnit;
  return static_cast<uint8_t>(
      std::clamp(place, 0.0f, static_cast<float>(ReuseTimes::kClasses - 1)));
}

void ReuseModel::Learn(const ChainNode& node, float answer) {
  const Features features = FeaturesOf(node);
  const float chance = 1 / (1 + std::exp(-LogOdds(features)));
  const float step = kRate * (answer - chance);
  for (const uint16_t feature : features) {
    weights_[feature] +=
        step * std::max(kFloor, 1 / std::sqrt(1 + counts_[feature] / kSteadyAfter));
    counts_[feature] += 1;
  }
}

}  // namespace moonpool::storage
