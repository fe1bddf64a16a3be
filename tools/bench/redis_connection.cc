#include "tools/bench/redis_connection.h"

#include <sys/time.h>

#include <cstdlib>

#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

constexpr timeval kConnectTimeout{5, 0};
constexpr timeval kCommandTimeout{120, 0};

}  // namespace

RedisConnection::RedisConnection(int port)
    : context_(redisConnectWithTimeout("127.0.0.1", port, kConnectTimeout)) {
  if (context_ == nullptr || context_->err != 0) {
    const std::string why = context_ != nullptr ? context_->errstr : "no memory";
    if (context_ != nullptr) redisFree(context_);
    throw Failure("cannot connect to port " + std::to_string(port) + ": " + why);
  }
  redisSetTimeout(context_, kCommandTimeout);
}

RedisConnection::~RedisConnection() { redisFree(context_); }

bool RedisConnection::CanConnect(int port) {
  redisContext* context = redisConnectWithTimeout("127.0.0.1", port, kConnectTimeout);
  const bool connected = context != nullptr && context->err == 0;
  if (context != nullptr) redisFree(context);
  return connected;
}

void RedisConnection::ThrowBroken() {
  throw Failure(std::string("connection to the server lost: ") + context_->errstr);
}

ReplyPtr RedisConnection::Command(const std::vector<std::string_view>& words) {
  std::vector<const char*> data;
  std::vector<size_t> sizes;
  for (const std::string_view word : words) {
    data.push_back(word.data());
    sizes.push_back(word.size());
  }
  auto* reply = static_cast<redisReply*>(redisCommandArgv(
      context_, static_cast<int>(words.size()), data.data(), sizes.data()));
  if (reply == nullptr) ThrowBroken();
  return ReplyPtr(reply);
}

ReplyPtr RedisConnection::Expect(const std::vector<std::string_view>& words) {
  ReplyPtr reply = Command(words);
  if (reply->type == REDIS_REPLY_ERROR) {
    throw Failure(std::string(words[0]) + ": " + std::string(reply->str, reply->len));
  }
  return reply;
}

std::string RedisConnection::Info(std::string_view section) {
  const ReplyPtr reply = Expect({"INFO", section});
  return {reply->str, reply->len};
}

int64_t RedisConnection::InfoNumber(std::string_view section, std::string_view field) {
  const std::string value = InfoField(Info(section), field);
  return value.empty() ? -1 : std::strtoll(value.c_str(), nullptr, 10);
}

int64_t RedisConnection::MapNumber(std::string_view command, std::string_view field) {
  const ReplyPtr reply = Expect({command});
  for (size_t i = 0; i + 1 < reply->elements; i += 2) {
    const redisReply& name = *reply->element[i];
    if (std::string_view(name.str, name.len) == field) return reply->element[i + 1]->integer;
  }
  throw Failure(std::string(command) + " has no field " + std::string(field));
}

std::string InfoField(std::string_view info, std::string_view field) {
  size_t at = 0;
  while (at < info.size()) {
    const size_t end = std::min(info.find('\n', at), info.size());
    std::string_view line = info.substr(at, end - at);
    at = end + 1;
    if (line.size() <= field.size() || line.substr(0, field.size()) != field ||
        line[field.size()] != ':') {
      continue;
    }
    line.remove_prefix(field.size() + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    return std::string(line);
  }
  return "";
}

}  // namespace moonpool::bench
