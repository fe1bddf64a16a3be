#include "protocol/decimal.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "tests/protocol/random.h"

namespace moonpool::protocol {
namespace {

using namespace std::string_literals;
using test::Random;

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

std::string Format(int64_t value) {
  char text[kMaxInt64Text];
  return {text, static_cast<size_t>(FormatInt64(text, value) - text)};
}
std::string FormatUnsigned(uint64_t value) {
  char text[kMaxInt64Text];
  return {text, static_cast<size_t>(FormatUint64(text, value) - text)};
}

// Numbers of every length, around powers of ten and of two.
std::vector<uint64_t> Interesting() {
  std::vector<uint64_t> numbers = {0};
  for (uint64_t power = 1; power < UINT64_MAX / 10; power *= 10) {
    for (const uint64_t n : {power - 1, power, power + 1, power * 9, power * 10 - 1}) {
      numbers.push_back(n);
    }
  }
  for (int bit = 0; bit < 64; ++bit) {
    for (const uint64_t delta : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
      numbers.push_back((uint64_t{1} << bit) + delta);
    }
  }
  numbers.push_back(UINT64_MAX);
  return numbers;
}

TEST(DecimalTest, IntegersThereAndBack) {
  for (const uint64_t n : Interesting()) {
    EXPECT_EQ(FormatUnsigned(n), std::to_string(n));
    EXPECT_EQ(ParseUint64(std::to_string(n)), n);
    const auto value = static_cast<int64_t>(n);
    EXPECT_EQ(Format(value), std::to_string(value));
    EXPECT_EQ(ParseInt64(std::to_string(value)), value);
  }
}

TEST(DecimalTest, IntegersOutOfRange) {
  EXPECT_EQ(ParseInt64("9223372036854775807"), kMax);
  EXPECT_EQ(ParseInt64("-9223372036854775808"), kMin);
  for (const char* text : {"9223372036854775808", "-9223372036854775809", "18446744073709551615",
                           "18446744073709551616", "-18446744073709551616", "99999999999999999999",
                           "-99999999999999999999", "100000000000000000000"}) {
    EXPECT_EQ(ParseInt64(text), std::nullopt) << text;
  }
  EXPECT_EQ(ParseUint64("18446744073709551615"), UINT64_MAX);
  for (const char* text : {"18446744073709551616", "27670116110564327424", "99999999999999999999",
                           "184467440737095516150"}) {
    EXPECT_EQ(ParseUint64(text), std::nullopt) << text;
  }
}

TEST(DecimalTest, TextsThatAreNoIntegers) {
  for (const std::string& text :
       {""s,   "-"s,   "+1"s, "-0"s,  "01"s,  "-01"s, "00"s, " 1"s, "1 "s, "1\n"s, "1\0"s,
        "\0"s, "--1"s, "1-"s, "0x1"s, "1e3"s, "1.0"s, "a"s,  "1a"s, "1/"s, "1:"s,  "\xff"s}) {
    EXPECT_EQ(ParseInt64(text), std::nullopt) << text;
    EXPECT_EQ(ParseUint64(text), std::nullopt) << text;
  }
  EXPECT_EQ(ParseUint64("-1"), std::nullopt);
  EXPECT_EQ(ParseInt64(std::string_view()), std::nullopt);
}

TEST(DecimalRandomTest, AgreesWithTheStandardLibrary) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < 100000; ++round) {
    const uint64_t n = random.Next() >> random.Below(64);
    ASSERT_EQ(FormatUnsigned(n), std::to_string(n));
    ASSERT_EQ(ParseUint64(std::to_string(n)), n);
    // A text is a number exactly when the number writes itself that way.
    const std::string text =
        random.Text(random.Below(21), random.Chance(0.9) ? "0123456789" : "-019 a");
    char* end = nullptr;
    errno = 0;
    const int64_t value = std::strtoll(text.c_str(), &end, 10);
    const bool exact = errno == 0 && std::to_string(value) == text;
    ASSERT_EQ(ParseInt64(text), exact ? std::optional<int64_t>(value) : std::nullopt) << text;
  }
}

