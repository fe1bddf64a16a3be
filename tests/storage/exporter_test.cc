// When a pool's regions are exported and withdrawn, and what waits for that.
#include "storage/exporter.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "protocol/mutex.h"
#include "tests/protocol/random.h"
#include "tests/storage/arena_client.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

bool HasSeal(const Region& region, int seal) {
  return (fcntl(region.fd(), F_GET_SEALS) & seal) != 0;
}

// Checks every call against the contract.  It asks the pool, which would deadlock under its lock.
class StrictExporter : public Exporter {
 public:
  explicit StrictExporter(ExtentPool& pool) : pool_(pool) {}
  ~StrictExporter() override { pool_.set_exporter(nullptr); }

  Status Export(const std::shared_ptr<Region>& region) override {
    const auto info = Info(region->id());
    EXPECT_TRUE(info);
    EXPECT_FALSE(info->draining);
    EXPECT_EQ(info->populated_bytes, info->bytes) << "not all of it was faulted in";
    EXPECT_TRUE(region->kind() == Region::Kind::kShared ||
                HasSeal(*region, F_SEAL_FUTURE_WRITE));
    ++exports_;
    if (refuse_) return Fail(ErrorCode::kOutOfMemory, "no more");
    MutexLock lock(mu_);
    EXPECT_TRUE(exported_.emplace(region->id(), region).second);
    return {};
  }

  void Withdraw(uint32_t id) override {
    std::shared_ptr<Region> region;
    {
      MutexLock lock(mu_);
      ASSERT_TRUE(exported_.contains(id));
      region = exported_[id];
    }
    const auto before = Info(id);
    ASSERT_TRUE(before) << "its memory was given up";
    EXPECT_TRUE(before->draining && before->exported);
    EXPECT_EQ(before->extents, 0u);
    EXPECT_FALSE(HasSeal(*region, F_SEAL_WRITE)) << "the proof was tried while pages may be pinned";
    if (while_withdrawing_) while_withdrawing_(id);
    pool_.GiveUpEmpty();  // as any thread may
    EXPECT_TRUE(Info(id)) << "its memory was given up before it was withdrawn";
    EXPECT_FALSE(HasSeal(*region, F_SEAL_WRITE));
    // Until this returns somebody may read it: it is there, and the pool has not let it go.
    EXPECT_GT(region.use_count(), 2);
    MutexLock lock(mu_);
    exported_.erase(id);
    withdrawn_.emplace(id, std::move(region));
  }

  bool Exported(uint32_t id) {
    MutexLock lock(mu_);
    return exported_.contains(id);
  }
  // The region that was withdrawn; kept here.
  std::shared_ptr<Region> Withdrawn(uint32_t id) {
    MutexLock lock(mu_);
    return withdrawn_.contains(id) ? withdrawn_[id] : nullptr;
  }
  std::set<uint32_t> exported() {
    std::set<uint32_t> ids;
    MutexLock lock(mu_);
    for (const auto& [id, region] : exported_) ids.insert(id);
    return ids;
  }
  void Forget() {
    MutexLock lock(mu_);
    withdrawn_.clear();
  }
  void refuse(bool refuse) { refuse_ = refuse; }
  void while_withdrawing(std::function<void(uint32_t)> act) { while_withdrawing_ = std::move(act); }
  int exports() const { return exports_; }

 private:
  std::optional<RegionInfo> Info(uint32_t id) const {
    for (const RegionInfo& info : pool_.Regions()) {
      if (info.id == id) return info;
    }
    return std::nullopt;
  }

  ExtentPool& pool_;
  std::atomic<bool> refuse_{false};
  std::atomic<int> exports_{0};
  std::function<void(uint32_t)> while_withdrawing_;
  Mutex mu_;
  std::map<uint32_t, std::shared_ptr<Region>> exported_ GUARDED_BY(mu_);
  std::map<uint32_t, std::shared_ptr<Region>> withdrawn_ GUARDED_BY(mu_);
};

