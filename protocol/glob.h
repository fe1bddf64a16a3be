#pragma once

#include <string_view>

namespace moonpool::protocol {

// Redis's glob: * ? [abc] [a-z] [^a] and backslash escapes, byte-wise.  Work is bounded by
// |pattern| x |text| whatever the number of stars.
bool GlobMatch(std::string_view pattern, std::string_view text, bool ignore_case = false);

// ASCII-only comparison and lower-casing, as command names and options need them.
bool EqualsIgnoreCase(std::string_view a, std::string_view b);

}  // namespace moonpool::protocol
