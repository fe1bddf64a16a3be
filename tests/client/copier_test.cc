#include "client/copier.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/protocol/random.h"

namespace moonpool::client {
namespace {

using test::Random;

// Scatters a random source over pieces of random sizes and compares.
void CopyOnce(Copier& copier, Random& random, size_t most_bytes) {
  const std::string from = random.Bytes(random.Below(most_bytes) + 1);
  std::string to(from.size(), '\0');
  std::vector<Copier::Piece> pieces;
  for (size_t at = 0; at < from.size();) {
    const size_t bytes = std::min<size_t>(random.Below(700'000), from.size() - at);  // 0 too
    pieces.push_back({to.data() + at, from.data() + at, bytes});
    at += bytes;
  }
  copier.Copy(pieces);
  ASSERT_EQ(to, from);
}

TEST(CopierTest, CopiesEverythingWhateverTheNumberOfThreads) {
  Random random;
  for (const int threads : {1, 2, 4}) {
    Copier copier(threads);
    copier.Copy({});
    for (int i = 0; i < 20; ++i) CopyOnce(copier, random, i % 2 == 0 ? 10'000 : 6'000'000);
  }
}

TEST(CopierTest, ManyCallersShareIt) {
  Random seeds;
  Copier copier(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, seed = seeds.Next()] {
      Random random(seed);
      for (int i = 0; i < 20; ++i) CopyOnce(copier, random, 3'000'000);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace moonpool::client
