#include "protocol/glob.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "tests/protocol/random.h"

namespace moonpool::protocol {
namespace {

using namespace std::string_literals;
using test::Random;

TEST(GlobTest, WhatRedisMatches) {
  const struct {
    std::string pattern, text;
    bool match;
  } cases[] = {
      {"", "", true},
      {"", "a", false},
      {"a", "", false},
      {"*", "", true},
      {"**", "", true},
      {"*", "anything", true},
      {"?", "", false},
      {"?", "a", true},
      {"?", "ab", false},
      {"h?llo", "hello", true},
      {"h*llo", "hllo", true},
      {"h*llo", "heeeello", true},
      {"h*llo", "heeeell", false},
      {"*a*b", "xxaxxbxb", true},
      {"*a*b", "xxbxxa", false},
      {"*?", "", false},
      {"*?", "a", true},
      {"?*", "a", true},
      {"a**b", "ab", true},
      {"*abc", "ababc", true},
      {"*ab*ab*", "abab", true},
      {"*ab*ab*", "aba", false},
      {"h[ae]llo", "hallo", true},
      {"h[ae]llo", "hillo", false},
      {"h[^e]llo", "hallo", true},
      {"h[^e]llo", "hello", false},
      {"h[a-b]llo", "hbllo", true},
      {"h[a-b]llo", "hcllo", false},
      {"h[b-a]llo", "hbllo", true},  // a range may be written backwards
      {"[a-]", "-", false},          // not a class: the range from ']' to 'a', and no end
      {"[a-]", "_", true},
      {"[-a]", "-", true},
      {"[]", "]", false},  // an empty class
      {"[^]", "x", true},
      {"[abc", "b", true},  // ends with the pattern
      {"[^abc", "b", false},
      {"[", "[", false},
      {"[\\]]", "]", true},
      {"[\\^a]", "^", true},
      {"[a\\-z]", "-", true},
      {"[a\\-z]", "m", false},
      {"[*?]", "*", true},
      {"[*?]", "x", false},
      {"\\*", "*", true},
      {"\\*", "x", false},
      {"\\?", "?", true},
      {"\\[a]", "[a]", true},
      {"\\\\", "\\", true},
      {"a\\", "a\\", true},
      {"\\a", "a", true},
      {"a\0b"s, "a\0b"s, true},
      {"a?b", "a\0b"s, true},
      {"[\x80-\xff]", "\xc3", true},
      {"user:*:[0-9]", "user:42:7", true},
      {"user:*:[0-9]", "user:42:x", false},
      {"A", "a", false},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(GlobMatch(c.pattern, c.text), c.match) << c.pattern << " ~ " << c.text;
  }
}

TEST(GlobTest, IgnoringCase) {
  EXPECT_TRUE(GlobMatch("HeLLo*", "hEllO world", true));
  EXPECT_TRUE(GlobMatch("[A-C]x", "bX", true));
  EXPECT_TRUE(GlobMatch("\\A", "a", true));
  EXPECT_FALSE(GlobMatch("[^a]", "A", true));
  EXPECT_FALSE(GlobMatch("\xc4", "\xe4", true));  // ASCII only
  EXPECT_FALSE(GlobMatch("@", "`", true));
  EXPECT_FALSE(GlobMatch("[", "{", true));
}

TEST(GlobTest, EqualsIgnoreCase) {
  EXPECT_TRUE(EqualsIgnoreCase("", ""));
  EXPECT_TRUE(EqualsIgnoreCase("GeT", "gEt"));
  EXPECT_FALSE(EqualsIgnoreCase("get", "gets"));
  EXPECT_FALSE(EqualsIgnoreCase("@", "`"));
  EXPECT_FALSE(EqualsIgnoreCase("[", "{"));
  EXPECT_FALSE(EqualsIgnoreCase("\xc4", "\xe4"));
}

// Straight from the definition, exponential in the number of stars.
bool Reference(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] == '*') {
    return Reference(pattern.substr(1), text) ||
           (!text.empty() && Reference(pattern, text.substr(1)));
  }
  if (text.empty()) return false;
  if (pattern[0] == '?') return Reference(pattern.substr(1), text.substr(1));
  if (pattern[0] == '\\' && pattern.size() > 1) {
    return pattern[1] == text[0] && Reference(pattern.substr(2), text.substr(1));
  }
  if (pattern[0] != '[') {
    return pattern[0] == text[0] && Reference(pattern.substr(1), text.substr(1));
  }
  pattern.remove_prefix(1);
  const bool negated = !pattern.empty() && pattern[0] == '^';
  if (negated) pattern.remove_prefix(1);
  bool in_class = false;
  while (!pattern.empty() && pattern[0] != ']') {
    if (pattern[0] == '\\' && pattern.size() > 1) {
      in_class |= pattern[1] == text[0];
      pattern.remove_prefix(2);
    } else if (pattern.size() > 2 && pattern[1] == '-') {
      const char low = std::min(pattern[0], pattern[2]), high = std::max(pattern[0], pattern[2]);
      in_class |= low <= text[0] && text[0] <= high;
      pattern.remove_prefix(3);
    } else {
      in_class |= pattern[0] == text[0];
      pattern.remove_prefix(1);
    }
  }
  if (!pattern.empty()) pattern.remove_prefix(1);
  return in_class != negated && Reference(pattern, text.substr(1));
}

TEST(GlobRandomTest, AgreesWithTheDefinition) {
  Random random;
  SCOPED_TRACE(random.Replay());
  int matches = 0;
  for (int round = 0; round < 200000; ++round) {
    const std::string pattern = random.Text(random.Below(10), "aabbc**?[]^-\\");
    const std::string text = random.Text(random.Below(8), "aabbc]-^");
    const bool expected = Reference(pattern, text);
    matches += expected;
    ASSERT_EQ(GlobMatch(pattern, text), expected) << pattern << " ~ " << text;
  }
  EXPECT_GT(matches, 1000);
}

TEST(GlobTest, ManyStarsAreNotExponential) {
  std::string pattern;
  for (int i = 0; i < 500; ++i) pattern += "a*";
  const std::string text(5000, 'a');
  // If they were, this would take longer than the universe.
  EXPECT_TRUE(GlobMatch(pattern, text));
  EXPECT_FALSE(GlobMatch(pattern + "b", text));
  EXPECT_FALSE(GlobMatch("*" + std::string(2000, 'a') + "b", text));
  EXPECT_FALSE(GlobMatch("*[" + std::string(2000, 'x') + "]b", text));
}

}  // namespace
}  // namespace moonpool::protocol
