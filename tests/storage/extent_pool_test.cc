#include "storage/extent_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "protocol/seqlock.h"
#include "tests/protocol/random.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

constexpr uint64_t kPage = ExtentAllocator::kAlignment;

// A client's mapping of a file.
class ClientMapping {
 public:
  ClientMapping(int fd, size_t bytes, int protection)
      : bytes_(bytes), data_(MapAligned(fd, bytes, protection)) {
    MOONPOOL_CHECK(data_ != nullptr);
  }
  ~ClientMapping() { munmap(data_, bytes_); }
  ClientMapping(const ClientMapping&) = delete;
  char* data() const { return data_; }

 private:
  const size_t bytes_;
  char* const data_;
};

class ExtentPoolTest : public testing::Test {
 protected:
  ~ExtentPoolTest() override {
    EXPECT_EQ(budget_.extent_bytes(), 0u);
    pool_.reset();
    EXPECT_EQ(budget_.region_bytes(), 0u);
  }
  uint64_t Counter(const Extent& extent) const {
    return pool_->generations().counter(extent.slot).load();
  }
  std::optional<RegionInfo> Info(uint32_t id) const {
    for (const RegionInfo& info : pool_->Regions()) {
      if (info.id == id) return info;
    }
    return std::nullopt;
  }
  // Upkeep until there is nothing to do at once.
  void Maintain() {
    for (int i = 0; i < 1000 && pool_->Maintain(); ++i) {
    }
  }

  MemoryBudget budget_{16 * kMiB};
  std::unique_ptr<ExtentPool> pool_ = MakePool(SmallPool(), &budget_);
};

// --- the life of an extent -----------------------------------------------------------------------

TEST_F(ExtentPoolTest, FromReservationToRecycling) {
  auto handle = pool_->Reserve(10000);
  ASSERT_TRUE(handle);
  const Extent extent = handle->extent();
  EXPECT_EQ(extent.length, 10000u);
  EXPECT_EQ(extent.offset % kPage, 0u);
  EXPECT_LE(extent.offset + 12288, extent.region->bytes());
  EXPECT_EQ(Counter(extent), extent.generation);
  EXPECT_EQ(budget_.extent_bytes(), 12288u);
  EXPECT_EQ(budget_.region_bytes(), 2 * kMiB);
  EXPECT_EQ(Info(extent.region->id())->extents, 1u);
  EXPECT_EQ(Info(extent.region->id())->extent_bytes, 12288u);
  std::memset(handle->data(), 'x', 10000);

  ValueRef value = std::move(*handle).Publish(0x1234);
  EXPECT_FALSE(*handle);
  EXPECT_TRUE(Same(BytesOf(*value), std::string(10000, 'x')));
  EXPECT_EQ(value->crc(), 0x1234u);
  EXPECT_EQ(value->references(), 1u);
  EXPECT_EQ(Counter(extent), extent.generation);

  ValueRef another = value.Share();
  value.Reset();
  EXPECT_EQ(another->references(), 1u);
  EXPECT_EQ(Counter(extent), extent.generation);
  EXPECT_EQ(budget_.extent_bytes(), 12288u);
  another.Reset();
  EXPECT_EQ(Counter(extent), extent.generation + 1);
  EXPECT_EQ(budget_.extent_bytes(), 0u);
  EXPECT_EQ(Info(extent.region->id())->extents, 0u);
}

TEST_F(ExtentPoolTest, AnAbandonedReservationIsRecycledToo) {
  Extent extent;
  {
    auto handle = pool_->Reserve(1);
    extent = handle->extent();
    // The client may have written there already, so descriptors of before must not match.
    *handle = WriteHandle();
    EXPECT_EQ(Counter(extent), extent.generation + 1);
  }
  EXPECT_EQ(Counter(extent), extent.generation + 1);
  auto again = pool_->Reserve(1);
  EXPECT_EQ(again->extent().offset, extent.offset);
  EXPECT_NE(again->extent().generation, extent.generation);
  again->Abort();
  again->Abort();
}

TEST_F(ExtentPoolTest, HandlesMoveAndReleaseOnce) {
  auto first = pool_->Reserve(kPage);
  auto second = pool_->Reserve(kPage);
  const Extent lost = first->extent(), kept = second->extent();
  WriteHandle handle = std::move(*first);
  handle = std::move(*second);  // the first one's extent goes back
  EXPECT_EQ(Counter(lost), lost.generation + 1);
  EXPECT_EQ(Counter(kept), kept.generation);
  WriteHandle& self = handle;
  handle = std::move(self);
  EXPECT_TRUE(handle);
  ValueRef value = std::move(handle).Publish();
  ValueRef& same = value;
  value = std::move(same);
  EXPECT_TRUE(value);
  ValueRef other = MakeBulk(*pool_, "other");
  value = std::move(other);
  EXPECT_EQ(Counter(kept), kept.generation + 1);
  EXPECT_EQ(BytesOf(*value), "other");
  EXPECT_EQ(BytesOf(*ValueRef::Adopt(value.Release())), "other");
}

