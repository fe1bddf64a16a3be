#include "tools/bench/requests.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

namespace moonpool::bench {

namespace {

constexpr uint64_t kSeed = 20240601;

std::vector<uint32_t> ShuffledKeys(size_t keys, size_t least) {
  std::vector<uint32_t> order(keys);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(kSeed);
  std::shuffle(order.begin(), order.end(), random);
  for (size_t i = 0; order.size() < least; ++i) order.push_back(order[i % keys]);
  return order;
}

template <typename Encode>
Requests Build(size_t count, ReplyShape reply, Encode&& encode) {
  Requests requests;
  requests.count = count;
  requests.reply = reply;
  for (size_t i = 0; i < count; ++i) {
    const std::string request = encode(i);
    if (i == 0) {
      requests.request_bytes = request.size();
      requests.bytes.reserve(request.size() * count);
    }
    requests.bytes += request;
  }
  return requests;
}

}  // namespace

std::string EncodeCommand(const std::vector<std::string_view>& words) {
  std::string text = "*" + std::to_string(words.size()) + "\r\n";
  for (const std::string_view word : words) {
    text += "$" + std::to_string(word.size()) + "\r\n";
    text += word;
    text += "\r\n";
  }
  return text;
}

std::string NumberedKey(std::string_view prefix, uint64_t number) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%012llu", static_cast<unsigned long long>(number));
  return std::string(prefix) + digits;
}

Requests GetRequests(size_t keys, size_t value_bytes, size_t least) {
  const auto order = ShuffledKeys(keys, least);
  const size_t reply_bytes = 1 + std::to_string(value_bytes).size() + 2 + value_bytes + 2;
  return Build(order.size(), {'$', reply_bytes, 0}, [&](size_t i) {
    return EncodeCommand({"GET", NumberedKey("key:", order[i])});
  });
}

Requests SetRequests(size_t keys, size_t value_bytes, int ttl_seconds, size_t least) {
  const auto order = ShuffledKeys(keys, least);
  const std::string value(value_bytes, 'x');
  const std::string ttl = std::to_string(ttl_seconds);
  return Build(order.size(), {'+', 5, 0}, [&](size_t i) {
    const std::string key = NumberedKey("key:", order[i]);
    if (ttl_seconds == 0) return EncodeCommand({"SET", key, value});
    return EncodeCommand({"SET", key, value, "EX", ttl});
  });
}

Requests LocateRequests(size_t keys, size_t batch, size_t requests) {
  // A descriptor: the header and nine fields.
  constexpr size_t kDescriptorLines = 10;
  std::mt19937_64 random(kSeed);
  Requests built = Build(requests, {'*', 0, 1 + batch * kDescriptorLines}, [&](size_t) {
    std::vector<std::string> words = {"KV.LOCATE", std::to_string(batch)};
    for (size_t k = 0; k < batch; ++k) words.push_back(NumberedKey("key:", random() % keys));
    return EncodeCommand({words.begin(), words.end()});
  });
  built.greeting = {"KV.HELLO", "1"};
  return built;
}

}  // namespace moonpool::bench
