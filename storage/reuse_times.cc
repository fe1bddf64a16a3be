#include "storage/reuse_times.h"

#include <algorithm>
#include <bit>

namespace moonpool::storage {

namespace {

// Of what was counted, kept from one estimate to the next: half is left after 55,000 waits.
constexpr float kKept = 0.95f;
// Until more is known: of what has waited for some time, this share comes back before it has
// waited 1.4 times as long, whatever that time; so the least recently used goes first.
constexpr float kPriorHazard = 0.04f;
constexpr float kPriorWeight = 20;      // waits, for all classes together
constexpr float kNeighbourWeight = 40;  // waits, what the neighbours say counts as
constexpr float kFade = 0.5f;           // from one class to the next

}  // namespace

constexpr std::array<uint32_t, ReuseTimes::kAges> ReuseTimes::Starts() {
  // 0, 1, 2, 3, 4, 6, 8, 12, 16, ...
  std::array<uint32_t, kAges> starts{};
  for (size_t i = 1; i < kAges; ++i) {
    starts[i] =
        i < 3 ? static_cast<uint32_t>(i) : (i % 2 == 1 ? 3u << ((i - 3) / 2) : 4u << ((i - 4) / 2));
  }
  return starts;
}

const std::array<uint32_t, ReuseTimes::kAges> ReuseTimes::kAgeStarts = Starts();

size_t ReuseTimes::AgeOf(uint32_t ticks) {
  if (ticks < 3) return ticks;
  const auto log = static_cast<uint32_t>(std::bit_width(ticks)) - 1;  // of two
  const size_t age = 2 * log + (ticks >> (log - 1) & 1);
  return std::min(age, kAges - 1);
}

ReuseTimes::ReuseTimes() : waits_(kFollowed) {
  Estimate();
}

uint32_t ReuseTimes::Begin(size_t class_index, uint32_t now, uint32_t tag) {
  waits_[begun_ % kFollowed] = {now, tag, static_cast<uint8_t>(class_index), true};
  return begun_++;
}

void ReuseTimes::End(uint32_t ticket, uint32_t now) {
  if (begun_ - ticket > kFollowed) return;
  Wait& wait = waits_[ticket % kFollowed];
  if (!wait.open) return;
  wait.open = false;
  // The hands may not have been here yet.
  const size_t age = AgeOf(now - wait.begin);
  for (size_t i = age + 1; i-- > 0 && static_cast<int32_t>(ticket - hands_[i]) >= 0;) {
    reached_[wait.class_index][i] += 1;
  }
  ended_[wait.class_index][age] += 1;
}

void ReuseTimes::Estimate() {
  const float kept = 1 - (1 - kKept) * static_cast<float>(begun_ - estimated_at_) / kEstimateEvery;
  estimated_at_ = begun_;
  std::array<std::array<float, kAges>, kClasses> near_reached = reached_;
  std::array<std::array<float, kAges>, kClasses> near_ended = ended_;
  const auto lean = [&](size_t from, size_t to) {
    for (size_t age = 0; age < kAges; ++age) {
      near_reached[to][age] += kFade * near_reached[from][age];
      near_ended[to][age] += kFade * near_ended[from][age];
    }
  };
  for (size_t c = 1; c < kClasses; ++c) lean(c - 1, c);
  for (size_t c = kClasses - 1; c-- > 0;) lean(c + 1, c);

  for (size_t c = 0; c < kClasses; ++c) {
    std::array<float, kAges> hazard, stay;  // chance to end within the age; ticks it lasts
    for (size_t age = 0; age < kAges; ++age) {
      const float near = (near_ended[c][age] + kPriorWeight * kPriorHazard) /
                         (near_reached[c][age] + kPriorWeight);
      hazard[age] = std::min(
          (ended_[c][age] + kNeighbourWeight * near) / (reached_[c][age] + kNeighbourWeight), 1.0f);
      const uint32_t end = age + 1 < kAges ? kAgeStarts[age + 1] : 2 * kAgeStarts[age];
      stay[age] = static_cast<float>(end - kAgeStarts[age]);
    }
    for (size_t age = 0; age < kAges; ++age) {
      float left = 1, time = 0, best = 0;
      for (size_t t = age; t < kAges; ++t) {
        time += left * (1 - hazard[t] / 2) * stay[t];
        left *= 1 - hazard[t];
        best = std::max(best, (1 - left) / time);
      }
      worth_[c][age] = best;
    }
    for (size_t age = 0; age < kAges; ++age) {
      reached_[c][age] *= kept;
      ended_[c][age] *= kept;
    }
  }
}

}  // namespace moonpool::storage