TEST(DecimalTest, LongDoubles) {
  EXPECT_EQ(ParseLongDouble("3.0"), 3.0L);
  EXPECT_EQ(ParseLongDouble("-1.5e3"), -1500.0L);
  EXPECT_EQ(ParseLongDouble("0x10"), 16.0L);
  EXPECT_EQ(ParseLongDouble("+2"), 2.0L);
  EXPECT_EQ(ParseLongDouble(".5"), 0.5L);
  EXPECT_EQ(ParseLongDouble("inf"), std::numeric_limits<long double>::infinity());
  EXPECT_EQ(ParseLongDouble("-Infinity"), -std::numeric_limits<long double>::infinity());
  for (const std::string& text : {""s, " 1"s, "\t1"s, "1 "s, "nan"s, "-nan"s, "1x"s, "1e99999"s,
                                  "-1e99999"s, "1e-99999"s, "1\0"s, "one"s, "1.2.3"s}) {
    EXPECT_EQ(ParseLongDouble(text), std::nullopt) << text;
  }
  EXPECT_EQ(ParseLongDouble(std::string(5119, '1')).has_value(), false);  // out of range
  EXPECT_EQ(ParseLongDouble("1." + std::string(5117, '0')), 1.0L);
  EXPECT_EQ(ParseLongDouble("1." + std::string(5118, '0')), std::nullopt);  // over Redis's 5 KiB
}

TEST(DecimalTest, LongDoublesAsIncrByFloatWritesThem) {
  EXPECT_EQ(FormatLongDouble(0), "0");
  EXPECT_EQ(FormatLongDouble(-0.0L), "0");
  EXPECT_EQ(FormatLongDouble(-1e-30L), "0");
  EXPECT_EQ(FormatLongDouble(10), "10");
  EXPECT_EQ(FormatLongDouble(-100), "-100");
  EXPECT_EQ(FormatLongDouble(10.5L), "10.5");
  EXPECT_EQ(FormatLongDouble(3.14L), "3.14");
  EXPECT_EQ(FormatLongDouble(1e20L), "100000000000000000000");
  EXPECT_EQ(FormatLongDouble(std::numeric_limits<long double>::infinity()), "inf");
  EXPECT_EQ(FormatLongDouble(-std::numeric_limits<long double>::infinity()), "-inf");
  EXPECT_EQ(FormatLongDouble(std::numeric_limits<long double>::max()).size(), 4933u);
  EXPECT_EQ(FormatLongDouble(std::numeric_limits<long double>::lowest()).size(), 4934u);
}

TEST(DecimalTest, MemorySizes) {
  const struct {
    const char* text;
    uint64_t bytes;
  } good[] = {{"0", 0},
              {"00", 0},
              {"1024", 1024},
              {"007", 7},
              {"100b", 100},
              {"64k", 64000},
              {"64kb", 65536},
              {"64KB", 65536},
              {"1M", 1000000},
              {"1mb", 1 << 20},
              {"2g", 2000000000},
              {"1Gb", 1 << 30},
              {"1t", 1000000000000},
              {"1tb", 1ull << 40},
              {"16777215tb", 16777215ull << 40},
              {"18446744073709551615", UINT64_MAX}};
  for (const auto& c : good) EXPECT_EQ(ParseMemorySize(c.text), c.bytes) << c.text;
  for (const char* text :
       {"", "b", "kb", "-1", "-1mb", "+1", " 1", "1 ", "1 kb", "1kbb", "1pb", "1.5gb", "0x10",
        "16777216tb", "18446744073709551616", "18446744073709551615b1", "20000000t", "1k2"}) {
    EXPECT_EQ(ParseMemorySize(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace moonpool::protocol
