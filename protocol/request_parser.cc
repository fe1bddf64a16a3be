#include "protocol/request_parser.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <optional>

#include "protocol/decimal.h"

namespace moonpool::protocol {

namespace {

// "*" and "$" lines longer than this cannot be numbers (Redis allows an inline's length here too).
constexpr size_t kMaxHeaderBytes = 64 * 1024;
constexpr int64_t kUnauthenticatedArguments = 10;
constexpr int64_t kUnauthenticatedBulkBytes = 16 * 1024;
// A hostile "*1048576" must not make us reserve for a million arguments that never come.
constexpr int64_t kMaxReservedArguments = 1024;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// One argument of an inline line, with redis-cli's quoting ("..." with \n \r \t \b \a \xHH, '...'
// with \').  Appends its text to `out`; false on unbalanced quotes.
bool Unquote(std::string_view line, size_t& i, std::string& out) {
  enum { kPlain, kDouble, kSingle } mode = kPlain;
  for (;; ++i) {
    if (i == line.size()) return mode == kPlain;
    const char c = line[i];
    const char next = i + 1 < line.size() ? line[i + 1] : '\0';
    if (mode == kPlain) {
      if (std::isspace(static_cast<unsigned char>(c)) || c == '\0') return true;
      if (c == '"') {
        mode = kDouble;
      } else if (c == '\'') {
        mode = kSingle;
      } else {
        out += c;
      }
    } else if (mode == kDouble) {
      if (c == '\\' && next == 'x' && i + 3 < line.size() && HexDigit(line[i + 2]) >= 0 &&
          HexDigit(line[i + 3]) >= 0) {
        out += static_cast<char>(HexDigit(line[i + 2]) * 16 + HexDigit(line[i + 3]));
        i += 3;
      } else if (c == '\\' && i + 1 < line.size()) {
        switch (next) {
          case 'n': out += '\n'; break;
          case 'r': out += '\r'; break;
          case 't': out += '\t'; break;
          case 'b': out += '\b'; break;
          case 'a': out += '\a'; break;
          default: out += next;
        }
        ++i;
      } else if (c == '"') {
        // A closing quote must be followed by a space or nothing at all.
        ++i;
        return i == line.size() || std::isspace(static_cast<unsigned char>(line[i]));
      } else {
        out += c;
      }
    } else {
      if (c == '\\' && next == '\'') {
        out += '\'';
        ++i;
      } else if (c == '\'') {
        ++i;
        return i == line.size() || std::isspace(static_cast<unsigned char>(line[i]));
      } else {
        out += c;
      }
    }
  }
}

// The number in a header line is nearly always one to seven digits.
std::optional<int64_t> ParseHeaderNumber(std::string_view text) {
  if (text.size() == 1 && text[0] >= '0' && text[0] <= '9') return text[0] - '0';
  return ParseInt64(text);
}

}  // namespace

RequestParser::Event RequestParser::Fail(std::string text) {
  error_ = std::move(text);
  return Event::kError;
}

bool RequestParser::FindLine(std::string_view frame, std::string_view* line) {
  const size_t from = std::max(searched_, position_);
  const char* end =
      from < frame.size()
          ? static_cast<const char*>(std::memchr(frame.data() + from, '\r', frame.size() - from))
          : nullptr;
  // As Redis, the byte behind '\r' is taken to be '\n' without a look.
  if (end == nullptr || end + 1 == frame.data() + frame.size()) {
    searched_ = end == nullptr ? frame.size() : static_cast<size_t>(end - frame.data());
    return false;
  }
  *line = frame.substr(position_, static_cast<size_t>(end - frame.data()) - position_);
  return true;
}

RequestParser::Event RequestParser::Parse(std::string_view frame, const ParserLimits& limits) {
  if (state_ == State::kStart) {
    if (frame.empty()) return Event::kNeedMore;
    if (frame[0] != '*') return ParseInline(frame, limits);
    std::string_view line;
    const bool whole = FindLine(frame, &line);
    if ((whole ? line.size() : searched_) > kMaxHeaderBytes) {
      return Fail("Protocol error: too big mbulk count string");
    }
    if (!whole) return Event::kNeedMore;
    const auto count = ParseHeaderNumber(line.substr(1));
    if (!count || *count > limits.max_arguments) {
      return Fail("Protocol error: invalid multibulk length");
    }
    if (*count > kUnauthenticatedArguments && !limits.authenticated) {
      return Fail("Protocol error: unauthenticated multibulk length");
    }
    position_ = line.size() + 2;
    remaining_ = std::max<int64_t>(*count, 0);
    arguments_.reserve(static_cast<size_t>(std::min(remaining_, kMaxReservedArguments)));
    state_ = State::kBulkHeader;
  }
  for (;;) {
    switch (state_) {
      case State::kBulkHeader: {
        if (remaining_ == 0) return Event::kCommand;
        if (position_ >= frame.size()) return Event::kNeedMore;
        if (frame[position_] != '$') {
          return Fail(std::string("Protocol error: expected '$', got '") + frame[position_] + "'");
        }
        std::string_view line;
        const bool whole = FindLine(frame, &line);
        if ((whole ? line.size() : searched_ - position_) > kMaxHeaderBytes) {
          return Fail("Protocol error: too big bulk count string");
        }
        if (!whole) return Event::kNeedMore;
        const auto size = ParseHeaderNumber(line.substr(1));
        if (!size || *size < 0 || *size > limits.max_bulk_bytes) {
          return Fail("Protocol error: invalid bulk length");
        }
        if (*size > kUnauthenticatedBulkBytes && !limits.authenticated) {
          return Fail("Protocol error: unauthenticated bulk length");
        }
        position_ += line.size() + 2;
        body_bytes_ = static_cast<size_t>(*size);
        if (body_bytes_ >= limits.body_threshold) return Event::kBody;
        state_ = State::kBulkData;
        [[fallthrough]];
      }
      case State::kBulkData:
        if (frame.size() - position_ < body_bytes_ + 2) return Event::kNeedMore;
        arguments_.push_back({position_, body_bytes_});
        position_ += body_bytes_ + 2;
        --remaining_;
        state_ = State::kBulkHeader;
        break;
      case State::kBodyEnd:
        if (frame.size() - position_ < 2) return Event::kNeedMore;
        position_ += 2;
        --remaining_;
        state_ = State::kBulkHeader;
        break;
      case State::kStart:  // left above
        __builtin_unreachable();
    }
  }
}

RequestParser::Event RequestParser::ParseInline(std::string_view frame,
                                                const ParserLimits& limits) {
  const char* end = static_cast<const char*>(
      std::memchr(frame.data() + searched_, '\n', frame.size() - searched_));
  searched_ = end == nullptr ? frame.size() : static_cast<size_t>(end - frame.data());
  if (searched_ > limits.max_inline_bytes) return Fail("Protocol error: too big inline request");
  if (end == nullptr) return Event::kNeedMore;
  std::string_view line = frame.substr(0, searched_);
  position_ = line.size() + 1;
  is_inline_ = true;
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  for (size_t i = 0;;) {
    while (i < line.size() && std::isspace(static_cast<unsigned char>(line[i]))) ++i;
    if (i == line.size() || line[i] == '\0') return Event::kCommand;
    const size_t offset = inline_text_.size();
    if (!Unquote(line, i, inline_text_)) {
      return Fail("Protocol error: unbalanced quotes in request");
    }
    arguments_.push_back({offset, inline_text_.size() - offset});
  }
}

void RequestParser::BodyTaken() {
  arguments_.push_back({position_, body_bytes_, bodies_++});
  state_ = State::kBodyEnd;
}

void RequestParser::NextFrame() {
  state_ = State::kStart;
  position_ = 0;
  searched_ = 0;
  bodies_ = 0;
  arguments_.clear();
  if (is_inline_) {
    is_inline_ = false;
    inline_text_.clear();
  }
}

}  // namespace moonpool::protocol
