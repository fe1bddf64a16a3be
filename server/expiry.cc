#include "server/expiry.h"

#include <string>

#include "protocol/glob.h"

namespace moonpool::server {

std::optional<ExpiryUnit> ParseExpiryWord(std::string_view word) {
  using protocol::EqualsIgnoreCase;
  if (EqualsIgnoreCase(word, "EX")) return ExpiryUnit{true, false};
  if (EqualsIgnoreCase(word, "PX")) return ExpiryUnit{false, false};
  if (EqualsIgnoreCase(word, "EXAT")) return ExpiryUnit{true, true};
  if (EqualsIgnoreCase(word, "PXAT")) return ExpiryUnit{false, true};
  return std::nullopt;
}

std::optional<int64_t> ParseExpiry(Context& context, size_t index, const ExpiryUnit& unit,
                                   bool allow_past) {
  const auto value = context.Integer(index);
  if (!value) return std::nullopt;
  int64_t at = *value;
  bool valid = allow_past || at > 0;
  if (unit.seconds) valid = valid && !__builtin_mul_overflow(at, int64_t{1000}, &at);
  if (!unit.absolute) valid = valid && !__builtin_add_overflow(at, context.now_ms, &at);
  if (valid) return at;
  context.Error("ERR invalid expire time in '" + std::string(context.command.name) +
                "' command");
  return std::nullopt;
}

}  // namespace moonpool::server
