// Incremental parser for what clients send: RESP arrays of bulk strings, and inline commands.
//
// It knows no sockets and copies nothing: the caller keeps the bytes of the frame being parsed in
// one contiguous buffer and passes that buffer again whenever more has arrived; arguments come
// back as offsets into it, so the buffer may move between calls.  A bulk string of at least
// `body_threshold` bytes is announced as a *body* instead: its bytes never enter the buffer, the
// caller takes them straight to where they belong.
//
// Threads: one.  Work is linear in the bytes passed, however they are fragmented.
// Format: https://redis.io/docs/reference/protocol-spec/; error texts are Redis 7's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moonpool::protocol {

struct ParserLimits {
  int64_t max_bulk_bytes = 512ll << 20;  // proto-max-bulk-len
  int64_t max_arguments = 1024 * 1024;
  size_t max_inline_bytes = 64 * 1024;
  size_t body_threshold = SIZE_MAX;  // bulk strings of at least this many bytes become bodies
  bool authenticated = true;         // false: at most 10 arguments of 16 KiB, as Redis has it
};

class RequestParser {
 public:
  enum class Event {
    kNeedMore,  // append bytes behind the buffer and call Parse again
    kCommand,   // arguments() is one whole command (maybe empty: ignore it), frame_bytes() long
    kBody,      // argument number arguments().size() is a body; take it and call BodyTaken()
    kError,     // error() is the text after "-ERR "; the connection must be closed
  };

  struct Argument {
    static constexpr uint32_t kInline = UINT32_MAX;
    size_t offset = 0;  // from the start of the frame, or from InlineText() for inline commands
    size_t size = 0;
    uint32_t body = kInline;  // index of the body in its frame, or kInline
  };

  // The usual case in one pass: a whole array of plain bulk strings at the front of `input`.
  // Calls argument(string_view) for each and returns the frame's length; 0 when it is anything
  // else (unfinished, inline, wrong, a body, an empty array): `*count` calls were in vain then,
  // and Parse() takes it from the start.  REQUIRES: idle().
  template <typename OnArgument>
  static size_t ParseWhole(std::string_view input, const ParserLimits& limits, size_t* count,
                           OnArgument&& argument);

  // `frame` starts at the first byte of the current frame and holds everything received since.
  Event Parse(std::string_view frame, const ParserLimits& limits);

  // After kBody: the body's size.  The bytes that belong to it start at offset frame_bytes() of
  // the buffer; the caller cuts out those that are there, reads the rest, then calls
  // BodyTaken() and goes on with a buffer in which the body's bytes are missing.
  size_t body_bytes() const { return body_bytes_; }
  void BodyTaken();

  // After kCommand: forget the frame; the next Parse gets a buffer that starts behind it.
  void NextFrame();

  const std::vector<Argument>& arguments() const { return arguments_; }
  size_t frame_bytes() const { return position_; }
  // True between frames: nothing of the next one has been seen.
  bool idle() const { return position_ == 0 && searched_ == 0; }
  // Inline commands are unquoted into here; their arguments are offsets into it.
  bool is_inline() const { return is_inline_; }
  const std::string& InlineText() const { return inline_text_; }
  const std::string& error() const { return error_; }

 private:
  enum class State { kStart, kBulkHeader, kBulkData, kBodyEnd };

  Event ParseInline(std::string_view frame, const ParserLimits& limits);
  Event Fail(std::string text);
  // Finds the line that starts at position_.  False when its end has not arrived; what there is of
  // it lies before searched_.
  bool FindLine(std::string_view frame, std::string_view* line);

  State state_ = State::kStart;
  size_t position_ = 0;    // next byte to look at, from the start of the frame
  size_t searched_ = 0;    // no line end before this offset
  int64_t remaining_ = 0;  // arguments still to come
  size_t body_bytes_ = 0;
  uint32_t bodies_ = 0;
  bool is_inline_ = false;
  std::vector<Argument> arguments_;
  std::string inline_text_;
  std::string error_;
};

template <typename OnArgument>
size_t RequestParser::ParseWhole(std::string_view input, const ParserLimits& limits, size_t* count,
                                 OnArgument&& argument) {
  const char* p = input.data();
  const char* const end = p + input.size();
  *count = 0;
  // "<type><digits>\r\n" with one to seven digits; SIZE_MAX for anything else.
  const auto header = [&p, end](char type) -> size_t {
    constexpr ptrdiff_t kLongest = 10;  // type, seven digits, CR, LF
    if (end - p < kLongest && (end - p < 4 || end[-1] != '\n')) return SIZE_MAX;
    if (*p != type) return SIZE_MAX;
    const char* q = p + 1;
    size_t value = static_cast<unsigned char>(*q) - size_t{'0'};
    // A leading zero is only right alone.
    if (value > 9 || (value == 0 && q[1] != '\r')) return SIZE_MAX;
    for (int digits = 1; digits <= 7; ++digits) {
      ++q;
      if (*q == '\r') {
        if (end - q < 2) return SIZE_MAX;
        p = q + 2;
        return value;
      }
      const size_t digit = static_cast<unsigned char>(*q) - size_t{'0'};
      if (digit > 9) return SIZE_MAX;
      value = value * 10 + digit;
    }
    return SIZE_MAX;
  };
  const size_t arguments = header('*');
  if (arguments == SIZE_MAX || arguments == 0 || arguments > 1024 ||
      static_cast<int64_t>(arguments) > limits.max_arguments || !limits.authenticated) {
    return 0;
  }
  for (; *count < arguments; ++*count) {
    const size_t size = header('$');
    if (size >= limits.body_threshold || size > static_cast<size_t>(limits.max_bulk_bytes) ||
        static_cast<size_t>(end - p) < size + 2) {
      return 0;
    }
    argument(std::string_view(p, size));
    p += size + 2;
  }
  return static_cast<size_t>(p - input.data());
}

}  // namespace moonpool::protocol