class ExporterTest : public testing::Test {
 protected:
  ExporterTest() { pool_->set_exporter(&exporter_); }

  std::optional<RegionInfo> Info(uint32_t id) const {
    for (const RegionInfo& info : pool_->Regions()) {
      if (info.id == id) return info;
    }
    return std::nullopt;
  }
  void Maintain() {
    for (int i = 0; i < 1000 && pool_->Maintain(); ++i) {
    }
  }
  // A session that has mapped its arena, and has a value there.
  ValueRef PutInArena(SessionId session, std::optional<char*>* mapping) {
    auto handle = pool_->ReserveInArena(session, 5000);
    MOONPOOL_CHECK(handle.has_value());
    Region& arena = *handle->extent().region;
    mapping->emplace(MapAligned(arena.fd(), arena.bytes(), PROT_READ | PROT_WRITE));
    MOONPOOL_CHECK(pool_->ArenaMapped(session, arena.id()).has_value());
    return std::move(*handle).Publish();
  }

  MemoryBudget budget_{32 * kMiB};
  std::unique_ptr<ExtentPool> pool_ = MakePool(SmallPool(4 * kMiB), &budget_);
  StrictExporter exporter_{*pool_};
};

TEST_F(ExporterTest, ARegionIsExportedOnceAllOfItWasFaultedIn) {
  const ValueRef value = MakeBulk(*pool_, std::string(kMiB, 'a'));
  const uint32_t region = value->extent().region->id();
  pool_->Maintain(2 * kMiB);
  EXPECT_FALSE(exporter_.Exported(region));
  EXPECT_FALSE(Info(region)->exported);
  Maintain();
  EXPECT_TRUE(exporter_.Exported(region));
  EXPECT_TRUE(Info(region)->exported);
  // And so is the one that was made ahead.
  EXPECT_EQ(exporter_.exported().size(), pool_->Regions().size());
}

TEST_F(ExporterTest, OneThatIsEmptyIsWithdrawnBeforeItsMemoryGoes) {
  ValueRef value = MakeBulk(*pool_, std::string(2 * kMiB, 'a'));
  const ValueRef other = MakeBulk(*pool_, std::string(3 * kMiB, 'b'));
  Maintain();
  const uint32_t region = value->extent().region->id();
  // The one that was made ahead is cheaper to empty.
  for (int i = 0; i < 3 && !Info(region)->draining; ++i) {
    ASSERT_TRUE(pool_->RetireOne());
    Maintain();
  }
  ASSERT_TRUE(Info(region)->draining);
  EXPECT_TRUE(exporter_.Exported(region)) << "it has a value still";
  const uint64_t counted = budget_.region_bytes();
  exporter_.while_withdrawing([&](uint32_t) { EXPECT_EQ(budget_.region_bytes(), counted); });
  value.Reset();
  EXPECT_FALSE(pool_->GiveUpEmpty()) << "that is for upkeep to do";
  EXPECT_TRUE(Info(region));
  Maintain();
  EXPECT_FALSE(exporter_.Exported(region));
  EXPECT_FALSE(Info(region));
  EXPECT_EQ(budget_.region_bytes(), counted - 4 * kMiB);
}

TEST_F(ExporterTest, ReservationsMayGoOnMeanwhile) {
  ValueRef value = MakeBulk(*pool_, std::string(kMiB, 'a'));
  Maintain();
  int calls = 0;
  exporter_.while_withdrawing([&](uint32_t) {
    EXPECT_TRUE(pool_->Reserve(4096)) << "no lock is held, and no other region is affected";
    ++calls;
  });
  std::optional<char*> mapping;
  ValueRef mine = PutInArena(1, &mapping);
  Maintain();
  mine.Reset();
  munmap(*mapping, 2 * kMiB);
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_EQ(calls, 1);
}

