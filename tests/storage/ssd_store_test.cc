#include "storage/ssd_store.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/storage/ssd_directory.h"

namespace moonpool::storage {
namespace {

TEST(SsdStoreTest, ValuesOfAllLengthsComeBack) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  const uint64_t chunk = options.chunk_bytes;
  std::vector<SsdRecord> records;
  {
    OpenSsd store(options);
    for (const uint64_t length :
         {uint64_t{1}, uint64_t{59}, uint64_t{60}, uint64_t{61}, uint64_t{4095}, chunk - 1, chunk,
          chunk + 1, 2 * chunk, 3 * chunk + 17, 20 * kMiB, 20 * kMiB + 1}) {
      records.push_back(PutVersion(*store.store, options, "k" + std::to_string(length), length));
      EXPECT_TRUE(IsThere(*store.store, records.back())) << length;
    }
    ASSERT_TRUE(store->FlushPayload());
    for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
    EXPECT_GT(store->stats().disk_bytes, 40 * kMiB);
    EXPECT_GT(store->stats().live_bytes, 40 * kMiB);
  }
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.versions, records.size());
  for (const SsdRecord& record : records) {
    const auto found = store.found.find(record.id);
    ASSERT_NE(found, store.found.end());
    EXPECT_EQ(found->second.key, record.key);
    EXPECT_EQ(found->second.length, record.length);
    EXPECT_EQ(found->second.chunk_bytes, record.chunk_bytes);
    EXPECT_TRUE(IsThere(*store.store, found->second));
  }
}

TEST(SsdStoreTest, RecordsRememberTheirChunks) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  std::vector<SsdRecord> records;
  for (const uint32_t chunk_bytes : {4096u, 10000u, 1u << 20}) {
    options.chunk_bytes = chunk_bytes;
    OpenSsd store(options);
    records.push_back(PutVersion(*store.store, options, "k", 3 * kMiB + 5));
    for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
  }
}

TEST(SsdStoreTest, CompressionChangesNoByte) {
  using Compression = SsdOptions::Compression;
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  std::vector<SsdRecord> records;
  for (const auto compression : {Compression::kLz4, Compression::kZstd, Compression::kNone}) {
    options.compression = compression;
    OpenSsd store(options);
    records.push_back(PutVersion(*store.store, options, "random", kMiB + 3));
    const uint64_t id = store->NextId();
    const std::string zeros(8 * kMiB, 'z');
    const uint64_t before = store->stats().disk_bytes;
    ASSERT_TRUE(store->WritePayload(id, zeros));
    ASSERT_TRUE(store->FlushPayload());
    const uint64_t grown = store->stats().disk_bytes - before;
    if (compression == Compression::kNone) {
      EXPECT_GT(grown, 8 * kMiB);
    } else {
      EXPECT_LT(grown, 3 * kMiB);
    }
    const auto read = ReadVersion(*store.store, {id, "", zeros.size(), 0, options.chunk_bytes});
    ASSERT_TRUE(read);
    EXPECT_TRUE(Same(*read, zeros));
    store->DropPayload(id, zeros.size(), options.chunk_bytes);
    for (const SsdRecord& record : records) EXPECT_TRUE(IsThere(*store.store, record));
  }
}

TEST(SsdStoreTest, WhatWasErasedNeverComesBack) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  SsdRecord kept, erased, changed;
  {
    OpenSsd store(options);
    kept = PutVersion(*store.store, options, "kept", 200000);
    erased = PutVersion(*store.store, options, "erased", 200000);
    changed = PutVersion(*store.store, options, "old name", 200000);
    ASSERT_TRUE(EraseVersion(*store.store, erased));
    changed.key = "new name";
    changed.expiry_ms = 100;
    SsdChange change;
    change.Put(changed);
    ASSERT_TRUE(store->Apply(change));
  }
  for (int again = 0; again < 3; ++again) {
    OpenSsd store(options, 99);
    EXPECT_EQ(store.recovery.versions, 2u);
    EXPECT_FALSE(store.recovery.clean);
    EXPECT_EQ(store.found.count(erased.id), 0u);
    EXPECT_EQ(store.found[changed.id].key, "new name");
    EXPECT_EQ(store.found[changed.id].expiry_ms, 100);
    EXPECT_TRUE(IsThere(*store.store, kept));
    CollectAll(*store.store);
    ASSERT_TRUE(store->FlushPayload());
    EXPECT_FALSE(IsThere(*store.store, erased));
  }
  {
    OpenSsd store(options, 100);
    EXPECT_EQ(store.recovery.expired, 1u);
    EXPECT_EQ(store.recovery.versions, 1u);
  }
  OpenSsd store(options, 99);
  EXPECT_EQ(store.recovery.versions, 1u);
}

