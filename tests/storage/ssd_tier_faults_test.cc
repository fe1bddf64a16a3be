// The SSD tier on a disk that is full, that fails, and that changed what was written.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

using Where = TieredTenant::Where;
using LoadError = SsdTier::LoadError;

// Values of version 1, on the SSD and durable.
void PutDown(TieredTenant& t, uint64_t keys) {
  for (uint64_t key = 0; key < keys; ++key) {
    t.Set(Numbered(key), key, 1);
    t.MoveDown(Numbered(key));
  }
  t.StopAndOpen();
}

bool TrustedOnDisk(const TieredTenant& t) {
  return std::filesystem::exists(t.path() + "/trusted");
}

TEST(SsdTierFaultsTest, ReadErrorsKeepTheValue) {
  TieredTenant t;
  t.Open();
  PutDown(t, 5);
  t.disk->payload.reads_fail = true;
  for (uint64_t key = 0; key < 5; ++key) {
    const auto found = t.Get(Numbered(key), key);
    EXPECT_FALSE(found.version);
    EXPECT_EQ(found.error, LoadError::kDisk);
    EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kSsd);
  }
  EXPECT_EQ(t.stats().read_errors, 5u);
  EXPECT_EQ(t.stats().lost, 0u);
  EXPECT_NE(t.stats().last_error, "");
  t.disk->payload.reads_fail = false;
  for (uint64_t key = 0; key < 5; ++key) EXPECT_EQ(t.Get(Numbered(key), key).version, 1u);
  EXPECT_EQ(t.tenant->budget().unlinked_bytes(), 0u);
}

TEST(SsdTierFaultsTest, DamagedValuesAreLostNotServed) {
  TieredTenant t;
  t.Open();
  PutDown(t, 40);
  t.Stop();
  uint64_t damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(t.path() + "/payload")) {
    if (entry.path().extension() != ".blob") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    for (uint64_t at = 100'000; at + 100'000 < entry.file_size(); at += kMiB, ++damaged) {
      file.seekp(static_cast<std::streamoff>(at));
      file << "bytes of somebody else";
    }
  }
  ASSERT_GT(damaged, 3u);
  t.Open();
  std::vector<uint64_t> lost;
  for (uint64_t key = 0; key < 40; ++key) {
    const auto found = t.Get(Numbered(key), key);
    EXPECT_EQ(found.error, LoadError::kNone);
    if (found.version) continue;
    lost.push_back(key);
    EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kNowhere);
  }
  EXPECT_FALSE(lost.empty());
  EXPECT_LE(lost.size(), damaged);
  EXPECT_EQ(t.stats().lost, lost.size());
  EXPECT_EQ(t.stats().versions, 40 - lost.size());
  EXPECT_EQ(t.tenant->budget().unlinked_bytes(), 0u);
  // Gone for good, and the name is free for another value.
  t.CrashAndOpen();
  EXPECT_EQ(t.tenant->keyspace().Size(), 40 - lost.size());
  t.Set(Numbered(lost[0]), lost[0], 2);
  t.MoveDown(Numbered(lost[0]));
  EXPECT_EQ(t.Get(Numbered(lost[0]), lost[0]).version, 2u);
}

void WritesFailAndRecover(Fault fault) {
  TieredTenant t;
  t.tenant_options.quota_bytes = 16 * kMiB;
  std::atomic<int> notes{0};
  t.options.store.note = [&](const std::string&) { notes.fetch_add(1); };
  t.Open();
  PutDown(t, 20);
  t.disk->payload.writes = fault;
  // The cache goes on from memory: what must go is dropped.
  uint64_t key = 100;
  EXPECT_TRUE(Eventually([&] {
    t.Set(Numbered(key), key, 1);
    const auto stats = t.stats();
    return ++key >= 400 && stats.failing && stats.write_errors > 0 && stats.drops_refused > 0 &&
           notes > 0;
  }));
  EXPECT_NE(t.stats().last_error, "");
  uint64_t served = 0;
  for (uint64_t i = 100; i < key; ++i) served += t.Get(Numbered(i), i).version.has_value();
  EXPECT_GT(served, 10u);
  // What was on the SSD before can be read and changed.
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(t.Get(Numbered(i), i).version, 1u);
  ASSERT_TRUE(t.Erase(Numbered(0)));
  t.Set(Numbered(1), 1, 2);
  // It recovers by itself.
  t.disk->payload.writes = Fault::kNone;
  const uint64_t before = t.stats().demotions;
  EXPECT_TRUE(Eventually([&] {
    t.Set(Numbered(key), key, 1);
    ++key;
    return t.stats().demotions > before + 20 && !t.stats().failing;
  }));
  t.StopAndOpen();
  EXPECT_EQ(t.WhereIs(Numbered(0)), Where::kNowhere);
  EXPECT_EQ(t.Get(Numbered(1), 1).version.value_or(2), 2u);
  for (uint64_t i = 2; i < 20; ++i) EXPECT_EQ(t.Get(Numbered(i), i).version, 1u);
  for (uint64_t i = 100; i < key; ++i) t.Get(Numbered(i), i);
  // RocksDB may give up buffers whose flush failed: such values are misses, and counted.
  const uint64_t bytes = t.stats().lost * kMiB;
  EXPECT_LE(bytes, 8 * t.options.store.write_buffer_bytes) << t.stats().last_error;
}