TEST_F(ExtentPoolTest, AnAliasShowsTheSameExtentUntilTheLastIsGone) {
  ValueRef value = MakeBulk(*pool_, std::string(20000, 'a'), 77);
  const Extent extent = value->extent();
  ValueRef alias = pool_->Alias(*value);
  ValueRef another = pool_->Alias(*alias);
  EXPECT_NE(alias.get(), value.get());
  EXPECT_EQ(alias->data(), value->data());
  EXPECT_EQ(alias->crc(), 77u);
  EXPECT_EQ(alias->references(), 1u);
  EXPECT_EQ(alias->extent().generation, extent.generation);
  EXPECT_EQ(budget_.extent_bytes(), ExtentAllocator::RoundUp(20000));  // counted once
  EXPECT_EQ(Info(extent.region->id())->extents, 1u);
  alias.Reset();
  value.Reset();  // the first of all may go before the others
  EXPECT_EQ(Counter(extent), extent.generation);
  EXPECT_TRUE(Same(BytesOf(*another), std::string(20000, 'a')));
  ValueRef fourth = pool_->Alias(*another);
  another.Reset();
  EXPECT_TRUE(Same(BytesOf(*fourth), std::string(20000, 'a')));
  fourth.Reset();
  EXPECT_EQ(Counter(extent), extent.generation + 1);
}

