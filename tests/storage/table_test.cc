#include "storage/table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "storage/hash.h"
#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;
using HashFunction = uint64_t (*)(std::string_view);

// Hashes that differ in nothing a bucket or a tag is chosen by.
uint64_t FewHashes(std::string_view key) {
  return HashKey(key) % 5;
}
// The same bucket at any size, tags of their own.
uint64_t OneBucket(std::string_view key) {
  return HashKey(key) << 40;
}

std::string Name(uint64_t number) {
  return "key:" + std::to_string(number);
}

class Tables {
 public:
  explicit Tables(HashFunction hash) : hash_(hash) {}

  void Insert(const std::string& key, uint8_t flags) {
    Entry* entry = Entry::Create(key, hash_(key), 8, flags);
    std::memcpy(entry->value_data(), &++stamp_, 8);
    table_.Insert(hash_(key), entry);
    model_[key] = {stamp_, (flags & Entry::kHasExpiry) != 0};
  }
  void Replace(const std::string& key, uint8_t flags) {
    const Table::Slot slot = table_.Find(hash_(key), key);
    ASSERT_TRUE(slot);
    Entry* old = slot.entry();
    Entry* entry = Entry::Create(key, hash_(key), 8, flags);
    std::memcpy(entry->value_data(), &++stamp_, 8);
    table_.Replace(slot, entry);
    Entry::Destroy(old);
    model_[key] = {stamp_, (flags & Entry::kHasExpiry) != 0};
  }
  void Erase(const std::string& key) {
    const Table::Slot slot = table_.Find(hash_(key), key);
    ASSERT_TRUE(slot);
    Entry* entry = table_.Erase(hash_(key), slot);
    ASSERT_EQ(entry->key(), key);
    Entry::Destroy(entry);
    model_.erase(key);
  }
  bool Has(const std::string& key) const { return model_.count(key) > 0; }

  void CheckKey(const std::string& key) const {
    const Table::Slot slot = table_.Find(hash_(key), key);
    const auto expected = model_.find(key);
    ASSERT_EQ(static_cast<bool>(slot), expected != model_.end()) << key;
    if (!slot) return;
    ASSERT_EQ(slot.entry()->key(), key);
    uint64_t stamp;
    std::memcpy(&stamp, slot.entry()->value_data(), 8);
    ASSERT_EQ(stamp, expected->second.stamp) << key;
  }
  // A scan without changes in between reports every entry exactly once.
  void CheckAll() const {
    ASSERT_EQ(table_.size(), model_.size());
    for (const bool expiring : {false, true}) {
      std::set<std::string> seen;
      size_t calls = 0;
      const auto visit = [&](Entry* entry) {
        ++calls;
        seen.emplace(entry->key());
      };
      uint64_t cursor = 0;
      do {
        cursor = expiring ? table_.ScanExpiring(cursor, visit) : table_.Scan(cursor, visit);
      } while (cursor != 0);
      ASSERT_EQ(calls, seen.size());
      size_t expected = 0;
      for (const auto& [key, value] : model_) {
        if (expiring && !value.expires) continue;
        ++expected;
        ASSERT_TRUE(seen.count(key)) << key;
      }
      ASSERT_EQ(seen.size(), expected);
    }
    for (const auto& [key, value] : model_) ASSERT_NO_FATAL_FAILURE(CheckKey(key));
  }

  Table& table() { return table_; }
  size_t size() const { return model_.size(); }
  std::vector<std::string> Keys() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : model_) keys.push_back(key);
    std::sort(keys.begin(), keys.end());  // the same in every run with one seed
    return keys;
  }

 private:
  struct Value {
    uint64_t stamp;
    bool expires;
  };
  const HashFunction hash_;
  Table table_;
  std::unordered_map<std::string, Value> model_;
  uint64_t stamp_ = 0;
};

void RunModel(HashFunction hash, uint64_t names, int steps) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Tables tables(hash);
  for (int step = 0; step < steps; ++step) {
    // Grows for a while, then shrinks for a while.
    const bool growing = (step / (steps / 6)) % 2 == 0;
    const std::string key = Name(random.Below(names));
    const uint8_t flags = random.Chance(0.3) ? Entry::kHasExpiry : 0;
    if (!tables.Has(key)) {
      if (random.Chance(growing ? 0.9 : 0.1)) tables.Insert(key, flags);
    } else if (random.Chance(0.4)) {
      ASSERT_NO_FATAL_FAILURE(tables.Replace(key, flags));
    } else if (random.Chance(growing ? 0.1 : 0.9)) {
      ASSERT_NO_FATAL_FAILURE(tables.Erase(key));
    }
    ASSERT_NO_FATAL_FAILURE(tables.CheckKey(key));
    ASSERT_NO_FATAL_FAILURE(tables.CheckKey(Name(random.Below(names))));
    if (step % (steps / 30) == 0) {
      ASSERT_NO_FATAL_FAILURE(tables.CheckAll());
    }
  }
  ASSERT_NO_FATAL_FAILURE(tables.CheckAll());
  for (const std::string& key : tables.Keys()) ASSERT_NO_FATAL_FAILURE(tables.Erase(key));
  ASSERT_NO_FATAL_FAILURE(tables.CheckAll());
  // One bucket, and the segment kept for the next growth.
  EXPECT_LE(tables.table().bytes(), 128u);
}

TEST(TableModelTest, ThroughGrowthAndShrinking) {
  RunModel(HashKey, 20000, Steps(400000));
}
TEST(TableModelTest, FewKeys) {
  RunModel(HashKey, 40, Steps(200000));
}
TEST(TableModelTest, WhenAllHashesCollide) {
  RunModel(FewHashes, 60, Steps(100000));
}
TEST(TableModelTest, WhenAllKeysFallIntoOneBucket) {
  RunModel(OneBucket, 300, Steps(100000));
}

