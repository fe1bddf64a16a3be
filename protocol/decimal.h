// Exact conversions between text and numbers, with Redis's rules: no spaces, no sign but '-',
// no leading zeros, the whole text must be used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moonpool::protocol {

// Longest text FormatInt64 writes ("-9223372036854775808").
inline constexpr size_t kMaxInt64Text = 20;

// Writes `value` at `out` (room for kMaxInt64Text bytes) and returns the end; no terminator.
char* FormatInt64(char* out, int64_t value);
char* FormatUint64(char* out, uint64_t value);

// Redis's string2ll: "0", "-1", "12"; not "", "+1", "01", " 1", "1 ".
std::optional<int64_t> ParseInt64(std::string_view text);
// The same without a sign, up to 2^64 - 1.
std::optional<uint64_t> ParseUint64(std::string_view text);

// Redis's long-double arithmetic for INCRBYFLOAT: accepts what strtold accepts without spaces,
// refuses NaN; hexadecimal, "inf" and exponents are allowed.
std::optional<long double> ParseLongDouble(std::string_view text);
// %.17Lf without trailing zeros, as INCRBYFLOAT replies.
std::string FormatLongDouble(long double value);

// "1024", "100b", "64k" (1000), "64kb" (1024), "1m", "1mb", "1g", "1gb", "1t", "1tb"; case
// does not matter.  Empty when the text is not of that form or does not fit.
std::optional<uint64_t> ParseMemorySize(std::string_view text);

}  // namespace moonpool::protocol