TEST_F(ExtentPoolTest, RandomLivesNeverOverlap) {
  // Whatever a ValueRef or a reservation holds is never handed out again, and keeps its bytes.
  struct Live {
    WriteHandle handle;
    std::vector<ValueRef> references;
    Extent extent;
    char stamp = 0;
  };
  Random random;
  SCOPED_TRACE(random.Replay());
  std::vector<Live> lives;
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> taken;  // (region, offset) -> end
  std::map<uint32_t, uint64_t> slots;                       // in use -> generation
  uint64_t bytes = 0, refused = 0;
  for (int step = 0; step < Steps(40000); ++step) {
    const bool filling = (step / 2000) % 2 == 0;
    if (lives.empty() || random.Chance(filling ? 0.6 : 0.35)) {
      const uint64_t length =
          random.Chance(0.02) ? random.Between(1, 3 * kMiB) : random.Between(1, 200'000);
      auto handle = pool_->Reserve(length);
      if (!handle) {
        ASSERT_EQ(handle.error().code, ErrorCode::kOutOfMemory);
        ++refused;
        continue;
      }
      Live live;
      live.extent = handle->extent();
      live.handle = std::move(*handle);
      live.stamp = static_cast<char>(random.Next());
      const uint32_t region = live.extent.region->id();
      const uint64_t start = live.extent.offset, end = start + ExtentAllocator::RoundUp(length);
      ASSERT_LE(end, live.extent.region->bytes());
      const auto next = taken.lower_bound({region, start});
      if (next != taken.end() && next->first.first == region) {
        ASSERT_LE(end, next->first.second);
      }
      if (next != taken.begin() && std::prev(next)->first.first == region) {
        ASSERT_LE(std::prev(next)->second, start);
      }
      taken[{region, start}] = end;
      ASSERT_TRUE(slots.emplace(live.extent.slot, live.extent.generation).second);
      ASSERT_EQ(Counter(live.extent), live.extent.generation);
      bytes += end - start;
      std::memset(live.handle.data(), live.stamp, length);
      lives.push_back(std::move(live));
    } else {
      std::swap(lives[random.Below(lives.size())], lives.back());
      Live& live = lives.back();
      ASSERT_EQ(Counter(live.extent), live.extent.generation);
      ASSERT_EQ(live.extent.data()[0], live.stamp);
      ASSERT_EQ(live.extent.data()[live.extent.length - 1], live.stamp);
      if (live.handle && random.Chance(0.7)) {
        live.references.push_back(std::move(live.handle).Publish());
      } else if (!live.references.empty() && random.Chance(0.4)) {
        live.references.push_back(random.Chance(0.5) ? live.references[0].Share()
                                                     : pool_->Alias(*live.references[0]));
      } else if (live.references.size() > 1) {
        std::swap(live.references[random.Below(live.references.size())], live.references.back());
        live.references.pop_back();
      } else {
        const Extent extent = live.extent;
        lives.pop_back();
        ASSERT_EQ(Counter(extent), extent.generation + 1);
        taken.erase({extent.region->id(), extent.offset});
        slots.erase(extent.slot);
        bytes -= ExtentAllocator::RoundUp(extent.length);
      }
    }
    ASSERT_EQ(budget_.extent_bytes(), bytes);
    ASSERT_LE(budget_.region_bytes(), budget_.limit());
    if (step % 1000 == 0) pool_->Maintain();
  }
  EXPECT_GT(refused, 0u);
}

// --- regions -------------------------------------------------------------------------------------

TEST_F(ExtentPoolTest, GrowsUntilTheBudgetIsSpent) {
  std::vector<ValueRef> values;
  while (ValueRef value = MakeBulk(*pool_, std::string(kMiB, 'x'))) {
    values.push_back(std::move(value));
  }
  EXPECT_EQ(values.size(), 16u);
  EXPECT_EQ(budget_.region_bytes(), 16 * kMiB);
  const auto refused = pool_->Reserve(kMiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  values.pop_back();
  EXPECT_TRUE(pool_->Reserve(kMiB));
}

TEST_F(ExtentPoolTest, AValueLongerThanARegionGetsOneOfItsOwn) {
  const ValueRef value = MakeBulk(*pool_, std::string(5 * kMiB, 'x'));
  ASSERT_TRUE(value);
  EXPECT_EQ(value->extent().region->bytes(), 6 * kMiB);
  EXPECT_TRUE(pool_->CouldHold(5 * kMiB));
  EXPECT_TRUE(pool_->CouldHold(10 * kMiB));
  EXPECT_FALSE(pool_->CouldHold(16 * kMiB));  // beside what there is already
  EXPECT_FALSE(pool_->CouldHold(1ull << 40));
}

// What is drained leaves room for as much.
TEST_F(ExtentPoolTest, WhatIsDrainedIsNotInTheWayOfWhatCouldBeHeld) {
  std::vector<WriteHandle> handles;
  while (auto handle = pool_->ReserveInArena(1, 2 * kMiB)) handles.push_back(std::move(*handle));
  EXPECT_FALSE(pool_->CouldHold(8 * kMiB));
  pool_->SessionEnded(1);
  EXPECT_TRUE(pool_->CouldHold(8 * kMiB));
}

// Threads that find no region at the same moment, with room for one: all have their extents in it.
TEST(ExtentPoolThreadsTest, OneRegionIsAddedForAllThatFindNone) {
  constexpr int kThreads = 4;
  for (int round = 0; round < 200; ++round) {
    MemoryBudget budget(4 * kMiB);
    const auto pool = MakePool(SmallPool(), &budget);
    std::atomic<int> arrived = 0, refused = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        ++arrived;
        while (arrived < kThreads) std::this_thread::yield();
        if (!pool->Reserve(kPage)) ++refused;
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(refused, 0) << "in round " << round;
  }
}

TEST_F(ExtentPoolTest, WhatTheHeapUsesIsNotThereForRegions) {
  budget_.AddInline(static_cast<int64_t>(13 * kMiB));
  const ValueRef value = MakeBulk(*pool_, "x");
  EXPECT_TRUE(value);
  EXPECT_FALSE(pool_->Reserve(3 * kMiB));
  budget_.AddInline(-static_cast<int64_t>(13 * kMiB));
}

TEST_F(ExtentPoolTest, TheNextRegionIsMadeAheadAndFaultedIn) {
  EXPECT_TRUE(pool_->Maintain());
  Maintain();
  ASSERT_EQ(pool_->Regions().size(), 1u);
  EXPECT_EQ(pool_->Regions()[0].populated_bytes, 2 * kMiB);
  const ValueRef value = MakeBulk(*pool_, std::string(kMiB + kPage, 'x'));
  Maintain();
  const auto regions = pool_->Regions();
  ASSERT_EQ(regions.size(), 2u);
  EXPECT_EQ(regions[1].populated_bytes, 2 * kMiB);
  EXPECT_LT(regions[0].id, regions[1].id);
  EXPECT_TRUE(Same(BytesOf(*value), std::string(kMiB + kPage, 'x')));
}

TEST_F(ExtentPoolTest, WhatIsReservedBeforeItsRegionWasFaultedInCanBe) {
  const auto resident = [](const WriteHandle& handle) {
    std::vector<unsigned char> pages((handle.length() + kPage - 1) / kPage);
    EXPECT_EQ(mincore(handle.data(), handle.length(), pages.data()), 0);
    return std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
  };
  auto handle = pool_->Reserve(100 * kPage);
  ASSERT_TRUE(handle);
  EXPECT_EQ(resident(*handle), 0);
  pool_->FaultIn(*handle);
  EXPECT_EQ(resident(*handle), 100);
  std::memset(handle->data(), 'x', handle->length());
  pool_->FaultIn(*handle);  // changes nothing
  Maintain();
  EXPECT_TRUE(Same(std::string_view(handle->data(), handle->length()),
                   std::string(100 * kPage, 'x')));
}

TEST_F(ExtentPoolTest, WithoutGenerationSlotsNothingIsReservedAndNoRegionWasted) {
  PoolOptions options = SmallPool();
  options.generation_slots = 512;
  MemoryBudget budget(16 * kMiB);
  const auto pool = MakePool(options, &budget);
  std::vector<ValueRef> values;
  while (ValueRef value = MakeBulk(*pool, "x")) values.push_back(std::move(value));
  EXPECT_EQ(values.size(), 512u);
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(pool->Reserve(1));
  EXPECT_EQ(budget.region_bytes(), 2 * kMiB);
  values.pop_back();
  EXPECT_TRUE(pool->Reserve(1));
}

TEST_F(ExtentPoolTest, ADrainingRegionTakesNothingNewAndGoesWhenItIsEmpty) {
  std::vector<uint32_t> gone;
  pool_->set_on_gone([&](uint32_t region) { gone.push_back(region); });
  ValueRef first = MakeBulk(*pool_, std::string(kMiB + kPage, 'a'));
  ValueRef second = MakeBulk(*pool_, std::string(kMiB + kPage, 'b'));
  ValueRef small = MakeBulk(*pool_, std::string(kPage, 'c'));  // beside the first
  ASSERT_EQ(small->extent().region, first->extent().region);
  const uint32_t cheapest = second->extent().region->id();
  ASSERT_TRUE(pool_->RetireOne());
  EXPECT_TRUE(Info(cheapest)->draining);
  EXPECT_FALSE(Info(first->extent().region->id())->draining);
  for (int i = 0; i < 100; ++i) {
    const auto handle = pool_->Reserve(kPage);
    ASSERT_TRUE(handle);
    EXPECT_NE(handle->extent().region->id(), cheapest);
  }
  std::vector<ValueRef> draining = pool_->Draining(10);
  ASSERT_EQ(draining.size(), 1u);
  EXPECT_EQ(draining[0].get(), second.get());
  EXPECT_EQ(second->references(), 2u);
  const auto region = pool_->FindRegion(cheapest);
  ASSERT_NE(region, nullptr);
  second.Reset();
  Maintain();
  EXPECT_TRUE(gone.empty());  // a reference is left
  EXPECT_TRUE(Info(cheapest));
  draining.clear();
  Maintain();
  EXPECT_EQ(gone, std::vector<uint32_t>{cheapest});
  EXPECT_FALSE(Info(cheapest));
  EXPECT_EQ(pool_->FindRegion(cheapest), nullptr);
  EXPECT_EQ(region->data()[0], 'b');  // whoever still has it may look
}

TEST_F(ExtentPoolTest, TheLastSharedRegionIsNotRetired) {
  EXPECT_FALSE(pool_->RetireOne());
  const ValueRef value = MakeBulk(*pool_, "x");
  EXPECT_FALSE(pool_->RetireOne());
}

TEST_F(ExtentPoolTest, DrainingNamesAllValuesInTurn) {
  // Values that cannot be moved yet must not hide those that can.
  std::vector<ValueRef> values;
  for (int i = 0; i < 40; ++i) values.push_back(MakeBulk(*pool_, std::string(kPage, 'x')));
  const ValueRef aliased = pool_->Alias(*values[7]);
  ValueRef big = MakeBulk(*pool_, std::string(2 * kMiB, 'y'));  // a second region
  ASSERT_TRUE(pool_->RetireOne());
  std::set<const BulkValue*> seen;
  for (int call = 0; call < 60; ++call) {
    const std::vector<ValueRef> some = pool_->Draining(4);
    ASSERT_LE(some.size(), 5u);
    for (const ValueRef& value : some) seen.insert(value.get());
  }
  std::set<const BulkValue*> expected = {aliased.get()};
  for (const ValueRef& value : values) expected.insert(value.get());
  EXPECT_EQ(seen, expected);
}

// --- arenas --------------------------------------------------------------------------------------

TEST_F(ExtentPoolTest, AnArenaIsForItsSessionOnly) {
  auto one = pool_->ReserveInArena(1, 5000);
  auto two = pool_->ReserveInArena(2, 5000);
  auto shared = pool_->Reserve(5000);
  ASSERT_TRUE(one && two && shared);
  const uint32_t arena = one->extent().region->id();
  EXPECT_EQ(one->extent().region->kind(), Region::Kind::kArena);
  EXPECT_NE(two->extent().region->id(), arena);
  EXPECT_EQ(shared->extent().region->kind(), Region::Kind::kShared);
  EXPECT_EQ(Info(arena)->session, 1u);
  for (int i = 0; i < 50; ++i) {
    auto more = pool_->ReserveInArena(1, 5000);
    ASSERT_TRUE(more);
    EXPECT_EQ(more->extent().region->id(), arena);
    EXPECT_NE(pool_->ReserveInArena(2, 5000)->extent().region->id(), arena);
    EXPECT_NE(pool_->Reserve(5000)->extent().region->id(), arena);
  }
  EXPECT_TRUE(pool_->MayMapWritable(1, arena));
  EXPECT_FALSE(pool_->MayMapWritable(2, arena));
  EXPECT_FALSE(pool_->MayMapWritable(kNoSession, arena));
  EXPECT_FALSE(pool_->MayMapWritable(1, shared->extent().region->id()));
  EXPECT_FALSE(pool_->MayMapWritable(kNoSession, shared->extent().region->id()));
  EXPECT_FALSE(pool_->MayMapWritable(1, 999999));
}

TEST_F(ExtentPoolTest, OnlyTheWriterSaysThatItHasMappedItsArena) {
  auto handle = pool_->ReserveInArena(1, 5000);
  auto shared = pool_->Reserve(1);
  const uint32_t arena = handle->extent().region->id();
  EXPECT_FALSE(pool_->ArenaSealed(arena));
  for (const SessionId other : {SessionId{2}, kNoSession}) {
    const Status status = pool_->ArenaMapped(other, arena);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kPermissionDenied);
  }
  EXPECT_FALSE(pool_->ArenaMapped(kNoSession, shared->extent().region->id()));
  EXPECT_FALSE(pool_->ArenaMapped(1, 999999));
  EXPECT_FALSE(pool_->ArenaSealed(arena));
  EXPECT_TRUE(pool_->ArenaMapped(1, arena));
  EXPECT_TRUE(pool_->ArenaSealed(arena));
  EXPECT_TRUE(pool_->ArenaMapped(1, arena));
  EXPECT_FALSE(pool_->MayMapWritable(1, arena));  // once is enough
  // Nobody can map it writable now, the session itself included.
  EXPECT_EQ(MapAligned(handle->extent().region->fd(), 2 * kMiB, PROT_READ | PROT_WRITE), nullptr);
}

TEST_F(ExtentPoolTest, AnArenaIsGivenUpOnlyWhenNobodyCanWriteToIt) {
  std::vector<uint32_t> gone;
  pool_->set_on_gone([&](uint32_t region) { gone.push_back(region); });
  auto handle = pool_->ReserveInArena(1, 5000);
  const uint32_t arena = handle->extent().region->id();
  std::optional<ClientMapping> client;
  client.emplace(handle->extent().region->fd(), 2 * kMiB, PROT_READ | PROT_WRITE);
  ASSERT_TRUE(pool_->ArenaMapped(1, arena));
  std::memcpy(client->data() + handle->extent().offset, "hello", 5);
  ValueRef value = std::move(*handle).Publish();
  EXPECT_EQ(BytesOf(*value).substr(0, 5), "hello");

  pool_->SessionEnded(1);
  EXPECT_TRUE(Info(arena)->draining);
  EXPECT_NE(pool_->ReserveInArena(1, 10)->extent().region->id(), arena);
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_TRUE(gone.empty() || gone[0] != arena);
  EXPECT_TRUE(Info(arena));
  value.Reset();
  Maintain();
  EXPECT_EQ(std::count(gone.begin(), gone.end(), arena), 1);  // the client is asked to unmap
  EXPECT_EQ(pool_->FindRegion(arena), nullptr);
  EXPECT_TRUE(Info(arena));
  const uint64_t counted = budget_.region_bytes();
  for (int i = 0; i < 5; ++i) Maintain();
  EXPECT_EQ(budget_.region_bytes(), counted);  // no proof, no memory
  client.reset();
  Maintain();
  EXPECT_FALSE(Info(arena));
  EXPECT_EQ(budget_.region_bytes(), counted - 2 * kMiB);
  EXPECT_EQ(std::count(gone.begin(), gone.end(), arena), 1);
}

TEST_F(ExtentPoolTest, AnArenaThatWasNeverMappedGoesAtOnce) {
  const uint32_t arena = pool_->ReserveInArena(1, 5000)->extent().region->id();
  pool_->SessionEnded(1);
  Maintain();
  EXPECT_FALSE(Info(arena));
  pool_->SessionEnded(1);
  pool_->SessionEnded(77);  // never had one
}

TEST_F(ExtentPoolTest, AnArenaSomebodyClingsToIsWaitedForOnlyForAWhile) {
  auto handle = pool_->ReserveInArena(1, 5000);
  const uint32_t arena = handle->extent().region->id();
  const ClientMapping client(handle->extent().region->fd(), 2 * kMiB, PROT_READ | PROT_WRITE);
  handle->Abort();
  pool_->SessionEnded(1);
  Maintain();
  ASSERT_TRUE(Info(arena));
  const ValueRef first = MakeBulk(*pool_, std::string(2 * kMiB, 'a'));
  const ValueRef second = MakeBulk(*pool_, std::string(kMiB + kPage, 'b'));
  EXPECT_TRUE(pool_->Emptying());
  EXPECT_TRUE(pool_->RetireOne());
  const auto begun = [&] {
    return Info(second->extent().region->id())->draining ||
           Info(first->extent().region->id())->draining;
  };
  EXPECT_FALSE(begun());
  EXPECT_TRUE(Eventually([&] { return !pool_->Emptying(); }));
  EXPECT_TRUE(pool_->RetireOne());
  EXPECT_TRUE(begun());
  EXPECT_TRUE(pool_->Emptying());
}

TEST_F(ExtentPoolTest, ArenasLeaveRoomForTheFirstSharedRegion) {
  std::vector<ValueRef> values;
  for (SessionId session = 1; session < 100; ++session) {
    auto handle = pool_->ReserveInArena(session, kPage);
    if (!handle) break;
    values.push_back(std::move(*handle).Publish());
  }
  EXPECT_EQ(values.size(), 7u);
  EXPECT_TRUE(pool_->Reserve(kPage));
}

TEST_F(ExtentPoolTest, RetiringTakesTheEmptierArenaAndOnlyWhatFitsElsewhereWhenItMust) {
  auto mine = pool_->ReserveInArena(1, kMiB + kMiB / 2);
  auto theirs = pool_->ReserveInArena(2, kMiB);
  const uint32_t my_arena = mine->extent().region->id();
  const uint32_t their_arena = theirs->extent().region->id();
  ASSERT_TRUE(pool_->ArenaMapped(1, my_arena));
  ASSERT_TRUE(pool_->ArenaMapped(2, their_arena));
  EXPECT_FALSE(pool_->RetireOne(ExtentPool::Sparing::kAll));  // there is no shared region yet
  const auto shared = pool_->Reserve(kPage);
  ASSERT_TRUE(pool_->RetireOne(ExtentPool::Sparing::kAll));
  EXPECT_FALSE(Info(my_arena)->draining);
  EXPECT_FALSE(Info(shared->extent().region->id())->draining);
  EXPECT_TRUE(Info(their_arena)->draining);
  EXPECT_NE(pool_->ReserveInArena(2, kPage)->extent().region->id(), their_arena);
  // The reservation that was made there can still be committed.
  const ValueRef value = std::move(*theirs).Publish();
  EXPECT_EQ(value->length(), kMiB);
}

TEST_F(ExtentPoolTest, AnArenaThatItsWriterHasYetToMapIsNotRetired) {
  const auto shared = pool_->Reserve(kPage);
  auto first = pool_->ReserveInArena(1, kPage);
  const uint32_t arena = first->extent().region->id();
  EXPECT_FALSE(pool_->RetireOne());
  EXPECT_TRUE(pool_->MayMapWritable(1, arena));
  ASSERT_TRUE(pool_->ArenaMapped(1, arena));
  EXPECT_TRUE(pool_->RetireOne());
  EXPECT_TRUE(Info(arena)->draining);
}

TEST_F(ExtentPoolTest, FreeElsewhereIsWhatOneWriterCannotHave) {
  const auto shared = pool_->Reserve(kPage);
  EXPECT_EQ(pool_->FreeElsewhere(kNoSession), 0u);
  EXPECT_EQ(pool_->FreeElsewhere(1), 0u);
  const auto mine = pool_->ReserveInArena(1, kMiB);
  const uint64_t free = Info(mine->extent().region->id())->bytes - kMiB;
  EXPECT_EQ(pool_->FreeElsewhere(1), 0u);
  EXPECT_EQ(pool_->FreeElsewhere(2), free);
  EXPECT_EQ(pool_->FreeElsewhere(kNoSession), free);
  pool_->SessionEnded(1);
  EXPECT_EQ(pool_->FreeElsewhere(2), 0u);
}

TEST_F(ExtentPoolTest, AnArenaThatDrainsMayBeMappedForWhatIsReservedThere) {
  auto reserved = pool_->ReserveInArena(1, kPage);
  const uint32_t arena = reserved->extent().region->id();
  pool_->SessionEnded(1);
  ASSERT_TRUE(Info(arena)->draining);
  EXPECT_TRUE(pool_->MayMapWritable(1, arena));
  EXPECT_FALSE(pool_->MayMapWritable(2, arena));
  { const auto aborted = std::move(*reserved); }
  EXPECT_FALSE(pool_->MayMapWritable(1, arena));
}

TEST(ExtentPoolsTest, RegionNumbersAreUniqueAcrossPools) {
  MemoryBudget one_budget(16 * kMiB), two_budget(16 * kMiB);
  const auto one = MakePool(SmallPool(), &one_budget);
  const auto two = MakePool(SmallPool(), &two_budget);
  const ValueRef a = MakeBulk(*one, "a"), b = MakeBulk(*two, "b");
  const uint32_t region = a->extent().region->id();
  EXPECT_NE(region, b->extent().region->id());
  EXPECT_NE(one->FindRegion(region), nullptr);
  EXPECT_EQ(two->FindRegion(region), nullptr);
  EXPECT_FALSE(two->MayMapWritable(1, region));
  EXPECT_FALSE(two->ArenaMapped(1, region));
}

TEST(ExtentPoolDeathTest, ItsValuesMustBeGoneFirst) {
  EXPECT_DEATH(
      {
        MemoryBudget budget(16 * kMiB);
        auto pool = MakePool(SmallPool(), &budget);
        const ValueRef value = MakeBulk(*pool, "x");
        pool.reset();
      },
      "CHECK failed");
  MemoryBudget budget(16 * kMiB);
  const auto pool = MakePool(SmallPool(), &budget);
  EXPECT_DEATH((void)pool->Reserve(0), "CHECK failed");
}

// --- readers without references ------------------------------------------------------------------

// Writers recycle extents as fast as they can.  Readers take a descriptor, keep no reference, copy
// through mappings of their own like a client, and decide by the generation.  Every word of a value
// holds its stamp, so a copy that is of another value, or of two, is seen.
class Churn {
 public:
  struct Descriptor {
    uint32_t region = 0;
    uint64_t offset = 0, length = 0;
    uint32_t slot = 0;
    uint64_t generation = 0, stamp = 0;
  };

  // `accept` is the reader's final check; returns the number of wrong copies that passed it.
  template <typename Accept>
  uint64_t Run(uint64_t seed, uint64_t versions, uint64_t stop_at_wrong, Accept&& accept) {
    Random seeds(seed);
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> wrong{0};
    std::vector<std::thread> readers, writers;
    for (int r = 0; r < 2; ++r) {
      readers.emplace_back([&, s = seeds.Next()] {
        Random random(s);
        const GenerationTable& table = pool_->generations();
        const ClientMapping counters(table.fd(), table.bytes(), PROT_READ);
        const auto* generations =
            reinterpret_cast<const protocol::GenerationCounter*>(counters.data());
        std::map<uint32_t, std::unique_ptr<ClientMapping>> regions;
        std::vector<uint64_t> copy(kMostBytes / 8);
        while (!stop) {
          const Descriptor d = Locate(random.Below(kKeys));
          if (d.length == 0) continue;
          auto& mapping = regions[d.region];
          if (mapping == nullptr) {
            const auto region = pool_->FindRegion(d.region);
            mapping =
                std::make_unique<ClientMapping>(region->read_fd(), region->bytes(), PROT_READ);
          }
          const protocol::GenerationCounter& counter = generations[d.slot];
          if (protocol::LoadGeneration(counter) != d.generation) continue;
          protocol::RacyCopy(copy.data(), mapping->data() + d.offset, d.length);
          if (!accept(counter, d.generation)) continue;
          accepted_.fetch_add(1, std::memory_order_relaxed);
          const bool right =
              std::all_of(copy.begin(), copy.begin() + static_cast<int64_t>(d.length / 8),
                          [&](uint64_t word) { return word == d.stamp; });
          if (!right && wrong.fetch_add(1) + 1 >= stop_at_wrong) stop = true;
        }
      });
    }
    std::atomic<uint64_t> next{1};
    for (int w = 0; w < 2; ++w) {
      writers.emplace_back([&, s = seeds.Next()] {
        Random random(s);
        // Go on until the readers have had their share, however the threads are scheduled.
        while (!stop && (next < versions || accepted_ < 2000)) {
          Write(random.Below(kKeys),
                random.Between(1, kMostBytes / 4096) * 4096 - 8 * random.Below(512),
                next.fetch_add(1));
        }
      });
    }
    for (std::thread& thread : writers) thread.join();
    stop = true;
    for (std::thread& thread : readers) thread.join();
    return wrong;
  }
  uint64_t accepted() const { return accepted_; }

 private:
  static constexpr uint64_t kKeys = 24;
  static constexpr uint64_t kMostBytes = 64 * 1024;

  void Write(uint64_t key, uint64_t length, uint64_t stamp) {
    auto handle = pool_->Reserve(length);
    if (!handle) return;
    auto* words = reinterpret_cast<volatile uint64_t*>(handle->data());
    for (uint64_t i = 0; i < length / 8; ++i) words[i] = stamp;
    const Extent e = handle->extent();
    ValueRef value = std::move(*handle).Publish();
    MutexLock lock(mu_);
    descriptors_[key] = {e.region->id(), e.offset, e.length, e.slot, e.generation, stamp};
    std::swap(values_[key], value);
    // The old version goes here, under the lock or not: its readers hold nothing.
  }
  Descriptor Locate(uint64_t key) {
    MutexLock lock(mu_);
    return descriptors_[key];
  }

  MemoryBudget budget_{2 * kMiB};
  std::unique_ptr<ExtentPool> pool_ = MakePool(SmallPool(), &budget_);
  Mutex mu_;
  Descriptor descriptors_[kKeys] GUARDED_BY(mu_);
  ValueRef values_[kKeys] GUARDED_BY(mu_);
  std::atomic<uint64_t> accepted_{0};
};

TEST(ExtentPoolReadersTest, AcceptedCopiesAreOfTheValueAskedFor) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Churn churn;
  EXPECT_EQ(churn.Run(random.Next(), static_cast<uint64_t>(Steps(200000)), 1,
                      protocol::GenerationUnchanged),
            0u);
  std::printf("%llu copies accepted\n", static_cast<unsigned long long>(churn.accepted()));
  EXPECT_GE(churn.accepted(), 1000u);
}