TEST(SsdStoreTest, EraseBelowEmptiesTheStore) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  std::vector<SsdRecord> before;
  SsdRecord after;
  {
    OpenSsd store(options);
    for (int i = 0; i < 100; ++i) before.push_back(PutVersion(*store.store, options, "k", 100000));
    SsdChange change;
    change.EraseBelow(store->NextId());
    ASSERT_TRUE(store->Apply(change));
    after = PutVersion(*store.store, options, "after", 100000);
    EXPECT_EQ(store->stats().live_bytes, 100000u);
  }
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.versions, 1u);
  EXPECT_TRUE(IsThere(*store.store, after));
  CollectAll(*store.store);
  EXPECT_TRUE(IsThere(*store.store, after));
  for (const SsdRecord& record : before) EXPECT_FALSE(IsThere(*store.store, record));
  EXPECT_TRUE(Eventually([&] { return store->stats().disk_bytes < 2 * kMiB; }))
      << store->stats().disk_bytes;
}

TEST(SsdStoreTest, VoidsActOnWhatIsOlder) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  {
    OpenSsd store(options);
    PutVersion(*store.store, options, "model@1:a", 1000);
    PutVersion(*store.store, options, "user:1:x", 1000);
    PutVersion(*store.store, options, "user:2:y", 1000);
    const uint64_t floor = store->NextId();
    PutVersion(*store.store, options, "model@1:b", 1000);
    SsdChange change;
    change.PutVoid({1, floor, "model@1", false});
    change.PutVoid({2, floor, "user:?:x", true});
    change.PutVoid({3, floor, "user:2", false});
    change.EraseVoid(3);
    ASSERT_TRUE(store->Apply(change));
  }
  {
    OpenSsd store(options);
    EXPECT_EQ(store.recovery.voided, 2u);
    EXPECT_EQ(store.recovery.versions, 2u);
    PutVersion(*store.store, options, "model@1:c", 1000);
  }
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.voided, 0u);
  EXPECT_EQ(store.recovery.versions, 3u);
}

TEST(SsdStoreTest, ACleanStopKeepsSmallValuesAndTheHotOrderOnce) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  constexpr int kSmallValues = 5000;
  SsdRecord record;
  {
    OpenSsd store(options);
    record = PutVersion(*store.store, options, "k", 100000);
    for (int i = 0; i < kSmallValues; ++i) {
      ASSERT_TRUE(store->SaveSmall("key" + std::to_string(i), i, std::string(i % 1000, 'v')));
    }
    const uint64_t hot[] = {3, 1, 2};
    ASSERT_TRUE(store->MarkClean(hot));
  }
  {
    OpenSsd store(options, 0);
    EXPECT_TRUE(store.recovery.clean);
    EXPECT_EQ(store.recovery.small_values, uint64_t{kSmallValues});
    ASSERT_EQ(store.small.size(), size_t{kSmallValues});
    for (int i = 0; i < kSmallValues; ++i) {
      const auto& [expiry_ms, value] = store.small["key" + std::to_string(i)];
      EXPECT_EQ(expiry_ms, i);
      EXPECT_EQ(value, std::string(i % 1000, 'v'));
    }
    EXPECT_EQ(store->hot(), (std::vector<uint64_t>{3, 1, 2}));
    EXPECT_TRUE(IsThere(*store.store, record));
  }
  OpenSsd store(options);
  EXPECT_FALSE(store.recovery.clean);
  EXPECT_EQ(store.recovery.small_values, 0u);
  EXPECT_TRUE(store.small.empty());
  EXPECT_TRUE(store->hot().empty());
  EXPECT_TRUE(IsThere(*store.store, record));
}

