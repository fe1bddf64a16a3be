#include "protocol/glob.h"

#include <cstddef>
#include <utility>

namespace moonpool::protocol {

namespace {

unsigned char Fold(char c, bool ignore_case) {
  const auto byte = static_cast<unsigned char>(c);
  return ignore_case && byte >= 'A' && byte <= 'Z' ? static_cast<unsigned char>(byte + 32) : byte;
}

// Matches one byte against the element at pattern[p] and moves p past that element.  A class
// without its ']' ends at the end of the pattern, as in Redis.
bool MatchElement(std::string_view pattern, size_t& p, char byte, bool ignore_case) {
  const unsigned char c = Fold(byte, ignore_case);
  switch (pattern[p]) {
    case '?':
      ++p;
      return true;
    case '\\':
      if (p + 1 < pattern.size()) ++p;
      return Fold(pattern[p++], ignore_case) == c;
    case '[':
      break;
    default:
      return Fold(pattern[p++], ignore_case) == c;
  }
  ++p;
  const bool negate = p < pattern.size() && pattern[p] == '^';
  if (negate) ++p;
  bool match = false;
  while (p < pattern.size() && pattern[p] != ']') {
    if (pattern[p] == '\\' && p + 1 < pattern.size()) {
      ++p;
      match |= Fold(pattern[p++], ignore_case) == c;
    } else if (p + 2 < pattern.size() && pattern[p + 1] == '-') {
      unsigned char low = Fold(pattern[p], ignore_case);
      unsigned char high = Fold(pattern[p + 2], ignore_case);
      if (low > high) std::swap(low, high);
      match |= c >= low && c <= high;
      p += 3;
    } else {
      match |= Fold(pattern[p++], ignore_case) == c;
    }
  }
  if (p < pattern.size()) ++p;  // the ']'
  return match != negate;
}

}  // namespace

bool GlobMatch(std::string_view pattern, std::string_view text, bool ignore_case) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  size_t p = 0, t = 0, star = kNone, star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = ++p;
      star_text = t;
      continue;
    }
    if (p < pattern.size() && MatchElement(pattern, p, text[t], ignore_case)) {
      ++t;
      continue;
    }
    if (star == kNone) return false;
    p = star;  // let the last star take one byte more; earlier stars need not move
    t = ++star_text;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool EqualsIgnoreCase(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (Fold(a[i], true) != Fold(b[i], true)) return false;
  }
  return true;
}

}  // namespace moonpool::protocol
