// Expiry options as SET, GETEX and the EXPIRE family share them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "server/command.h"

namespace moonpool::server {

struct ExpiryUnit {
  bool seconds;   // else milliseconds
  bool absolute;  // since 1970, else from now

  bool operator==(const ExpiryUnit&) const = default;
};

// EX, PX, EXAT or PXAT; empty for other words.
std::optional<ExpiryUnit> ParseExpiryWord(std::string_view word);

// Argument `index` in that unit as Unix milliseconds.  Replies "ERR invalid expire time in
// 'command' command" and the like, and returns nothing, when it is none.  `allow_past`: the
// EXPIRE family takes zero and negative times (they delete); SET and GETEX do not.
std::optional<int64_t> ParseExpiry(Context& context, size_t index, const ExpiryUnit& unit,
                                   bool allow_past);

}  // namespace moonpool::server
