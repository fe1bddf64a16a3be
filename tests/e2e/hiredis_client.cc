// Talks to a server through hiredis and checks every answer; test_clients.py runs it.
//
//   hiredis_client PORT | hiredis_client /path/of/unix.socket
#include <hiredis/hiredis.h>
#include <sys/time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

namespace {

struct FreeContext {
  void operator()(redisContext* context) const { redisFree(context); }
};
struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Context = std::unique_ptr<redisContext, FreeContext>;
using Reply = std::unique_ptr<redisReply, FreeReply>;

void Check(bool good, const char* what, const redisContext* context) {
  if (good) return;
  std::fprintf(stderr, "failed: %s (%s)\n", what, context->errstr);
  std::exit(1);
}

std::string Pattern(size_t bytes, char first) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(first + i % 251);
  return text;
}

Reply Set(redisContext* context, const std::string& key, const std::string& value) {
  return Reply(static_cast<redisReply*>(redisCommand(
      context, "SET %b %b", key.data(), key.size(), value.data(), value.size())));
}

Reply Get(redisContext* context, const std::string& key) {
  return Reply(
      static_cast<redisReply*>(redisCommand(context, "GET %b", key.data(), key.size())));
}

bool IsString(const Reply& reply, const std::string& value) {
  return reply && reply->type == REDIS_REPLY_STRING && reply->len == value.size() &&
         std::memcmp(reply->str, value.data(), value.size()) == 0;
}

bool IsOk(const Reply& reply) {
  return reply && reply->type == REDIS_REPLY_STATUS && std::strcmp(reply->str, "OK") == 0;
}

// Commands one by one, with keys and values of any bytes.
void RoundTrips(redisContext* context) {
  const std::string key("a\0b\r\n", 5);
  Check(IsOk(Set(context, key, Pattern(1000, 'x'))), "SET of a binary key", context);
  Check(IsString(Get(context, key), Pattern(1000, 'x')), "GET of a binary key", context);
  const Reply missing = Get(context, "missing");
  Check(missing && missing->type == REDIS_REPLY_NIL, "GET of a missing key", context);
  const Reply error(static_cast<redisReply*>(redisCommand(context, "BOGUS")));
  Check(error && error->type == REDIS_REPLY_ERROR, "an unknown command", context);
}

// A value larger than any buffer on the way.
void LargeValue(redisContext* context) {
  const std::string value = Pattern(32u << 20, 'L');
  Check(IsOk(Set(context, "large", value)), "SET of 32 MiB", context);
  Check(IsString(Get(context, "large"), value), "GET of 32 MiB", context);
}

// All requests first, then all replies, in their order.
void Pipeline(redisContext* context) {
  constexpr int kCommands = 10000;
  const std::string bulk = Pattern(70000, 'B');
  for (int i = 0; i < kCommands; ++i) {
    const std::string key = "pipe:" + std::to_string(i % 500);
    if (i % 1000 == 500) {
      redisAppendCommand(context, "SET %s %b", key.c_str(), bulk.data(), bulk.size());
    } else if (i % 2 == 0) {
      redisAppendCommand(context, "SET %s %d", key.c_str(), i);
    } else {
      redisAppendCommand(context, "INCR %s:count", key.c_str());
    }
  }
  for (int i = 0; i < kCommands; ++i) {
    void* raw = nullptr;
    Check(redisGetReply(context, &raw) == REDIS_OK, "a reply of the pipeline", context);
    const Reply reply(static_cast<redisReply*>(raw));
    if (i % 2 == 0) {
      Check(IsOk(reply), "SET in the pipeline", context);
    } else {
      Check(reply->type == REDIS_REPLY_INTEGER && reply->integer == i / 500 + 1,
            "INCR in the pipeline", context);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: hiredis_client PORT|SOCKET\n");
    return 2;
  }
  const timeval patience{60, 0};
  const Context context(argv[1][0] == '/'
                            ? redisConnectUnixWithTimeout(argv[1], patience)
                            : redisConnectWithTimeout("127.0.0.1", std::atoi(argv[1]), patience));
  Check(context && context->err == 0, "connecting", context.get());
  redisSetTimeout(context.get(), patience);
  RoundTrips(context.get());
  Pipeline(context.get());
  LargeValue(context.get());
  std::puts("ok");
  return 0;
}