TEST_F(ExporterTest, AnArenaIsExportedOnceItIsSealedAndProvenWhenItIsWithdrawn) {
  auto unmapped = pool_->ReserveInArena(2, 5000);
  const uint32_t other = unmapped->extent().region->id();
  std::optional<char*> mapping;
  ValueRef value = PutInArena(1, &mapping);
  const uint32_t arena = value->extent().region->id();
  Maintain();
  EXPECT_TRUE(exporter_.Exported(arena));
  EXPECT_FALSE(exporter_.Exported(other)) << "nothing is committed there yet";
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_TRUE(exporter_.Exported(arena)) << "its values are still read";
  munmap(*mapping, 2 * kMiB);
  value.Reset();
  Maintain();
  EXPECT_FALSE(Info(arena));
  ASSERT_NE(exporter_.Withdrawn(arena), nullptr);
  EXPECT_TRUE(HasSeal(*exporter_.Withdrawn(arena), F_SEAL_WRITE));
  // The one that was never mapped goes without ever having been exported.
  unmapped->Abort();
  pool_->SessionEnded(2);
  Maintain();
  EXPECT_FALSE(Info(other));
  EXPECT_EQ(exporter_.Withdrawn(other), nullptr);
}

TEST_F(ExporterTest, WhatDrainsIsNotExportedAnyMore) {
  std::optional<char*> mapping;
  ValueRef value = PutInArena(1, &mapping);
  const uint32_t arena = value->extent().region->id();
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_FALSE(exporter_.Exported(arena));
  munmap(*mapping, 2 * kMiB);
  value.Reset();
  Maintain();
  EXPECT_FALSE(Info(arena));
}

TEST_F(ExporterTest, ARefusedRegionIsServedAndGoesLikeAnyOther) {
  exporter_.refuse(true);
  std::optional<char*> mapping;
  ValueRef value = PutInArena(1, &mapping);
  const uint32_t arena = value->extent().region->id();
  Maintain();
  const int tried = exporter_.exports();
  EXPECT_GT(tried, 0);
  Maintain();
  EXPECT_EQ(exporter_.exports(), tried) << "not again and again";
  EXPECT_FALSE(Info(arena)->exported);
  munmap(*mapping, 2 * kMiB);
  value.Reset();
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_FALSE(Info(arena));
  EXPECT_EQ(exporter_.Withdrawn(arena), nullptr);
}

// Writers, sessions that come and go, regions that are retired, and upkeep at once.
TEST_F(ExporterTest, RegionsComeAndGoUnderLoad) {
  std::atomic<bool> stop{false};
  std::thread upkeep([&] {
    while (!stop) {
      pool_->Maintain(2 * kMiB);
      exporter_.Forget();
    }
  });
  std::vector<std::thread> writers;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    writers.emplace_back([&, seed] {
      test::Random random(seed);
      std::vector<ValueRef> values;
      for (int step = 0; step < Steps(3000); ++step) {
        const std::string bytes(4096 * (1 + random.Below(200)), 'v');
        if (ValueRef value = MakeBulk(*pool_, bytes)) values.push_back(std::move(value));
        while (values.size() > random.Below(12)) {
          values.erase(values.begin() + static_cast<ptrdiff_t>(random.Below(values.size())));
        }
        if (random.Below(50) == 0) pool_->RetireOne();
        if (random.Below(20) == 0) pool_->GiveUpEmpty();
        if (random.Below(100) == 0) {
          std::optional<char*> mapping;
          if (budget_.region_bytes() < 20 * kMiB) {
            const SessionId session = seed * 1000000 + static_cast<uint64_t>(step);
            const ValueRef mine = PutInArena(session, &mapping);
            std::this_thread::yield();
            munmap(*mapping, 2 * kMiB);
            pool_->SessionEnded(session);
          }
        }
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_TRUE(Eventually([&] {
    for (const RegionInfo& info : pool_->Regions()) {
      if (info.draining) return false;
    }
    return true;
  }));
  stop = true;
  upkeep.join();
  // What is exported is what is there.
  for (const uint32_t id : exporter_.exported()) EXPECT_TRUE(Info(id));
  EXPECT_GT(exporter_.exports(), 0);
}

}  // namespace
}  // namespace moonpool::storage
