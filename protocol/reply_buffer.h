// Serialises replies of both RESP versions into one growing buffer.
//
// Threads: one.  Strings are written as they are: simple strings and errors must not contain CR or LF (Error()
// replaces them).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "protocol/byte_buffer.h"
#include "protocol/decimal.h"

namespace moonpool::protocol {

class ReplyBuffer : public ByteBuffer {
 public:
  // What a null, a map, a set or a double looks like depends on the connection's version.
  void set_resp(int version) { resp_ = version; }
  int resp() const { return resp_; }

  void Raw(std::string_view bytes) { Append(bytes); }
  void Ok() { Raw("+OK\r\n"); }
  void Simple(std::string_view text) { Line('+', text); }
  // `text` begins with its code: "ERR unknown command ...".
  void Error(std::string_view text);
  void Integer(int64_t value) { Number(':', value); }
  void Bulk(std::string_view bytes) {
    char* start = Reserve(kMaxHeader + bytes.size() + 2);
    char* p = Header(start, '$', bytes.size());
    if (!bytes.empty()) std::memcpy(p, bytes.data(), bytes.size());
    p += bytes.size();
    *p++ = '\r';
    *p++ = '\n';
    Advance(static_cast<size_t>(p - start));
  }
  // The header of a bulk string whose bytes the caller sends itself, with "\r\n" behind them.
  void BulkHeader(uint64_t size) { Number('$', static_cast<int64_t>(size)); }
  void BulkInteger(int64_t value) {
    char text[kMaxInt64Text];
    Bulk({text, static_cast<size_t>(FormatInt64(text, value) - text)});
  }
  void Null() { Raw(resp_ >= 3 ? "_\r\n" : "$-1\r\n"); }
  void NullArray() { Raw(resp_ >= 3 ? "_\r\n" : "*-1\r\n"); }
  void Array(size_t count) { Number('*', static_cast<int64_t>(count)); }
  // A map of `pairs` pairs; the same as a flat array in RESP2.
  void Map(size_t pairs) {
    resp_ >= 3 ? Number('%', static_cast<int64_t>(pairs)) : Array(pairs * 2);
  }
  void Set(size_t count) { Number(resp_ >= 3 ? '~' : '*', static_cast<int64_t>(count)); }
  void Boolean(bool value) {
    resp_ >= 3 ? Raw(value ? "#t\r\n" : "#f\r\n") : Integer(value ? 1 : 0);
  }
  void Double(double value);
  // INFO-like text: a verbatim string in RESP3.
  void Verbatim(std::string_view text);

 private:
  static constexpr size_t kMaxHeader = kMaxInt64Text + 3;

  static char* Header(char* p, char type, uint64_t value) {
    *p++ = type;
    p = FormatUint64(p, value);
    *p++ = '\r';
    *p++ = '\n';
    return p;
  }
  void Number(char type, int64_t value) {
    char* start = Reserve(kMaxHeader);
    char* p = start;
    *p++ = type;
    p = FormatInt64(p, value);
    *p++ = '\r';
    *p++ = '\n';
    Advance(static_cast<size_t>(p - start));
  }
  void Line(char type, std::string_view text) {
    char* p = Reserve(text.size() + 3);
    *p++ = type;
    std::memcpy(p, text.data(), text.size());
    p += text.size();
    *p++ = '\r';
    *p++ = '\n';
    Advance(text.size() + 3);
  }
  int resp_ = 2;
};

}  // namespace moonpool::protocol
