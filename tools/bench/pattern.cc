#include "tools/bench/pattern.h"

#include <cstring>

namespace moonpool::bench {

namespace {

constexpr uint64_t kStep = 0x9e3779b97f4a7c15;
// Words compared before looking whether one was wrong: a loop the compiler can vectorize.
constexpr size_t kBlockWords = 512;

}  // namespace

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0xbf58476d1ce4e5b9 + b + kStep;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

void FillPattern(void* to, size_t bytes, uint64_t id, uint64_t version) {
  auto* out = static_cast<unsigned char*>(to);
  const uint64_t base = Mix(id, version);
  const size_t words = bytes / 8;
  for (size_t i = 0; i < words; ++i) {
    const uint64_t word = base + i * kStep;
    std::memcpy(out + i * 8, &word, 8);
  }
  const uint64_t last = base + words * kStep;
  std::memcpy(out + words * 8, &last, bytes % 8);
  std::memcpy(out, &id, 8);
  std::memcpy(out + 8, &version, 8);
}

bool CheckPattern(const void* from, size_t bytes, uint64_t id, uint64_t* version) {
  const auto* in = static_cast<const unsigned char*>(from);
  uint64_t head[2];
  std::memcpy(head, in, sizeof(head));
  if (head[0] != id) return false;
  const uint64_t base = Mix(id, head[1]);
  const size_t words = bytes / 8;
  for (size_t first = 2; first < words; first += kBlockWords) {
    const size_t end = first + kBlockWords < words ? first + kBlockWords : words;
    uint64_t wrong = 0;
    for (size_t i = first; i < end; ++i) {
      uint64_t word;
      std::memcpy(&word, in + i * 8, 8);
      wrong |= word ^ (base + i * kStep);
    }
    if (wrong != 0) return false;
  }
  const uint64_t last = base + words * kStep;
  if (std::memcmp(in + words * 8, &last, bytes % 8) != 0) return false;
  if (version != nullptr) *version = head[1];
  return true;
}

}  // namespace moonpool::bench
