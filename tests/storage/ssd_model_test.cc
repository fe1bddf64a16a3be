// Random operations against a map, and what they may cost.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "storage/ssd_store.h"
#include "tests/storage/ssd_directory.h"

namespace moonpool::storage {
namespace {

TEST(SsdModelTest, RandomOperationsAgreeWithAMap) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  options.garbage_share = 0.1;
  std::map<uint64_t, SsdRecord> model;
  std::optional<OpenSsd> store(std::in_place, options);
  const auto pick = [&] {
    auto it = model.lower_bound(random() % (model.rbegin()->first + 1));
    return it == model.end() ? model.begin() : it;
  };
  for (int step = 0; step < Steps(2500); ++step) {
    const uint64_t what = random() % 1000;
    if (what < 450 || model.empty()) {
      const uint64_t length = random() % 10 == 0 ? 1 + random() % 100 : 1 + random() % 200000;
      const SsdRecord record =
          PutVersion(*store->store, options, "k" + std::to_string(random() % 100), length);
      model[record.id] = record;
    } else if (what < 700) {
      const auto it = pick();
      ASSERT_TRUE(EraseVersion(*store->store, it->second));
      model.erase(it);
    } else if (what < 850) {
      EXPECT_TRUE(IsThere(*store->store, pick()->second));
    } else if (what < 900) {
      SsdRecord& record = pick()->second;
      record.key = "renamed" + std::to_string(step);
      record.expiry_ms = static_cast<int64_t>(1000 + random() % 1000);
      SsdChange change;
      change.Put(record);
      ASSERT_TRUE((*store)->Apply(change));
    } else if (what < 985) {
      (*store)->CollectGarbage();
    } else if (what < 986) {
      SsdChange change;
      change.EraseBelow((*store)->NextId());
      ASSERT_TRUE((*store)->Apply(change));
      model.clear();
    } else if (what < 988) {
      const auto floor = pick()->first;
      SsdChange change;
      change.EraseBelow(floor);
      ASSERT_TRUE((*store)->Apply(change));
      model.erase(model.begin(), model.lower_bound(floor));
    } else if (what < 992) {
      ASSERT_TRUE((*store)->FlushPayload());
    } else {
      if (random() % 2 == 0) {
        ASSERT_TRUE((*store)->MarkClean({}));
      }
      store.reset();
      options.chunk_bytes = random() % 2 == 0 ? 64 << 10 : 10000;
      store.emplace(options);
      ASSERT_EQ(store->found.size(), model.size());
      for (const auto& [id, record] : model) {
        const auto found = store->found.find(id);
        ASSERT_NE(found, store->found.end());
        EXPECT_EQ(found->second.key, record.key);
        EXPECT_EQ(found->second.expiry_ms, record.expiry_ms);
        EXPECT_EQ(found->second.length, record.length);
      }
    }
  }
  uint64_t live = 0;
  for (const auto& [id, record] : model) {
    EXPECT_TRUE(IsThere(*store->store, record));
    live += record.length;
  }
  EXPECT_EQ((*store)->stats().live_bytes, live);
}

TEST(SsdSpaceTest, ErasedSpaceComesBack) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  OpenSsd store(options);
  std::mt19937_64 random(7);
  std::vector<SsdRecord> alive;
  uint64_t most = 0;
  constexpr uint64_t kLength = 200000;
  constexpr size_t kAlive = 200;
  for (int i = 0; i < Steps(1200); ++i) {
    alive.push_back(PutVersion(*store.store, options, "k", kLength));
    if (alive.size() > kAlive) {
      std::swap(alive[random() % alive.size()], alive.back());
      ASSERT_TRUE(EraseVersion(*store.store, alive.back()));
      alive.pop_back();
    }
    while (store->CollectGarbage()) {
    }
    most = std::max(most, store->stats().disk_bytes);
  }
  CollectAll(*store.store);
  const auto stats = store->stats();
  std::printf("live %.1f MiB, files at most %.1f MiB, written %.2f times\n",
              static_cast<double>(stats.live_bytes) / kMiB, static_cast<double>(most) / kMiB,
              static_cast<double>(stats.disk_bytes_written) /
                  static_cast<double>(stats.payload_bytes_written));
  EXPECT_LT(most, 2 * kAlive * kLength);
  for (const SsdRecord& record : alive) EXPECT_TRUE(IsThere(*store.store, record));
}

uint64_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  unsigned long long total = 0, resident = 0;
  if (file == nullptr || std::fscanf(file, "%llu %llu", &total, &resident) != 2) resident = 0;
  if (file != nullptr) std::fclose(file);
  return resident * 4096;
}

TEST(SsdSpaceTest, ABigValueCostsLittleMemory) {
  if (kSanitized) GTEST_SKIP() << "sanitizers have memory of their own";
  const SsdDirectory directory;
  SsdOptions options;
  options.directory = directory.path();
  OpenSsd store(options);
  std::string value = SsdValue(1, 512 * kMiB);
  std::string chunk(options.chunk_bytes, 'c');
  const uint64_t before = ResidentBytes();
  std::atomic<bool> stop{false};
  uint64_t most = 0;
  std::thread watcher([&] {
    while (!stop) {
      most = std::max(most, ResidentBytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  const SsdRecord record{store->NextId(), "k", value.size(), 0, options.chunk_bytes};
  EXPECT_TRUE(store->WritePayload(record.id, value));
  const uint64_t written = most;
  for (uint32_t i = 0; i < 512; ++i) {
    ASSERT_TRUE(store->ReadChunk(record, i, chunk));
    EXPECT_TRUE(Same(chunk, std::string_view(value).substr(uint64_t{i} << 20, 1 << 20)));
  }
  stop = true;
  watcher.join();
  std::printf("extra memory: %.1f MiB writing, %.1f MiB with reading\n",
              static_cast<double>(written - std::min(written, before)) / kMiB,
              static_cast<double>(most - std::min(most, before)) / kMiB);
  EXPECT_LT(most - std::min(most, before), 80 * kMiB);
}

}  // namespace
}  // namespace moonpool::storage
