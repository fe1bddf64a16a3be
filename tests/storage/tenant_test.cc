#include "storage/tenant.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "storage/upkeep.h"
#include "tests/protocol/random.h"
#include "tests/storage/arena_client.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using test::Random;

constexpr SessionId kSession = 5;

TenantOptions SmallTenant(MaxmemoryPolicy policy, uint64_t quota_bytes = 16 * kMiB) {
  TenantOptions options;
  options.quota_bytes = quota_bytes;
  options.policy = policy;
  options.region_bytes = 2 * kMiB;
  options.arena_bytes = 2 * kMiB;
  options.region.huge_pages = RegionOptions::HugePages::kNo;
  return options;
}

std::unique_ptr<Tenant> MakeTenant(const TenantOptions& options) {
  auto tenant = Tenant::Create(options);
  MOONPOOL_CHECK(tenant.has_value());
  return std::move(*tenant);
}

std::string Name(int i) {
  return "key:" + std::to_string(i);
}

std::string Contents(int i, size_t bytes) {
  std::string contents(bytes, static_cast<char>('a' + i % 26));
  std::memcpy(contents.data(), &i, std::min(bytes, sizeof(i)));
  return contents;
}

// SET of a bulk value; false when it was refused or would have to wait.
bool SetBulk(Tenant& tenant, const std::string& key, const std::string& bytes, int64_t now_ms = 1) {
  auto handle = tenant.Reserve(bytes.size(), now_ms);
  if (!handle) {
    const ErrorCode code = handle.error().code;
    EXPECT_TRUE(code == ErrorCode::kOutOfMemory || code == ErrorCode::kBusy)
        << handle.error().message;
    return false;
  }
  std::memcpy(handle->data(), bytes.data(), bytes.size());
  ValueRef value = std::move(*handle).Publish();
  KeyLock lock(tenant.keyspace(), key, now_ms);
  lock.key.SetBulk(std::move(value));
  return true;
}

// Stores values from key `first` on until there is no room without eviction; returns the first
// key that found none.
int FillUp(Tenant& tenant, size_t bytes, int first = 0) {
  for (int i = first;; ++i) {
    auto handle = tenant.pool().Reserve(bytes);
    if (!handle) return i;
    const std::string contents = Contents(i, bytes);
    std::memcpy(handle->data(), contents.data(), bytes);
    ValueRef value = std::move(*handle).Publish();
    const std::string name = Name(i);
    KeyLock lock(tenant.keyspace(), name, 1);
    lock.key.SetBulk(std::move(value));
  }
}

std::optional<std::string> Get(Tenant& tenant, const std::string& key, int64_t now_ms = 1) {
  KeyLock lock(tenant.keyspace(), key, now_ms);
  const Entry* entry = lock.key.Read();
  if (entry == nullptr) return std::nullopt;
  return std::string(ValueOf(*entry));
}

bool Has(Tenant& tenant, const std::string& key) {
  return Get(tenant, key).has_value();
}

// A reference as a lease, a hold or a reply on its way out has it.
ValueRef Hold(Tenant& tenant, const std::string& key) {
  KeyLock lock(tenant.keyspace(), key, 1);
  const Entry* entry = lock.key.Find();
  return entry == nullptr ? ValueRef() : ValueRef::Share(entry->bulk());
}

void SetPin(Tenant& tenant, const std::string& key, bool hard) {
  KeyLock lock(tenant.keyspace(), key, 1);
  ASSERT_NE(lock.key.Find(), nullptr);
  lock.key.SetPin({.until_ms = 0, .hard = hard});
}

void Erase(Tenant& tenant, const std::string& key) {
  KeyLock lock(tenant.keyspace(), key, 1);
  EXPECT_TRUE(lock.key.Erase());
}

// Upkeep until there is nothing to do at once.
void Maintain(Tenant& tenant, int64_t now_ms = 1) {
  for (int i = 0; i < 10000 && tenant.Maintain(now_ms); ++i) {
  }
}

std::optional<RegionInfo> Info(Tenant& tenant, uint32_t id) {
  for (const RegionInfo& info : tenant.pool().Regions()) {
    if (info.id == id) return info;
  }
  return std::nullopt;
}

constexpr MaxmemoryPolicy kEvicting[] = {MaxmemoryPolicy::kAllKeysLru, MaxmemoryPolicy::kAllKeysLfu,
                                         MaxmemoryPolicy::kAllKeysS3Fifo,
                                         MaxmemoryPolicy::kAllKeysPrefix,
                                         MaxmemoryPolicy::kAllKeysRandom};

