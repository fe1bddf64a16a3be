// Requests written out ahead of a measurement, so that a load generator only has to send them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moonpool::bench {

// How to know that a reply is complete without parsing it: its length, or else its lines.
struct ReplyShape {
  char first = 0;    // its first byte
  size_t bytes = 0;  // 0: count lines
  size_t lines = 0;
};

struct Requests {
  std::string bytes;  // all of one length, back to back
  size_t request_bytes = 0;
  size_t count = 0;
  ReplyShape reply;
  // What every connection says first; the reply is only checked for an error.
  std::vector<std::string> greeting;
};

// One command in the protocol's form.
std::string EncodeCommand(const std::vector<std::string_view>& words);
// 16 bytes: "key:000000000042", as redis-benchmark writes them.
std::string NumberedKey(std::string_view prefix, uint64_t number);

// `keys` different keys, all of them once in random order (at least `least` requests).
Requests GetRequests(size_t keys, size_t value_bytes, size_t least = 4096);
// `ttl_seconds` 0: without one.
Requests SetRequests(size_t keys, size_t value_bytes, int ttl_seconds = 0, size_t least = 4096);
// KV.LOCATE of `batch` random keys out of `keys`, whose values are answered by descriptors.
Requests LocateRequests(size_t keys, size_t batch, size_t requests);

}  // namespace moonpool::bench
