#include "protocol/reply_buffer.h"

#include <cmath>
#include <cstdio>

namespace moonpool::protocol {

void ReplyBuffer::Error(std::string_view text) {
  char* p = Reserve(text.size() + 3);
  *p++ = '-';
  for (const char c : text) *p++ = c == '\r' || c == '\n' ? ' ' : c;
  *p++ = '\r';
  *p++ = '\n';
  Advance(text.size() + 3);
}

void ReplyBuffer::Double(double value) {
  char text[64];
  int size;
  if (std::isinf(value)) {
    size = std::snprintf(text, sizeof(text), "%s", value > 0 ? "inf" : "-inf");
  } else {
    size = std::snprintf(text, sizeof(text), "%.17g", value);
  }
  const std::string_view view(text, static_cast<size_t>(size));
  resp_ >= 3 ? Line(',', view) : Bulk(view);
}

void ReplyBuffer::Verbatim(std::string_view text) {
  if (resp_ < 3) return Bulk(text);
  Number('=', static_cast<int64_t>(text.size() + 4));
  Raw("txt:");
  Raw(text);
  Raw("\r\n");
}

}  // namespace moonpool::protocol