// --- making room ---------------------------------------------------------------------------------

TEST(TenantTest, ReservationsEvictWhatTheyNeed) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    for (int i = 0; i < 1000; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000))) << i;
      ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 100'000)));
      ASSERT_LE(tenant->budget().region_bytes(), 16 * kMiB);
    }
    int left = 0;
    for (int i = 0; i < 1000; ++i) {
      const auto value = Get(*tenant, Name(i));
      if (!value) continue;
      ++left;
      ASSERT_TRUE(Same(*value, Contents(i, 100'000)));
    }
    EXPECT_GT(left, 130);  // of 160 that fit
    EXPECT_EQ(tenant->keyspace().Size(), static_cast<uint64_t>(left));
  }
}

TEST(TenantTest, WithoutEvictionNothingIsLost) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kNoEviction));
  int stored = 0;
  while (stored < 1000 && SetBulk(*tenant, Name(stored), Contents(stored, 60'000))) ++stored;
  ASSERT_GT(stored, 200);
  ASSERT_LT(stored, 300);
  // A clerk may shuffle the furniture, but throws nothing away.
  for (int round = 0; round < 200; ++round) {
    tenant->Maintain(1);
    if (round % 10 == 0) {
      EXPECT_FALSE(tenant->Reserve(60'000, 1));
    }
  }
  for (int i = 0; i < stored; ++i) {
    ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 60'000))) << i << " of " << stored;
  }
  EXPECT_EQ(tenant->keyspace().stats().evicted, 0u);
  // What is deleted makes room again, all of it in the end.
  Erase(*tenant, Name(0));
  Maintain(*tenant);
  EXPECT_TRUE(SetBulk(*tenant, Name(0), Contents(0, 60'000)));
  for (int i = 0; i < stored; ++i) Erase(*tenant, Name(i));
  Maintain(*tenant);
  int again = 0;
  while (again < 1000 && SetBulk(*tenant, Name(again), Contents(again, 60'000))) ++again;
  const auto refused = tenant->Reserve(60'000, 1);
  EXPECT_GE(again, stored - stored / 10) << (refused ? "there is room" : refused.error().message);
}

TEST(TenantTest, AValueThatCannotFitEvictsNothing) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
  const auto refused = tenant->Reserve(17 * kMiB, 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(refused.error().message.find("maxmemory"), std::string::npos);
  EXPECT_EQ(tenant->keyspace().Size(), 20u);
}

TEST(TenantTest, AFullCacheStaysFullUnderSteadyWriting) {
  // Background work must not throw away much more than the writers need.
  const std::string bytes = Contents(0, 100'000);
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy, 64 * kMiB));
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 6000; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), bytes)) << i;
      if (i % 4 == 0) tenant->Maintain(1);
      if (i > 1000) least = std::min(least, tenant->budget().extent_bytes());
    }
    EXPECT_GT(static_cast<double>(least) / static_cast<double>(64 * kMiB), 0.80)
        << static_cast<int>(policy);
  }
}

TEST(TenantTest, EvictionStartsAboveTheHighWatermarkAndEndsAtTheLowOne) {
  for (const auto policy : kEvicting) {
    TenantOptions options = SmallTenant(policy, 64 * kMiB);
    options.high_watermark = 0.5;
    options.evict_ratio = 0.2;
    const auto tenant = MakeTenant(options);
    const auto used = [&] {
      return static_cast<double>(tenant->budget().used_bytes()) / static_cast<double>(64 * kMiB);
    };
    int i = 0;
    const auto fill_to = [&](double share) {
      for (; used() < share; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
    };
    fill_to(0.49);
    Maintain(*tenant);
    EXPECT_GT(used(), 0.48);  // nothing yet
    EXPECT_EQ(tenant->keyspace().stats().evicted, 0u);
    fill_to(0.51);
    Maintain(*tenant);
    EXPECT_LT(used(), 0.301);
    EXPECT_GT(used(), 0.29);
    const uint64_t evicted = tenant->keyspace().stats().evicted;
    Maintain(*tenant);
    EXPECT_EQ(tenant->keyspace().stats().evicted, evicted);  // and rests
    // Between the two it lets things grow.
    fill_to(0.45);
    Maintain(*tenant);
    EXPECT_GT(used(), 0.44);
    tenant->SetWatermarks(0.2, 0.1);
    Maintain(*tenant);
    EXPECT_LT(used(), 0.101);
  }
}

TEST(TenantTest, BothKindsOfValuesGive) {
  TenantOptions options = SmallTenant(MaxmemoryPolicy::kAllKeysLru, 32 * kMiB);
  const auto tenant = MakeTenant(options);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
  for (int i = 100; i < 100'100; ++i) {
    const std::string name = Name(i);
    KeyLock lock(tenant->keyspace(), name, 1);
    lock.key.Set(std::string(60, 'x'));
  }
  const uint64_t extents = tenant->budget().extent_bytes(), heap = tenant->budget().inline_bytes();
  tenant->SetWatermarks(0.3, 0.05);
  Maintain(*tenant);
  EXPECT_LT(tenant->budget().used_bytes(), 8.1 * kMiB);
  // Neither is wiped out for the other.
  EXPECT_LT(tenant->budget().extent_bytes(), extents);
  EXPECT_LT(tenant->budget().inline_bytes(), heap);
  EXPECT_GT(tenant->budget().extent_bytes(), extents / 8);
  EXPECT_GT(tenant->budget().inline_bytes(), heap / 8);
}

TEST(TenantTest, MakeRoomKeepsInlineValuesWithinTheQuota) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy, 4 * kMiB));
    for (int i = 0; i < 40000; ++i) {
      ASSERT_TRUE(tenant->MakeRoom(1));
      const std::string name = Name(i);
      KeyLock lock(tenant->keyspace(), name, 1);
      lock.key.Set(std::string(200, 'x'));
    }
    EXPECT_LE(tenant->budget().used_bytes(), 4 * kMiB + 64 * 1024);
    EXPECT_GT(tenant->keyspace().stats().evicted, 0u);
    EXPECT_GT(tenant->keyspace().Size(), 10000u);
  }
  for (const auto policy : {MaxmemoryPolicy::kNoEviction, MaxmemoryPolicy::kVolatileLru}) {
    const auto tenant = MakeTenant(SmallTenant(policy, 4 * kMiB));
    int i = 0;
    while (i < 40000 && tenant->MakeRoom(1)) {
      const std::string name = Name(i++);
      KeyLock lock(tenant->keyspace(), name, 1);
      lock.key.Set(std::string(200, 'x'));
    }
    EXPECT_LT(i, 40000);
    EXPECT_EQ(tenant->keyspace().Size(), static_cast<uint64_t>(i));
  }
}

TEST(TenantTest, ALowerQuotaGivesRegionsBack) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru, 32 * kMiB));
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
  EXPECT_GT(tenant->budget().region_bytes(), 28 * kMiB);
  tenant->SetQuota(12 * kMiB);
  EXPECT_TRUE(tenant->MakeRoom(1));
  for (int i = 0; i < 1000 && tenant->budget().region_bytes() > 12 * kMiB; ++i) tenant->Maintain(1);
  EXPECT_LE(tenant->budget().region_bytes(), 12 * kMiB);
  EXPECT_GT(tenant->keyspace().Size(), 50u);
  for (int i = 0; i < 300; ++i) {
    const auto value = Get(*tenant, Name(i));
    if (value) {
      ASSERT_TRUE(Same(*value, Contents(i, 100'000)));
    }
  }
}

// --- pins and holds ------------------------------------------------------------------------------

TEST(TenantPinTest, HardPinsAreNeverEvicted) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
      if (i < 50) SetPin(*tenant, Name(i), true);
    }
    for (int i = 100; i < 600; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000))) << i;
      if (i % 8 == 0) tenant->Maintain(1);
    }
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 100'000)));
    EXPECT_EQ(tenant->keyspace().hard_pinned_bytes(), 50u * 100'000);
  }
}

