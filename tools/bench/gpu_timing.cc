#include "tools/bench/gpu_timing.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "tools/bench/clock.h"
#include "tools/bench/report.h"

namespace moonpool::bench {

namespace {

// Batches under way at once: so many, and so many bytes that a wait costs next to nothing.
constexpr uint64_t kRoundsAtOnce = 8;
constexpr uint64_t kBytesAtOnce = 2ull << 30;
// Calls that are not counted.
constexpr uint64_t kWarmUpCalls = 20;

}  // namespace

double RateOfRounds(uint64_t bytes, double seconds,
                    const std::function<void(uint64_t round)>& round,
                    const std::function<void()>& wait) {
  uint64_t next = 0;
  const auto some = [&](uint64_t rounds) {
    for (uint64_t i = 0; i < rounds; ++i) round(next++);
    wait();
  };
  some(2);  // warms up
  // Where copies are slow, a few of them are time enough.
  const Stopwatch one;
  some(1);
  const auto affordable = static_cast<uint64_t>(seconds / std::max(one.seconds(), 1e-9)) + 1;
  const uint64_t at_once =
      std::min(std::max(kRoundsAtOnce, kBytesAtOnce / bytes), std::max<uint64_t>(affordable, 2));
  const Stopwatch watch;
  uint64_t done = 0;
  do {
    some(at_once);
    done += at_once;
  } while (watch.seconds() < seconds);
  return static_cast<double>(done * bytes) / watch.seconds() / 1e9;
}

double MedianMicroseconds(int calls, const std::function<void(uint64_t round)>& call) {
  std::vector<double> times;
  for (uint64_t i = 0; i < static_cast<uint64_t>(calls) + kWarmUpCalls; ++i) {
    const Stopwatch watch;
    call(i);
    if (i >= kWarmUpCalls) times.push_back(static_cast<double>(watch.ns()) / 1e3);
  }
  return Median(std::move(times));
}

}  // namespace moonpool::bench
