#include "protocol/decimal.h"

#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace moonpool::protocol {

namespace {

constexpr char kDigitPairs[] =
    "0001020304050607080910111213141516171819"
    "2021222324252627282930313233343536373839"
    "4041424344454647484950515253545556575859"
    "6061626364656667686970717273747576777879"
    "8081828384858687888990919293949596979899";

}  // namespace

char* FormatUint64(char* out, uint64_t value) {
  char reversed[kMaxInt64Text];
  char* p = reversed + sizeof(reversed);
  while (value >= 100) {
    const uint64_t pair = value % 100;
    value /= 100;
    p -= 2;
    std::memcpy(p, kDigitPairs + pair * 2, 2);
  }
  if (value >= 10) {
    p -= 2;
    std::memcpy(p, kDigitPairs + value * 2, 2);
  } else {
    *--p = static_cast<char>('0' + value);
  }
  const size_t size = static_cast<size_t>(reversed + sizeof(reversed) - p);
  std::memcpy(out, p, size);
  return out + size;
}

char* FormatInt64(char* out, int64_t value) {
  if (value < 0) {
    *out++ = '-';
    return FormatUint64(out, 0 - static_cast<uint64_t>(value));
  }
  return FormatUint64(out, static_cast<uint64_t>(value));
}

std::optional<uint64_t> ParseUint64(std::string_view text) {
  if (text.empty() || text.size() > 20) return std::nullopt;
  if (text[0] == '0') return text.size() == 1 ? std::optional<uint64_t>(0) : std::nullopt;
  uint64_t value = 0;
  for (const char c : text) {
    const unsigned digit = static_cast<unsigned char>(c) - unsigned{'0'};
    if (digit > 9) return std::nullopt;
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, uint64_t{digit}, &value)) {
      return std::nullopt;
    }
  }
  return value;
}

std::optional<int64_t> ParseInt64(std::string_view text) {
  const bool negative = !text.empty() && text[0] == '-';
  const auto magnitude = ParseUint64(negative ? text.substr(1) : text);
  if (!magnitude || (negative && *magnitude == 0)) return std::nullopt;
  constexpr uint64_t kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (*magnitude > kMax + (negative ? 1 : 0)) return std::nullopt;
  return static_cast<int64_t>(negative ? 0 - *magnitude : *magnitude);
}

std::optional<long double> ParseLongDouble(std::string_view text) {
  char buffer[5 * 1024];  // Redis's MAX_LONG_DOUBLE_CHARS
  if (text.empty() || text.size() >= sizeof(buffer) ||
      std::isspace(static_cast<unsigned char>(text[0]))) {
    return std::nullopt;
  }
  std::memcpy(buffer, text.data(), text.size());
  buffer[text.size()] = '\0';
  char* end = nullptr;
  errno = 0;
  const long double value = std::strtold(buffer, &end);
  if (end != buffer + text.size()) return std::nullopt;
  if (std::isnan(value)) return std::nullopt;
  if (errno == ERANGE && (std::isinf(value) || value == 0)) return std::nullopt;
  return value;
}

std::string FormatLongDouble(long double value) {
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[5 * 1024];
  int size = std::snprintf(buffer, sizeof(buffer), "%.17Lf", value);
  if (std::memchr(buffer, '.', static_cast<size_t>(size)) != nullptr) {
    while (buffer[size - 1] == '0') --size;
    if (buffer[size - 1] == '.') --size;
  }
  if (size == 2 && buffer[0] == '-' && buffer[1] == '0') return "0";
  return std::string(buffer, static_cast<size_t>(size));
}

std::optional<uint64_t> ParseMemorySize(std::string_view text) {
  size_t digits = 0;
  while (digits < text.size() && std::isdigit(static_cast<unsigned char>(text[digits]))) ++digits;
  std::string unit;
  for (const char c : text.substr(digits)) {
    unit += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  struct Unit {
    const char* name;
    uint64_t factor;
  };
  static constexpr Unit kUnits[] = {
      {"", 1},           {"b", 1},          {"k", 1000},          {"kb", 1ull << 10},
      {"m", 1000000},    {"mb", 1ull << 20}, {"g", 1000000000},   {"gb", 1ull << 30},
      {"t", 1000000000000}, {"tb", 1ull << 40},
  };
  while (digits > 1 && text[0] == '0') {  // memory sizes, unlike integers, may have leading zeros
    text.remove_prefix(1);
    --digits;
  }
  const auto number = ParseUint64(text.substr(0, digits));
  if (!number) return std::nullopt;
  for (const Unit& candidate : kUnits) {
    if (unit != candidate.name) continue;
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(*number, candidate.factor, &bytes)) return std::nullopt;
    return bytes;
  }
  return std::nullopt;
}

}  // namespace moonpool::protocol