TEST(TenantPinTest, WhenOnlyHardPinsAreLeftThereIsNoMemory) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    int stored = 0;
    while (stored < 1000 && SetBulk(*tenant, Name(stored), Contents(stored, 100'000))) {
      SetPin(*tenant, Name(stored), true);
      ++stored;
    }
    EXPECT_GT(stored, 130);
    EXPECT_LT(stored, 170);
    for (int i = 0; i < stored; ++i) ASSERT_TRUE(Has(*tenant, Name(i)));
  }
}

TEST(TenantPinTest, OneValueThatMayGoIsFoundAmongManyThatMayNot) {
  for (const auto policy : kEvicting) {
    for (const bool hard : {false, true}) {
      for (const int free : {0, 70, 149}) {  // wherever it stands in the policy
        SCOPED_TRACE(testing::Message() << "policy " << static_cast<int>(policy) << " hard " << hard
                                        << " free " << free);
        const auto tenant = MakeTenant(SmallTenant(policy));
        const int stored = FillUp(*tenant, 100'000);
        ASSERT_GE(stored, 150);
        for (int i = 0; i < stored; ++i) {
          if (i != free) SetPin(*tenant, Name(i), hard);
        }
        // The one that may go is the most popular of all.
        for (int use = 0; use < 5; ++use) {
          const ValueRef popular = Hold(*tenant, Name(free));
          BulkValue* const touched[] = {popular.get()};
          tenant->keyspace().Touch(touched);
        }
        ASSERT_TRUE(SetBulk(*tenant, "one more", Contents(1, 100'000)));
        EXPECT_FALSE(Has(*tenant, Name(free)));
        EXPECT_EQ(tenant->keyspace().Size(), static_cast<uint64_t>(stored));
      }
    }
  }
}

TEST(TenantPinTest, SoftPinsGoWhenThereIsNothingElse) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    int stored = 0;
    for (; stored < 120; ++stored) {
      ASSERT_TRUE(SetBulk(*tenant, Name(stored), Contents(stored, 100'000)));
      SetPin(*tenant, Name(stored), stored % 2 == 0);
    }
    // More than fits beside the 60 that stay.
    for (int i = 1000; i < 1090; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
      SetPin(*tenant, Name(i), true);
    }
    for (int i = 0; i < stored; i += 2) EXPECT_TRUE(Has(*tenant, Name(i)));
    for (int i = 1000; i < 1090; ++i) EXPECT_TRUE(Has(*tenant, Name(i)));
  }
}

TEST(TenantPinTest, HeldValuesAreSparedWhileOthersCanGo) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    std::vector<ValueRef> held;
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
      if (i % 2 == 0) held.push_back(Hold(*tenant, Name(i)));
    }
    for (int i = 100; i < 400; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
    for (int i = 0; i < 100; i += 2) {
      EXPECT_TRUE(Has(*tenant, Name(i)));
      EXPECT_TRUE(Same(BytesOf(*held[static_cast<size_t>(i / 2)]), Contents(i, 100'000)));
    }
  }
}

TEST(TenantPinTest, HeldBytesAreNeverReused) {
  // Evicted, overwritten or deleted: while a reference exists, its bytes stay.
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  std::vector<ValueRef> held;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
    held.push_back(Hold(*tenant, Name(i)));
  }
  for (int i = 0; i < 30; ++i) Erase(*tenant, Name(i));
  for (int i = 30; i < 60; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i + 1, 100'000)));
  for (int i = 200; i < 400; ++i) {
    SetBulk(*tenant, Name(i), Contents(i, 100'000));  // may be refused: so much is held
    tenant->Maintain(1);
  }
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(Same(BytesOf(*held[static_cast<size_t>(i)]), Contents(i, 100'000))) << i;
  }
  held.clear();
  EXPECT_TRUE(SetBulk(*tenant, "now", Contents(1, 100'000)));
}

// --- arenas --------------------------------------------------------------------------------------

TEST(TenantArenaTest, ValuesMoveOutWhenTheSessionEnds) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  std::vector<uint32_t> gone;
  tenant->pool().set_on_gone([&](uint32_t region) { gone.push_back(region); });
  ArenaClient client(*tenant, kSession);
  uint32_t arena = 0;
  for (int i = 0; i < 20; ++i) arena = client.Put(Name(i), Contents(i, 50'000));
  ASSERT_EQ(client.mappings().size(), 1u);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 50'000)));
  {
    const std::string name = Name(3);
    KeyLock lock(tenant->keyspace(), name, 1);
    lock.key.Find();
    lock.key.SetExpiry(9000);
  }
  const uint64_t extents = tenant->budget().extent_bytes();
  tenant->pool().SessionEnded(kSession);
  Maintain(*tenant);
  // The values lie in shared regions now, byte for byte, with all that belongs to them.
  EXPECT_EQ(tenant->budget().extent_bytes(), extents);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 50'000)));
    const std::string name = Name(i);
    KeyLock lock(tenant->keyspace(), name, 1);
    const Entry* entry = lock.key.Find();
    EXPECT_EQ(entry->bulk()->extent().region->kind(), Region::Kind::kShared);
    EXPECT_EQ(entry->bulk()->crc(), 0xc0ffeeu);
    EXPECT_EQ(entry->has(Entry::kHasExpiry), i == 3);
  }
  // The client is told, still writes to its mapping, and harms nobody.
  EXPECT_EQ(gone, std::vector<uint32_t>{arena});
  EXPECT_EQ(tenant->pool().FindRegion(arena), nullptr);
  ASSERT_TRUE(Info(*tenant, arena));
  std::memset(client.mappings().begin()->second, 'X', 2 * kMiB);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 50'000)));
  // Until it lets go the arena counts.
  const uint64_t counted = tenant->budget().region_bytes();
  for (int i = 0; i < 20; ++i) Maintain(*tenant);
  EXPECT_EQ(tenant->budget().region_bytes(), counted);
  client.Unmap();
  Maintain(*tenant);
  EXPECT_EQ(tenant->budget().region_bytes(), counted - 2 * kMiB);
  EXPECT_FALSE(Info(*tenant, arena));
}

TEST(TenantArenaTest, AValueSomebodyHoldsKeepsTheArenaOnlyAsLongAsItIsHeld) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  ArenaClient client(*tenant, kSession);
  const uint32_t arena = client.Put("held", Contents(1, 50'000));
  client.Put("dropped", Contents(2, 50'000));
  ValueRef held = Hold(*tenant, "held"), dropped = Hold(*tenant, "dropped");
  Erase(*tenant, "dropped");
  tenant->pool().SessionEnded(kSession);
  client.Unmap();
  Maintain(*tenant);
  ASSERT_TRUE(Info(*tenant, arena));
  EXPECT_TRUE(Same(Get(*tenant, "held"), Contents(1, 50'000)));
  EXPECT_TRUE(Same(BytesOf(*held), Contents(1, 50'000)));
  EXPECT_TRUE(Same(BytesOf(*dropped), Contents(2, 50'000)));
  EXPECT_NE(Hold(*tenant, "held").get(), held.get());  // new readers get the copy
  held.Reset();
  dropped.Reset();
  Maintain(*tenant);
  EXPECT_FALSE(Info(*tenant, arena));
}

TEST(TenantArenaTest, HeldValuesDoNotStopTheOthersFromMoving) {
  // Their slots come first, and nobody can move them: no key refers to them any more.
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  ArenaClient client(*tenant, kSession);
  std::vector<ValueRef> held;
  for (int i = 0; i < 30; ++i) {
    client.Put(Name(i), Contents(i, 20'000));
    if (i < 10) {
      held.push_back(Hold(*tenant, Name(i)));
      Erase(*tenant, Name(i));
    }
  }
  tenant->pool().SessionEnded(kSession);
  for (int i = 0; i < 100; ++i) tenant->Maintain(1);
  for (int i = 10; i < 30; ++i) {
    const std::string name = Name(i);
    KeyLock lock(tenant->keyspace(), name, 1);
    ASSERT_EQ(lock.key.Find()->bulk()->extent().region->kind(), Region::Kind::kShared) << i;
  }
}

TEST(TenantArenaTest, WhenMemoryIsShortValuesThatCannotMoveGo) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru, 8 * kMiB));
  ArenaClient client(*tenant, kSession);
  for (int i = 0; i < 20; ++i) client.Put(Name(i), Contents(i, 50'000));
  // Everything else is full of values that may not go.
  const int end = FillUp(*tenant, 50'000, 100);
  for (int i = 100; i < end; ++i) SetPin(*tenant, Name(i), true);
  SetPin(*tenant, Name(0), true);
  tenant->pool().SessionEnded(kSession);
  client.Unmap();
  for (int i = 0; i < 200; ++i) tenant->Maintain(1);
  EXPECT_TRUE(Same(Get(*tenant, Name(0)), Contents(0, 50'000)));  // pinned hard: waits
  for (int i = 0; i < 20; ++i) {
    const auto value = Get(*tenant, Name(i));
    if (value) {
      EXPECT_TRUE(Same(*value, Contents(i, 50'000)));
    }
  }
  for (int i = 100; i < end; ++i) {
    EXPECT_TRUE(Same(Get(*tenant, Name(i)), Contents(i, 50'000)));
  }
}

TEST(TenantArenaTest, WritersNeedNotWaitUntilTheArenasOfAnEndedSessionAreDrained) {
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy));
    ArenaClient client(*tenant, kSession);
    for (int i = 0; i < 300; ++i) client.Put(Name(i), Contents(i, 100'000));
    EXPECT_GT(tenant->budget().extent_bytes(), 12 * kMiB);  // nearly all of it in arenas
    tenant->pool().SessionEnded(kSession);
    client.Unmap();
    // All but a few of them: those wait for one look of the upkeep.
    int waits = 0;
    for (int i = 1000; i < 1300; ++i) {
      while (!SetBulk(*tenant, Name(i), Contents(i, 100'000), i)) {
        tenant->Maintain(i);
        ASSERT_LT(++waits, 30) << i;
      }
    }
    int left = 0;
    for (int i = 0; i < 1300; ++i) {
      const auto value = Get(*tenant, Name(i));
      if (!value) continue;
      ++left;
      ASSERT_TRUE(Same(*value, Contents(i, 100'000)));
    }
    EXPECT_GT(left, 40);  // the cache was not emptied for it
  }
}

TEST(TenantArenaTest, AnArenaThatLiesIdleIsRetiredWhenOthersNeedTheMemory) {
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru, 8 * kMiB));
  std::vector<std::unique_ptr<ArenaClient>> clients;
  for (SessionId session = 1; session <= 3; ++session) {
    clients.push_back(std::make_unique<ArenaClient>(*tenant, session));
    clients.back()->Put(Name(static_cast<int>(session)), Contents(1, 10'000));
  }
  for (int i = 100; i < 150; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
  // The clients do what they are told and unmap.
  tenant->pool().set_on_gone([&](uint32_t region) {
    for (const auto& client : clients) {
      if (client->mappings().count(region) > 0) client->Unmap();
    }
  });
  for (int i = 150; i < 300; ++i) {
    ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
    tenant->Maintain(1);
  }
  EXPECT_GT(tenant->budget().extent_bytes(), 4 * kMiB);
}

TEST(TenantArenaTest, WhatIsFreeInOthersArenasIsWaitedForAndNotEvictedInVain) {
  constexpr uint64_t kQuota = 160 * kMiB;
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy, kQuota));
    std::vector<std::unique_ptr<ArenaClient>> clients;
    std::map<uint32_t, ArenaClient*> owners;
    tenant->pool().set_on_gone([&](uint32_t region) {
      const auto owner = owners.find(region);
      if (owner != owners.end()) owner->second->Unmap();
    });
    int key = 0;
    for (SessionId session = 1; tenant->budget().region_bytes() + 4 * kMiB <= kQuota; ++session) {
      clients.push_back(std::make_unique<ArenaClient>(*tenant, session));
      for (int i = 0; i < 4; ++i) {
        owners[clients.back()->Put(Name(key), Contents(key, 500'000))] = clients.back().get();
        ++key;
      }
    }
    // Nothing has room for the server's own values but the last shared region.
    for (int round = 0; round < 40; ++round) {
      for (int tries = 0; !SetBulk(*tenant, "own:" + Name(round), Contents(round, 500'000));) {
        const auto refused = tenant->Reserve(500'000, 1);
        if (!refused) {
          ASSERT_EQ(refused.error().code, ErrorCode::kBusy) << refused.error().message;
        }
        tenant->Maintain(1);
        ASSERT_LT(++tries, 1000);
      }
      // What they evicted was for themselves: 5 % are below the low watermark for a moment.
      EXPECT_GT(tenant->budget().extent_bytes(), kQuota / 100 * 80) << round;
    }
  }
}

// --- tenants apart -------------------------------------------------------------------------------

TEST(TenantsTest, NothingOfOneIsReachableFromTheOther) {
  TenantOptions options = SmallTenant(MaxmemoryPolicy::kAllKeysLru);
  options.name = "one";
  const auto one = MakeTenant(options);
  options.name = "two";
  const auto two = MakeTenant(options);
  EXPECT_EQ(one->name(), "one");
  EXPECT_EQ(two->name(), "two");
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(SetBulk(*one, Name(i), Contents(i, 100'000)));
    ASSERT_FALSE(Has(*two, Name(i)));
  }
  EXPECT_EQ(two->budget().used_bytes(), 0u);
  EXPECT_EQ(two->budget().region_bytes(), 0u);
  ASSERT_TRUE(SetBulk(*two, Name(0), Contents(99, 100)));
  EXPECT_TRUE(Same(Get(*one, Name(0)), Contents(0, 100'000)));
  const uint64_t used = one->budget().used_bytes();
  // The other may fill up, drop everything or end: it is all the same here.
  for (int i = 0; i < 500; ++i) ASSERT_TRUE(SetBulk(*two, Name(i), Contents(i, 100'000)));
  EXPECT_EQ(one->budget().used_bytes(), used);
  EXPECT_EQ(one->keyspace().Size(), 50u);
  for (const RegionInfo& info : one->pool().Regions()) {
    EXPECT_NE(one->pool().FindRegion(info.id), nullptr);
    EXPECT_EQ(two->pool().FindRegion(info.id), nullptr);
    EXPECT_FALSE(two->pool().MayMapWritable(kSession, info.id));
    EXPECT_FALSE(two->pool().ArenaSealed(info.id));
  }
  two->keyspace().VoidPrefix("");
  two->keyspace().Clear();
  EXPECT_EQ(two->budget().extent_bytes(), 0u);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Same(Get(*one, Name(i)), Contents(i, 100'000)));
  // The same session number means nothing across tenants.
  const uint32_t arena = one->ReserveInArena(kSession, 10, 1)->extent().region->id();
  EXPECT_FALSE(two->pool().MayMapWritable(kSession, arena));
  two->pool().SessionEnded(kSession);
  EXPECT_TRUE(one->pool().MayMapWritable(kSession, arena));
}

TEST(TenantsTest, RegionFilesHaveNothingInCommon) {
  // Not even by way of the memory: a new region is all zeroes, whatever another tenant left.
  auto one = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(SetBulk(*one, Name(i), std::string(100'000, 's')));
  one.reset();
  const auto two = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysLru));
  const auto handle = two->Reserve(2 * kMiB, 1);
  ASSERT_TRUE(handle);
  for (size_t i = 0; i < 2 * kMiB; ++i) ASSERT_EQ(handle->data()[i], 0);
}

// --- the whole of it -----------------------------------------------------------------------------

TEST(TenantTest, NothingLeaks) {
  for (int round = 0; round < 3; ++round) {
    const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysS3Fifo));
    for (int i = 0; i < 300; ++i) {
      ASSERT_TRUE(SetBulk(*tenant, Name(i % 200), Contents(i, 100'000)));
      if (i % 10 == 0) tenant->Maintain(1);
      if (i % 7 == 0) {
        const std::string name = Name(i % 200);
        KeyLock lock(tenant->keyspace(), name, 1);
        lock.key.Find();
        lock.key.SetExpiry(50);
      }
      if (i % 100 == 99) tenant->keyspace().VoidPattern("*7");
    }
    Maintain(*tenant, 100);
    tenant->keyspace().Clear();
    EXPECT_EQ(tenant->budget().extent_bytes(), 0u);
    EXPECT_EQ(tenant->pool().generations().slots_used(), 0u);
    for (const RegionInfo& info : tenant->pool().Regions()) EXPECT_EQ(info.extents, 0u);
  }
}

TEST(TenantTest, RandomWorkAgainstAModel) {
  // Everything that is read is the last thing written, or a miss; never anything else.
  Random random;
  SCOPED_TRACE(random.Replay());
  for (const auto policy : kEvicting) {
    const auto tenant = MakeTenant(SmallTenant(policy, 12 * kMiB));
    std::map<std::string, std::string> model;
    std::vector<std::pair<ValueRef, std::string>> held;
    std::vector<std::unique_ptr<ArenaClient>> clients;
    SessionId session = 1;
    uint64_t hits = 0, misses = 0;
    for (int step = 0; step < Steps(20000); ++step) {
      const std::string key = Name(static_cast<int>(random.Below(120)));
      const std::string bytes = Contents(step, random.Between(4, 200'000));
      switch (random.Below(12)) {
        case 0:
        case 1:
        case 2:
          if (SetBulk(*tenant, key, bytes)) model[key] = bytes;
          break;
        case 3: {
          ASSERT_TRUE(tenant->MakeRoom(1));
          KeyLock lock(tenant->keyspace(), key, 1);
          lock.key.Set(bytes.substr(0, 300));
          model[key] = bytes.substr(0, 300);
          break;
        }
        case 4: {
          if (clients.empty() || random.Chance(0.05)) {
            if (!clients.empty()) {
              tenant->pool().SessionEnded(session);
              if (random.Chance(0.7)) clients.back()->Unmap();  // some leave it to the end
            }
            if (clients.size() > 3) clients.erase(clients.begin());
            clients.push_back(std::make_unique<ArenaClient>(*tenant, ++session));
          }
          // The arena may be refused; then there is no client's Put either.
          if (!tenant->ReserveInArena(session, bytes.size(), 1)) break;
          clients.back()->Put(key, bytes);
          model[key] = bytes;
          break;
        }
        case 5: {
          KeyLock lock(tenant->keyspace(), key, 1);
          lock.key.Erase();
          model.erase(key);
          break;
        }
        case 6:
          if (held.size() < 20) {
            const std::optional<std::string> value = Get(*tenant, key);
            KeyLock lock(tenant->keyspace(), key, 1);
            const Entry* entry = lock.key.Find();
            if (entry != nullptr && entry->has(Entry::kBulk)) {
              held.emplace_back(ValueRef::Share(entry->bulk()), *value);
            }
          } else {
            std::swap(held[random.Below(held.size())], held.back());
            ASSERT_TRUE(Same(BytesOf(*held.back().first), held.back().second));
            held.pop_back();
          }
          break;
        case 7:
          tenant->Maintain(1);
          break;
        default: {
          const auto value = Get(*tenant, key);
          if (value) {
            ASSERT_TRUE(Same(*value, model.at(key)));
            ++hits;
          } else {
            ++misses;
            model.erase(key);  // what is gone stays gone
          }
        }
      }
    }
    for (const auto& [value, bytes] : held) ASSERT_TRUE(Same(BytesOf(*value), bytes));
    EXPECT_GT(hits, 100u);
    EXPECT_GT(misses, 10u);
    held.clear();
    tenant->pool().SessionEnded(session);
    clients.clear();
    tenant->keyspace().Clear();
    for (int i = 0; i < 100; ++i) tenant->Maintain(1);
    EXPECT_EQ(tenant->budget().extent_bytes(), 0u);
    for (const RegionInfo& info : tenant->pool().Regions()) {
      EXPECT_EQ(info.kind, Region::Kind::kShared);
    }
  }
}

TEST(TenantThreadsTest, WritersReadersAndUpkeep) {
  Random seeds;
  SCOPED_TRACE(seeds.Replay());
  const auto tenant = MakeTenant(SmallTenant(MaxmemoryPolicy::kAllKeysS3Fifo));
  const int kSteps = Steps(16000);
  std::atomic<uint64_t> wrong{0}, hits{0};
  {
    const Upkeep upkeep({tenant.get()});
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t, seed = seeds.Next()] {
        Random random(seed);
        for (int step = 0; step < kSteps; ++step) {
          const int i = static_cast<int>(random.Below(300));
          if (random.Chance(0.3)) {
            SetBulk(*tenant, Name(i), Contents(i, random.Between(1000, 120'000)));
          } else if (random.Chance(0.05)) {
            // An arena's extent; its bytes are the client's business, so no key gets it.
            auto handle = tenant->ReserveInArena(static_cast<SessionId>(t + 1), 50'000, 1);
            if (random.Chance(0.1)) {
              if (handle) handle->Abort();
              tenant->pool().SessionEnded(static_cast<SessionId>(t + 1));
            }
          } else {
            const ValueRef held = Hold(*tenant, Name(i));
            if (!held) continue;
            hits.fetch_add(1);
            if (BytesOf(*held) != Contents(i, held->length())) wrong.fetch_add(1);
            BulkValue* const touched[] = {held.get()};
            tenant->keyspace().Touch(touched);
          }
        }
        tenant->pool().SessionEnded(static_cast<SessionId>(t + 1));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(hits, static_cast<uint64_t>(kSteps) / 16);
  tenant->keyspace().Clear();
  EXPECT_EQ(tenant->budget().extent_bytes(), 0u);
}

TEST(UpkeepTest, ExpiresAndEvictsByItself) {
  TenantOptions options = SmallTenant(MaxmemoryPolicy::kAllKeysLru);
  const auto tenant = MakeTenant(options);
  const Upkeep upkeep({tenant.get()});
  {
    KeyLock lock(tenant->keyspace(), "gone", 1);
    lock.key.Set("x");
    lock.key.Find();
    lock.key.SetExpiry(2);  // long ago
  }
  EXPECT_TRUE(Eventually([&] { return tenant->keyspace().Size() == 0; }));
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(SetBulk(*tenant, Name(i), Contents(i, 100'000)));
  tenant->SetWatermarks(0.3, 0.1);
  EXPECT_TRUE(Eventually([&] { return tenant->budget().used_bytes() < 16 * kMiB * 0.21; }));
}

}  // namespace
}  // namespace moonpool::storage
