// A blocking RESP connection from the client's side: commands out, replies in.
//
// Large values never pass through its buffers: they are sent from the caller's memory and
// received into it.
// Threads: one at a time.  Owns the socket.
// Errors: every call that does I/O returns false when the connection is of no further use;
// failure() then says why.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "client/endpoint.h"
#include "client/fork_guard.h"
#include "client/moonpool/client.h"
#include "protocol/byte_buffer.h"

namespace moonpool::client {

// The first line of a reply.
struct ReplyHeader {
  char type = 0;      // one of + - : $ * % ~ _ # , = (
  int64_t value = 0;  // ':' the number; '$' '=' bytes that follow; '*' '%' '~' elements; -1: null
  std::string_view text;  // '+' '-' and others: the line; valid until the next read

  bool is_null() const { return type == '_' || ((type == '$' || type == '*') && value < 0); }
  bool is_error() const { return type == '-'; }
  bool is_bulk() const { return (type == '$' || type == '=') && value >= 0; }
  // Elements that follow, or -1 when it is no aggregate.
  int64_t elements() const {
    if (type == '%') return value * 2;
    return (type == '*' || type == '~') ? value : -1;
  }
};

class RespStream {
 public:
  bool Connect(const Endpoint& endpoint, const Options& options);
  const Status& failure() const { return failure_; }
  bool broken() const { return !failure_.ok(); }
  bool is_unix() const { return unix_; }
  int fd() const { return fd_.get(); }

  // --- writing -----------------------------------------------------------------------------
  // Build a command word by word; nothing is sent before Flush.
  void Begin(size_t words);
  void Word(std::string_view word);
  void Word(int64_t number);
  // The last word of a command, sent from where it lies: Flush()es everything before it.
  bool BodyAndFlush(std::span<const ConstBuffer> pieces, uint64_t bytes);
  bool Flush();
  // A command was built whose reply nobody wants: it is read and dropped before the next one.
  // REQUIRES: no other reply is outstanding.
  void DropReply() { ++dropped_; }

  // --- reading -----------------------------------------------------------------------------
  bool Next(ReplyHeader* header);
  // `bytes` of a bulk string, scattered over `pieces` (which have room), and its CRLF.
  bool ReadBulk(std::span<const Buffer> pieces, uint64_t bytes);
  bool ReadBulk(std::string* to, uint64_t bytes);
  // The rest of a reply whose header was read.
  bool Skip(const ReplyHeader& header);
  // A whole reply as text, arrays one element a line.
  bool ReadText(std::string* text);

  // The rest of it, when its header was read.
  bool AppendText(const ReplyHeader& header, std::string* text);

  // Fails the stream for a reply that is not as the protocol has it.
  bool Unexpected(std::string_view what);

 private:
  bool Fail(Code code, std::string message);
  bool FailErrno(std::string_view what);
  bool SendAll(const char* data, size_t size);
  // At least one more byte in the buffer.
  bool Fill();
  // recv(), spinning first as Options::spin_us says.
  ssize_t Receive(char* to, size_t room);
  bool ReadLine(std::string_view* line);
  bool ReadHeader(ReplyHeader* header);
  bool ReadInto(char* to, uint64_t bytes);
  bool SkipBytes(uint64_t bytes);

  ForkSafeFd fd_;
  bool unix_ = false;
  std::chrono::microseconds spin_{0};
  Status failure_;
  protocol::ByteBuffer out_;
  std::unique_ptr<char[]> in_;
  int dropped_ = 0;  // replies to drop first
  size_t in_begin_ = 0;
  size_t in_end_ = 0;
};

}  // namespace moonpool::client
