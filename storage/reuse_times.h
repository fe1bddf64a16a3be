// After how long things of a kind are used again, and what keeping one is worth.
//
// Every use of something begins a wait that ends with its next use.  Waits are grouped into
// classes (whatever the caller thinks are alike).  For every class and age there are two counts:
// how many waits got that old, and how many of those ended before the next age.  Nothing is
// censored by eviction, as the ends of what was evicted count too.
//
// What to keep: what gives most hits for the time it takes up.  With the chance that a wait of
// this age ends, hazard by hazard, that is
//     worth(age) = max over t of  P(it ends within t) / E(how long it takes up room until then)
// (J. Gittins, "Bandit processes and dynamic allocation indices", 1979; cf. the hit density of
// N. Beckmann et al., "LHD: improving cache hit rate by maximizing hit density", NSDI 2018, which
// takes t from how long things stay instead of maximising).  Hazards of rare classes lean on
// their neighbours'.
//
// Threads: none of its own.  Memory: 1 MiB, for the last 65,536 waits and 12 KiB of tables.
// Times are in ticks of the caller's clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace moonpool::storage {

class ReuseTimes {
 public:
  static constexpr size_t kClasses = 24;
  static constexpr size_t kAges = 44;  // two for each doubling

  ReuseTimes();

  // The first tick of each age.
  static uint32_t AgeStart(size_t age) { return kAgeStarts[age]; }
  static size_t AgeOf(uint32_t ticks);

  // A wait begins; returns its ticket.  `tag` is for Expired.
  uint32_t Begin(size_t class_index, uint32_t now, uint32_t tag);
  // It ended.
  void End(uint32_t ticket, uint32_t now);
  // Takes note of waits that got older, and calls late(tag, ticket) for those that got as old as
  // AgeStart(horizon) without an end.
  template <typename Late>
  void Advance(uint32_t now, size_t horizon, Late&& late) {
    for (size_t age = 0; age < kAges; ++age) {
      uint32_t& hand = hands_[age];
      if (begun_ - hand > kFollowed) hand = begun_ - kFollowed;
      while (hand != begun_) {
        const Wait& wait = waits_[hand % kFollowed];
        if (now - wait.begin < kAgeStarts[age]) break;
        if (wait.open) {
          reached_[wait.class_index][age] += 1;
          if (age == horizon) late(wait.tag, hand);
        }
        ++hand;
      }
    }
    // More often at first, when every answer is news.
    if (begun_ - estimated_at_ >= std::min(kEstimateEvery, estimated_at_ / 4 + 128)) Estimate();
  }

  // Hits per tick of keeping what has waited for `ticks`.
  float Worth(size_t class_index, uint32_t ticks) const {
    return worth_[class_index][AgeOf(ticks)];
  }

 private:
  static constexpr uint32_t kFollowed = 65536;
  static constexpr uint32_t kEstimateEvery = 4096;  // waits
  static constexpr std::array<uint32_t, kAges> Starts();
  static const std::array<uint32_t, kAges> kAgeStarts;

  struct Wait {
    uint32_t begin = 0;
    uint32_t tag = 0;
    uint8_t class_index = 0;
    bool open = false;
  };

  void Estimate();

  std::vector<Wait> waits_;
  uint32_t begun_ = 0;
  uint32_t estimated_at_ = 0;
  std::array<uint32_t, kAges> hands_{};  // the first wait that is younger than the age
  std::array<std::array<float, kAges>, kClasses> reached_{};
  std::array<std::array<float, kAges>, kClasses> ended_{};
  std::array<std::array<float, kAges>, kClasses> worth_{};
};

}  // namespace moonpool::storage