TEST(TableTest, EmptyKeyAndLongKey) {
  Tables tables(HashKey);
  const std::string keys[] = {"", std::string(1, '\0'), std::string(100000, 'k')};
  for (const std::string& key : keys) tables.Insert(key, 0);
  ASSERT_NO_FATAL_FAILURE(tables.CheckAll());
  for (const std::string& key : keys) ASSERT_NO_FATAL_FAILURE(tables.Erase(key));
}

TEST(TableTest, SwapTakesEverythingAlong) {
  Tables full(HashKey);
  for (uint64_t i = 0; i < 1000; ++i) full.Insert(Name(i), i % 2 ? Entry::kHasExpiry : 0);
  Table other;
  const size_t bytes = full.table().bytes(), empty_bytes = other.bytes();
  full.table().Swap(other);
  EXPECT_EQ(other.size(), 1000u);
  EXPECT_EQ(other.bytes(), bytes);
  EXPECT_EQ(full.table().size(), 0u);
  EXPECT_EQ(full.table().bytes(), empty_bytes);
  EXPECT_FALSE(full.table().Find(HashKey(Name(5)), Name(5)));
  full.table().Swap(other);
  full.CheckAll();
}

TEST(TableTest, SamplesReachEveryEntry) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Tables tables(HashKey);
  for (uint64_t i = 0; i < 300; ++i) tables.Insert(Name(i), 0);
  std::set<std::string> seen;
  for (int i = 0; i < 20000; ++i) {
    tables.table().Sample(random.Next(), [&](Entry* entry) {
      ASSERT_TRUE(tables.Has(std::string(entry->key())));
      seen.emplace(entry->key());
    });
  }
  EXPECT_EQ(seen.size(), 300u);
}

TEST(TableTest, TakesBetween11And20BytesAKey) {
  // The header's promise.  A table that never comes to rest at eight entries per bucket stays
  // between 16 and 33.
  Table table;
  double least = 100, most = 0;
  for (uint64_t i = 1; i <= 300000; ++i) {
    const std::string key = Name(i);
    table.Insert(HashKey(key), Entry::Create(key, HashKey(key), 0, 0));
    if (i < 1000) continue;
    const double share = static_cast<double>(table.bytes()) / static_cast<double>(i);
    least = std::min(least, share);
    most = std::max(most, share);
  }
  std::printf("%.1f to %.1f bytes a key\n", least, most);
  EXPECT_LT(most, 20);
  EXPECT_LT(least, 12);
}

// --- scans while the table changes ---------------------------------------------------------------

// Elements that are there from the first call to the last are all seen.
void RunScan(bool expiring, Random& random) {
  Tables tables(HashKey);
  std::set<std::string> stable;
  const uint64_t start = random.Between(1, 400);
  for (uint64_t i = 0; i < start; ++i) {
    const std::string key = "stable:" + std::to_string(i);
    tables.Insert(key, expiring ? Entry::kHasExpiry : 0);
    stable.insert(key);
  }
  uint64_t extra = random.Below(3000), next = 0;
  for (; next < extra; ++next) tables.Insert(Name(next), 0);
  // Grows, shrinks, or does both in turn, at a random speed.
  const uint64_t speed = random.Between(1, 60);
  const uint64_t mode = random.Below(3);
  std::vector<std::string> passing = tables.Keys();
  std::erase_if(passing, [&](const std::string& key) { return stable.count(key) > 0; });
  std::set<std::string> seen;
  uint64_t cursor = 0, steps = 0;
  do {
    const auto visit = [&](Entry* entry) {
      ASSERT_TRUE(tables.Has(std::string(entry->key())));
      seen.emplace(entry->key());
    };
    cursor =
        expiring ? tables.table().ScanExpiring(cursor, visit) : tables.table().Scan(cursor, visit);
    const bool grow = mode == 0 || (mode == 2 && steps / 16 % 2 == 0);
    for (uint64_t i = random.Below(speed + 1); i > 0; --i) {
      if (grow && tables.size() < 20000) {
        passing.push_back(Name(next++));
        tables.Insert(passing.back(), random.Chance(0.5) ? Entry::kHasExpiry : 0);
      } else if (!grow && !passing.empty()) {
        std::swap(passing[random.Below(passing.size())], passing.back());
        tables.Erase(passing.back());
        passing.pop_back();
      }
    }
    ASSERT_LT(++steps, 1'000'000u) << "the scan does not end";
  } while (cursor != 0);
  for (const std::string& key : stable) ASSERT_TRUE(seen.count(key)) << key;
}

TEST(TableScanTest, SeesWhatIsThereThroughout) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < Steps(400); ++round) {
    ASSERT_NO_FATAL_FAILURE(RunScan(false, random)) << "round " << round;
  }
}
TEST(TableScanTest, ScanExpiringSeesWhatIsThereThroughout) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < Steps(400); ++round) {
    ASSERT_NO_FATAL_FAILURE(RunScan(true, random)) << "round " << round;
  }
}

TEST(TableScanTest, AnyCursorIsAccepted) {
  // A client may send whatever it likes.
  Random random;
  SCOPED_TRACE(random.Replay());
  Tables tables(HashKey);
  for (uint64_t i = 0; i < 1000; ++i) tables.Insert(Name(i), 0);
  for (int round = 0; round < 1000; ++round) {
    uint64_t cursor = random.Next() >> random.Below(64);
    for (int steps = 0; cursor != 0; ++steps) {
      ASSERT_LT(steps, 1000);
      cursor = tables.table().Scan(
          cursor, [&](Entry* entry) { ASSERT_TRUE(tables.Has(std::string(entry->key()))); });
    }
  }
}

}  // namespace
}  // namespace moonpool::storage