TEST(ExtentPoolReadersTest, ReadersThatSkipTheFinalCheckAreCaught) {
  Random random;
  SCOPED_TRACE(random.Replay());
  Churn churn;
  EXPECT_GT(churn.Run(random.Next(), 20'000'000, 1,
                      [](const protocol::GenerationCounter&, uint64_t) { return true; }),
            0u)
      << "the checker has no teeth";
}

// --- threads -------------------------------------------------------------------------------------

TEST(ExtentPoolThreadsTest, ReserveShareDrainAndMaintainAtOnce) {
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  MemoryBudget budget(24 * kMiB);
  const auto pool = MakePool(SmallPool(), &budget);
  constexpr int kWorkers = 3;
  const int kSteps = Steps(60000);
  std::atomic<int> working{kWorkers};
  std::atomic<uint64_t> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kWorkers; ++t) {
    threads.emplace_back([&, t, seed = seeds.Next()] {
      Random random(seed);
      struct Held {
        ValueRef value;
        char stamp;
      };
      std::vector<Held> held;
      SessionId session = static_cast<SessionId>(t + 1);
      for (int step = 0; step < kSteps; ++step) {
        if (held.size() < 40 && random.Chance(0.55)) {
          const uint64_t length = random.Between(1, 60000);
          const char stamp = static_cast<char>(random.Next());
          if (random.Chance(0.2)) {
            // Only the client could write there; what counts here is the bookkeeping.
            auto handle = pool->ReserveInArena(session, length);
            if (handle && random.Chance(0.5)) {
              held.push_back({std::move(*handle).Publish(), 0});
            }
            continue;
          }
          auto handle = pool->Reserve(length);
          if (!handle) continue;
          std::memset(handle->data(), stamp, length);
          if (random.Chance(0.1)) continue;
          held.push_back({std::move(*handle).Publish(), stamp});
        } else if (!held.empty()) {
          std::swap(held[random.Below(held.size())], held.back());
          const BulkValue& value = *held.back().value;
          if (value.data()[0] != held.back().stamp ||
              value.data()[value.length() - 1] != held.back().stamp) {
            wrong.fetch_add(1);
          }
          if (random.Chance(0.2)) {
            held.push_back({pool->Alias(value), held.back().stamp});
          } else {
            held.pop_back();
          }
        }
        if (random.Chance(0.001)) {
          pool->SessionEnded(session);
          session += kWorkers;
        }
      }
      held.clear();
      pool->SessionEnded(session);
      working.fetch_sub(1);
    });
  }
  threads.emplace_back([&, seed = seeds.Next()] {
    Random random(seed);
    while (working > 0) {
      pool->Maintain();
      if (random.Chance(0.2)) pool->RetireOne();
      const std::vector<ValueRef> draining = pool->Draining(8);
      for (const RegionInfo& info : pool->Regions()) {
        if (info.extent_bytes > info.bytes) wrong.fetch_add(1);
        (void)pool->FindRegion(info.id);
        (void)pool->ArenaMapped(info.session, info.id);
      }
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(budget.extent_bytes(), 0u);
  EXPECT_EQ(pool->generations().slots_used(), 0u);
  for (int i = 0; i < 1000 && pool->Maintain(); ++i) {
  }
  for (const RegionInfo& info : pool->Regions()) {
    EXPECT_EQ(info.kind, Region::Kind::kShared);
    EXPECT_EQ(info.extents, 0u);
  }
}

}  // namespace
}  // namespace moonpool::storage
