// Random numbers for tests, from a seed that is printed and recorded, so that a failure replays:
//
//     storage_test --gtest_filter=<test> --gtest_random_seed=<seed>
//
// Threads: one per object.  Arithmetic of our own: the std distributions differ per library.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <random>
#include <string>

namespace moonpool::test {

class Random {
 public:
  // The seed of the command line, or a fresh one.
  Random() : Random(Draw()) {
    std::printf("seed %u\n", static_cast<unsigned>(seed_));
    testing::Test::RecordProperty("seed", std::to_string(seed_));
  }
  explicit Random(uint64_t seed) : seed_(seed), engine_(seed) {}

  uint64_t seed() const { return seed_; }
  // For SCOPED_TRACE.
  std::string Replay() const { return "replay with --gtest_random_seed=" + std::to_string(seed_); }

  uint64_t Next() { return engine_(); }
  // 0 .. bound - 1.
  uint64_t Below(uint64_t bound) { return engine_() % bound; }
  // low .. high, both included.
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  double Uniform() { return static_cast<double>(engine_() >> 11) * 0x1.0p-53; }
  bool Chance(double probability) { return Uniform() < probability; }
  template <typename Container>
  const typename Container::value_type& Pick(const Container& from) {
    return from[Below(from.size())];
  }
  // Bytes out of `alphabet`.
  std::string Text(size_t size, const std::string& alphabet) {
    std::string text(size, '\0');
    for (char& c : text) c = Pick(alphabet);
    return text;
  }
  std::string Bytes(size_t size) {
    std::string text(size, '\0');
    for (char& c : text) c = static_cast<char>(engine_());
    return text;
  }

 private:
  static uint64_t Draw() {
    const int32_t flag = GTEST_FLAG_GET(random_seed);
    return flag != 0 ? static_cast<uint64_t>(flag) : std::random_device()() % 99999 + 1;
  }

  uint64_t seed_;
  std::mt19937_64 engine_;
};

}  // namespace moonpool::test