TEST(SsdTierFaultsTest, AFullDiskIsLivedThrough) {
  WritesFailAndRecover(Fault::kFull);
}
TEST(SsdTierFaultsTest, WriteErrorsAreLivedThrough) {
  WritesFailAndRecover(Fault::kError);
}

// --- changes that cannot be written --------------------------------------------------------------

TEST(SsdTierFaultsTest, ChangesThatWereNotWrittenDoNotComeBack) {
  TieredTenant t;
  t.Open();
  PutDown(t, 10);
  EXPECT_TRUE(TrustedOnDisk(t));
  t.disk->index.writes = Fault::kFull;
  ASSERT_TRUE(t.Erase(Numbered(0)));
  const uint64_t sequence = SsdLog::TakeThreadSequence();
  EXPECT_NE(sequence, 0u);
  // Whoever waits for it hears of it once a crash cannot undo it: it leaves nothing at all.
  std::atomic<bool> told{false}, trusted_then{false};
  t.tier().log().WhenDurable(sequence, [&] {
    trusted_then = TrustedOnDisk(t);
    told = true;
  });
  EXPECT_TRUE(Eventually([&] { return told.load(); }));
  EXPECT_FALSE(trusted_then);
  EXPECT_TRUE(t.tier().log().failing());
  EXPECT_TRUE(t.stats().failing);
  // So do those who come later.
  ASSERT_TRUE(t.Erase(Numbered(1)));
  told = false;
  t.tier().log().WhenDurable(SsdLog::TakeThreadSequence(), [&] { told = true; });
  EXPECT_TRUE(Eventually([&] { return told.load(); }));
  EXPECT_FALSE(t.tier().log().Sync(0));
  // Reads go on, and nothing goes down.
  EXPECT_EQ(t.Get(Numbered(2), 2).version, 1u);
  t.Set("new", 99, 1);
  EXPECT_EQ(t.BeginDemotion("new"), SsdTier::Taken::kRefused);
  t.Crash();
  t.disk->index.writes = Fault::kNone;
  t.Open();
  EXPECT_TRUE(t.tier().recovery().wiped);
  EXPECT_EQ(t.tenant->keyspace().Size(), 0u);
  // A new beginning.
  EXPECT_TRUE(TrustedOnDisk(t));
  PutDown(t, 3);
  EXPECT_EQ(t.Get(Numbered(2), 2).version, 1u);
}

TEST(SsdTierFaultsTest, TrustComesBackWhenEverythingIsWritten) {
  TieredTenant t;
  t.Open();
  PutDown(t, 10);
  t.disk->index.writes = Fault::kError;
  for (uint64_t key = 0; key < 5; ++key) {
    key % 2 == 0 ? void(t.Erase(Numbered(key))) : t.Set(Numbered(key), key, 2);
    EXPECT_TRUE(Eventually([&] { return !TrustedOnDisk(t); }));
  }
  t.disk->index.writes = Fault::kNone;
  EXPECT_TRUE(Eventually([&] { return !t.tier().log().failing(); }));
  t.Settle();
  EXPECT_TRUE(TrustedOnDisk(t));
  t.CrashAndOpen();
  EXPECT_FALSE(t.tier().recovery().wiped);
  for (uint64_t key = 0; key < 5; ++key) EXPECT_EQ(t.WhereIs(Numbered(key)), Where::kNowhere);
  for (uint64_t key = 5; key < 10; ++key) EXPECT_EQ(t.Get(Numbered(key), key).version, 1u);
}

TEST(SsdTierFaultsTest, AStopThatCannotSaveIsHonest) {
  TieredTenant t;
  t.Open();
  PutDown(t, 10);
  t.disk->index.writes = Fault::kFull;
  ASSERT_TRUE(t.Erase(Numbered(0)));
  EXPECT_TRUE(Eventually([&] { return t.tier().log().failing(); }));
  EXPECT_FALSE(t.tier().Save(200, nullptr));
  t.Crash();
  t.disk->index.writes = Fault::kNone;
  t.Open();
  EXPECT_EQ(t.WhereIs(Numbered(0)), Where::kNowhere);
}

}  // namespace
}  // namespace moonpool::storage
