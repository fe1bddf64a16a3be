// Plays the connection around a RequestParser: keeps the bytes of the frame, cuts bodies out as
// the parser's contract says, and collects what comes out.  Every call of the parser gets the
// bytes in a fresh heap block of exactly their size, so that AddressSanitizer sees a read past
// the end and nobody can rely on the buffer staying where it was.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/request_parser.h"
#include "protocol/status.h"

namespace moonpool::protocol {

struct Parsed {
  std::vector<std::vector<std::string>> commands;  // without empty ones
  std::string error;

  friend bool operator==(const Parsed&, const Parsed&) = default;
};

class ParserDriver {
 public:
  // `fast_path`: try ParseWhole between frames, as the server does.
  ParserDriver(const ParserLimits& limits, bool fast_path)
      : limits_(limits), fast_path_(fast_path) {}

  void Feed(std::string_view bytes) {
    if (!parsed_.error.empty()) return;
    if (body_missing_ > 0) {
      const size_t taken = std::min(body_missing_, bytes.size());
      bodies_.back().append(bytes.substr(0, taken));
      body_missing_ -= taken;
      if (body_missing_ > 0) return;
      bytes.remove_prefix(taken);
      parser_.BodyTaken();
    }
    buffer_.append(bytes);
    while (Step()) {
    }
  }

  const Parsed& parsed() const { return parsed_; }
  const RequestParser& parser() const { return parser_; }
  size_t bodies_seen() const { return bodies_seen_; }
  size_t whole_frames() const { return whole_frames_; }
  // Nothing of an unfinished frame is left.
  bool between_frames() const { return buffer_.empty() && parser_.idle(); }

 private:
  bool Step() {
    const std::unique_ptr<char[]> copy(new char[buffer_.size()]);
    if (!buffer_.empty()) std::memcpy(copy.get(), buffer_.data(), buffer_.size());
    const std::string_view frame(copy.get(), buffer_.size());
    if (fast_path_ && parser_.idle() && !frame.empty()) {
      std::vector<std::string> arguments;
      size_t count = 0;
      const size_t used = RequestParser::ParseWhole(
          frame, limits_, &count, [&](std::string_view text) { arguments.emplace_back(text); });
      MOONPOOL_CHECK(used <= frame.size());
      MOONPOOL_CHECK(used == 0 || count == arguments.size());
      if (used > 0) {
        ++whole_frames_;
        parsed_.commands.push_back(std::move(arguments));
        buffer_.erase(0, used);
        return true;
      }
    }
    switch (parser_.Parse(frame, limits_)) {
      case RequestParser::Event::kNeedMore:
        return false;
      case RequestParser::Event::kError:
        parsed_.error = parser_.error();
        MOONPOOL_CHECK(!parsed_.error.empty());
        return false;
      case RequestParser::Event::kCommand:
        TakeCommand(frame);
        return true;
      case RequestParser::Event::kBody:
        return TakeBody();
    }
    __builtin_unreachable();
  }

  void TakeCommand(std::string_view frame) {
    MOONPOOL_CHECK(parser_.frame_bytes() <= frame.size());
    const std::string_view base = parser_.is_inline() ? parser_.InlineText() : frame;
    std::vector<std::string> arguments;
    for (const RequestParser::Argument& argument : parser_.arguments()) {
      if (argument.body == RequestParser::Argument::kInline) {
        MOONPOOL_CHECK(argument.offset + argument.size <= base.size());
        arguments.emplace_back(base.substr(argument.offset, argument.size));
      } else {
        arguments.push_back(bodies_.at(argument.body));
        MOONPOOL_CHECK(arguments.back().size() == argument.size);
      }
    }
    if (!arguments.empty()) parsed_.commands.push_back(std::move(arguments));
    buffer_.erase(0, parser_.frame_bytes());
    bodies_.clear();
    parser_.NextFrame();
    MOONPOOL_CHECK(parser_.idle());
  }

  // False when part of the body is still to come.
  bool TakeBody() {
    ++bodies_seen_;
    const size_t at = parser_.frame_bytes();
    const size_t there = std::min(parser_.body_bytes(), buffer_.size() - at);
    bodies_.push_back(buffer_.substr(at, there));
    buffer_.erase(at, there);
    body_missing_ = parser_.body_bytes() - there;
    if (body_missing_ > 0) return false;
    parser_.BodyTaken();
    return true;
  }

  const ParserLimits limits_;
  const bool fast_path_;
  RequestParser parser_;
  std::string buffer_;
  std::vector<std::string> bodies_;  // of the frame being parsed
  size_t body_missing_ = 0;
  size_t bodies_seen_ = 0;
  size_t whole_frames_ = 0;
  Parsed parsed_;
};

inline Parsed ParseAtOnce(std::string_view input, const ParserLimits& limits,
                          bool fast_path = false) {
  ParserDriver driver(limits, fast_path);
  driver.Feed(input);
  return driver.parsed();
}

}  // namespace moonpool::protocol
