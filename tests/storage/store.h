// What storage tests share: small pools, and values with contents that can be checked.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "storage/extent_pool.h"
#include "storage/keyspace.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOONPOOL_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOONPOOL_SANITIZED 1
#endif
#endif

namespace moonpool::storage {

inline constexpr uint64_t kMiB = 1ull << 20;

#ifdef MOONPOOL_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// `full` steps of a long test, a share of them under a sanitizer.
inline constexpr int Steps(int full) {
  return kSanitized ? full / 8 : full;
}

// Small regions of small pages: the tests do not depend on what the machine has reserved.
inline PoolOptions SmallPool(uint64_t region_bytes = 2 * kMiB) {
  PoolOptions options;
  options.region_bytes = region_bytes;
  options.arena_bytes = 2 * kMiB;
  options.generation_slots = 1 << 16;
  options.region.huge_pages = RegionOptions::HugePages::kNo;
  return options;
}

inline std::unique_ptr<ExtentPool> MakePool(const PoolOptions& options, MemoryBudget* budget) {
  auto pool = ExtentPool::Create(options, budget);
  MOONPOOL_CHECK(pool.has_value());
  return std::move(*pool);
}

// A committed value with these bytes; empty when the pool has no room.
inline ValueRef MakeBulk(ExtentPool& pool, std::string_view bytes,
                         std::optional<uint32_t> crc = std::nullopt) {
  auto handle = pool.Reserve(bytes.size());
  if (!handle) return ValueRef();
  std::memcpy(handle->data(), bytes.data(), bytes.size());
  return std::move(*handle).Publish(crc);
}

inline std::string_view BytesOf(const BulkValue& value) {
  return {value.data(), value.length()};
}

// Equality of long values, without printing them.
inline testing::AssertionResult Same(std::optional<std::string_view> got,
                                     std::string_view expected) {
  if (!got) return testing::AssertionFailure() << "there is none";
  if (*got == expected) return testing::AssertionSuccess();
  size_t at = 0;
  while (at < std::min(got->size(), expected.size()) && (*got)[at] == expected[at]) ++at;
  return testing::AssertionFailure() << "got " << got->size() << " bytes, expected "
                                     << expected.size() << "; they differ from byte " << at;
}

// The value of an entry, wherever its bytes are.
inline std::string_view ValueOf(const Entry& entry) {
  return entry.has(Entry::kBulk) ? BytesOf(*entry.bulk()) : entry.value();
}

// How long tests wait for what must come: sanitizer builds on a busy machine are slow.
inline constexpr std::chrono::milliseconds kPatience{180'000};

// Waits for something that another thread brings about.
template <typename Condition>
bool Eventually(Condition&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// The keyspace of one tenant with what it needs.  The keyspace has a budget of its own, so that
// its heap can be told apart; the limit is so small that every change is reported at once.
struct Store {
  explicit Store(MaxmemoryPolicy policy = MaxmemoryPolicy::kAllKeysLru,
                 uint64_t pool_bytes = 64 * kMiB, uint64_t heap_limit = 65535)
      : heap_budget(heap_limit),
        pool_budget(pool_bytes),
        pool(MakePool(SmallPool(), &pool_budget)),
        bulk_policy(policy),
        keyspace(&heap_budget, &bulk_policy, policy) {}

  void Set(std::string_view key, std::string_view value, int64_t now_ms = 1) {
    KeyLock lock(keyspace, key, now_ms);
    lock.key.Set(value);
  }
  void SetBulk(std::string_view key, std::string_view bytes, int64_t now_ms = 1) {
    ValueRef value = MakeBulk(*pool, bytes);
    ASSERT_TRUE(value);
    KeyLock lock(keyspace, key, now_ms);
    lock.key.SetBulk(std::move(value));
  }
  void Expire(std::string_view key, int64_t at_ms, int64_t now_ms = 1) {
    KeyLock lock(keyspace, key, now_ms);
    ASSERT_NE(lock.key.Find(), nullptr);
    lock.key.SetExpiry(at_ms);
  }
  void SetPin(std::string_view key, Pin pin, int64_t now_ms = 1) {
    KeyLock lock(keyspace, key, now_ms);
    ASSERT_NE(lock.key.Find(), nullptr);
    lock.key.SetPin(pin);
  }
  bool Has(std::string_view key, int64_t now_ms = 1) {
    KeyLock lock(keyspace, key, now_ms);
    return lock.key.Find() != nullptr;
  }
  // Empty when there is no such key.
  std::optional<std::string> Get(std::string_view key, int64_t now_ms = 1) {
    KeyLock lock(keyspace, key, now_ms);
    const Entry* entry = lock.key.Read();
    if (entry == nullptr) return std::nullopt;
    return std::string(ValueOf(*entry));
  }
  std::vector<std::string> Keys(int64_t now_ms = 1, size_t count = 10) {
    std::vector<std::string> keys;
    uint64_t cursor = 0;
    do {
      cursor = keyspace.Scan(cursor, count, now_ms, &keys);
    } while (cursor != 0);
    return keys;
  }

  MemoryBudget heap_budget;
  MemoryBudget pool_budget;
  std::unique_ptr<ExtentPool> pool;
  BulkPolicy bulk_policy;
  Keyspace keyspace;
};

// EvictBulk() without an SSD tier: whether the value went.
inline bool Evicted(Keyspace& keyspace, const BulkValue& value, int64_t now_ms,
                    bool ignore_soft_pins) {
  return keyspace.EvictBulk(value, now_ms, ignore_soft_pins, Keyspace::Next::kDropped) ==
         Keyspace::Eviction::kFreed;
}

}  // namespace moonpool::storage