TEST(SsdStoreTest, IdsGrowForEver) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  uint64_t last = 0;
  for (int again = 0; again < 3; ++again) {
    OpenSsd store(options);
    const uint64_t first = store->NextId();
    EXPECT_GT(first, last);
    std::vector<std::thread> threads;
    std::vector<std::vector<uint64_t>> ids(4);
    for (auto& mine : ids) {
      threads.emplace_back([&] {
        for (int i = 0; i < 50000; ++i) mine.push_back(store->NextId());
      });
    }
    for (auto& thread : threads) thread.join();
    std::vector<uint64_t> all;
    for (const auto& mine : ids) all.insert(all.end(), mine.begin(), mine.end());
    std::sort(all.begin(), all.end());
    EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
    EXPECT_GT(all.front(), first);
    last = all.back();
    if (again == 1) {
      ASSERT_TRUE(store->MarkClean({}));
    }
  }
}

TEST(SsdStoreTest, ReadersAndWritersWorkAtOnce) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  OpenSsd store(options);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<SsdRecord> mine;
      for (int i = 0; i < Steps(400); ++i) {
        mine.push_back(PutVersion(*store.store, options, "k" + std::to_string(t), 50000 + i * 100));
        EXPECT_TRUE(IsThere(*store.store, mine[static_cast<size_t>(i) * 7 % mine.size()]));
        if (mine.size() > 20) {
          EXPECT_TRUE(EraseVersion(*store.store, mine.front()));
          mine.erase(mine.begin());
        }
        if (t == 0) store->CollectGarbage();
      }
      for (const SsdRecord& record : mine) EXPECT_TRUE(IsThere(*store.store, record));
    });
  }
  for (auto& thread : threads) thread.join();
}

// --- the directory -------------------------------------------------------------------------------

ErrorCode CodeOfOpening(const SsdOptions& options, std::string* message = nullptr) {
  const auto store = SsdStore::Open(options);
  if (store) {
    ADD_FAILURE() << "it opened";
    return ErrorCode::kTimeout;
  }
  if (message != nullptr) *message = store.error().message;
  return store.error().code;
}

TEST(SsdDirectoryTest, ANewerFormatIsRefused) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  { OpenSsd store(options); }
  std::ofstream(directory.path() + "/format") << "moonpool-ssd 4\n";
  std::string message;
  EXPECT_EQ(CodeOfOpening(options, &message), ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("version 4"), std::string::npos) << message;
  std::ofstream(directory.path() + "/format") << "something else\n";
  EXPECT_EQ(CodeOfOpening(options), ErrorCode::kInvalidArgument);
  std::ofstream(directory.path() + "/format") << "moonpool-ssd 1\n";
  OpenSsd store(options);
}

TEST(SsdDirectoryTest, WhatIsNotOursIsLeftAlone) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  std::ofstream(directory.path() + "/thesis.txt") << "precious";
  std::string message;
  EXPECT_EQ(CodeOfOpening(options, &message), ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("thesis.txt"), std::string::npos) << message;
  EXPECT_FALSE(std::filesystem::exists(directory.path() + "/format"));
  std::filesystem::remove(directory.path() + "/thesis.txt");
  std::filesystem::create_directory(directory.path() + "/lost+found");
  OpenSsd store(options);
}

TEST(SsdDirectoryTest, OneStoreAtATime) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  OpenSsd store(options);
  std::string message;
  EXPECT_EQ(CodeOfOpening(options, &message), ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("in use"), std::string::npos) << message;
}

TEST(SsdDirectoryTest, APathThatCannotBeMadeIsToldClearly) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  std::ofstream(directory.path() + "/file") << "x";
  options.directory = directory.path() + "/file/store";
  EXPECT_EQ(CodeOfOpening(options), ErrorCode::kSystem);
  options.directory = directory.path() + "/a/b/c";
  std::filesystem::remove(directory.path() + "/file");
  OpenSsd store(options);
}

TEST(SsdDirectoryTest, BufferedIoWorksToo) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  options.direct_io = false;
  OpenSsd store(options);
  const SsdRecord record = PutVersion(*store.store, options, "k", 5 * kMiB);
  ASSERT_TRUE(store->FlushPayload());
  EXPECT_TRUE(IsThere(*store.store, record));
}

}  // namespace
}  // namespace moonpool::storage
