// A blocking RESP connection for control and for measuring what a hiredis user gets.
//
// Threads: one at a time.  Owns the connection.  Throws Failure when it breaks; error replies
// are values.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <hiredis/hiredis.h>

namespace moonpool::bench {

struct ReplyDeleter {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using ReplyPtr = std::unique_ptr<redisReply, ReplyDeleter>;

class RedisConnection {
 public:
  explicit RedisConnection(int port);
  ~RedisConnection();
  RedisConnection(const RedisConnection&) = delete;
  RedisConnection& operator=(const RedisConnection&) = delete;

  // True when somebody answers on the port.
  static bool CanConnect(int port);

  ReplyPtr Command(const std::vector<std::string_view>& words);
  // Throws Failure on an error reply too.
  ReplyPtr Expect(const std::vector<std::string_view>& words);
  // The reply of INFO `section`, or one number out of it (-1: not there).
  std::string Info(std::string_view section);
  int64_t InfoNumber(std::string_view section, std::string_view field);
  // A field of a reply that is a map of names and numbers, as KV.STATS is.
  int64_t MapNumber(std::string_view command, std::string_view field);

 private:
  [[noreturn]] void ThrowBroken();

  redisContext* context_;
};

// `field` of a text in INFO's form; empty when it is not there.
std::string InfoField(std::string_view info, std::string_view field);

}  // namespace moonpool::bench
