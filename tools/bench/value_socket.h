// Large values over plain RESP, with as little work on the client's side as possible: what is
// read is dropped, what is written comes from one warm buffer.
//
// Threads: one at a time.  Throws Failure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/unique_fd.h"

namespace moonpool::bench {

class ValueSocket {
 public:
  // Sends and reads up to `buffer_bytes` at once.
  explicit ValueSocket(int port, size_t buffer_bytes = 256 * 1024);

  // The value must have `bytes` bytes.
  void Get(std::string_view key, uint64_t bytes);
  // False: the server answered -OOM.
  bool Set(std::string_view key, uint64_t bytes);
  void Del(std::string_view key);

 private:
  // `more` follows at once: wait with a packet that is not full.
  void SendAll(const char* data, size_t bytes, bool more = false);
  std::string ReadLine();

  UniqueFd fd_;
  std::vector<char> buffer_;  // what is sent, and where what is read goes
  // Read but not used yet, in its own small buffer.
  std::string ahead_;
};

}  // namespace moonpool::bench
