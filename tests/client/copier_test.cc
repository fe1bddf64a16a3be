#include "client/copier.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/protocol/random.h"

namespace moonpool::client {
namespace {

using test::Random;

// Scatters a part of a random source over pieces of random sizes and compares.
void CopyOnce(Copier& copier, Random& random, const std::string& source) {
  const size_t begin = random.Below(source.size());
  const std::string_view from =
      std::string_view(source).substr(begin, random.Below(source.size() - begin) + 1);
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
  const std::string small = random.Bytes(20'000), large = random.Bytes(8'000'000);
  for (const int threads : {1, 2, 4}) {
    Copier copier(threads);
    copier.Copy({});
    for (int i = 0; i < 20; ++i) CopyOnce(copier, random, i % 2 == 0 ? small : large);
  }
}

TEST(CopierTest, ManyCallersShareIt) {
  Random seeds;
  const std::string source = seeds.Bytes(5'000'000);
  Copier copier(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, seed = seeds.Next()] {
      Random random(seed);
      for (int i = 0; i < 20; ++i) CopyOnce(copier, random, source);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace moonpool::client
