// A tenant with an SSD tier in a directory of its own, and perhaps a CXL tier and a GPU tier, which
// stops and crashes; its values say what they are.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "storage/clock.h"
#include "storage/tenant.h"
#include "tests/client/stamped_block.h"
#include "tests/storage/fake_device.h"
#include "tests/storage/ssd_directory.h"
#include "tests/storage/tier_disk.h"

namespace moonpool::storage {

inline int64_t UnixNowMs() {
  return UnixMs();
}

inline constexpr uint64_t kLength = 200'000;  // of most values: several chunks

class TieredTenant {
 public:
  TieredTenant() {
    options.store = SmallSsd(directory_);
    env_ = rocksdb::NewCompositeEnv(disk);
    options.store.env = env_.get();
    options.capacity_bytes = 1ull << 30;
    options.queue_bytes = 32 * kMiB;
    options.readers = 4;
    options.wait_ms = kPatience.count();
    tenant_options.quota_bytes = 64 * kMiB;
    tenant_options.policy = MaxmemoryPolicy::kAllKeysLru;
    tenant_options.region_bytes = 4 * kMiB;
    tenant_options.arena_bytes = 2 * kMiB;
    tenant_options.region.huge_pages = RegionOptions::HugePages::kNo;
  }

  // After changes of the options.
  void Open() {
    tenant = std::move(*Tenant::Create(tenant_options));
    if (!ssd) return;
    const Status opened = tenant->OpenSsd(options, UnixNowMs());
    ASSERT_TRUE(opened) << opened.error().message;
  }
  // What a killed process leaves.
  void Crash() { tenant.reset(); }
  // Of any NUMA node: what matters here is that it is another tier.  Before Open().
  void UseCxl(uint64_t bytes) {
    tenant_options.cxl.memory_bytes = bytes;
    tenant_options.cxl.numa_node = 0;
    tenant_options.cxl.queue_bytes = 8 * kMiB;
    tenant_options.cxl.wait_ms = kPatience.count();
  }
  // Of so many devices.  Before Open().
  void UseGpu(uint64_t bytes, uint8_t devices = 1) {
    for (uint8_t i = 0; i < devices; ++i) gpus.push_back(std::make_unique<FakeDevice>(i));
    tenant_options.gpu.memory_bytes = bytes;
    tenant_options.gpu.queue_bytes = 8 * kMiB;
    tenant_options.gpu.wait_ms = kPatience.count();
    for (const auto& gpu : gpus) tenant_options.gpu.devices.push_back(gpu.get());
  }
  void Stop() {
    tenant->CloseMoves();
    const Status saved = tier().Save(kPatience.count(), nullptr);
    EXPECT_TRUE(saved) << saved.error().message;
    tenant.reset();
  }
  void CrashAndOpen() {
    Crash();
    Open();
  }
  void StopAndOpen() {
    Stop();
    Open();
  }

  SsdTier& tier() { return *tenant->ssd(); }
  SsdTierStats stats() { return tier().stats(); }
  const std::string& path() const { return directory_.path(); }

  // --- values: key number n is "key:n", or has another name but n's bytes

  // SET of a large value, waiting for memory as the server does.
  void Set(const std::string& name, uint64_t key, uint64_t version, uint64_t length = kLength,
           const Preference& preference = {}) {
    Result<WriteHandle> handle = Reserve(length, preference);
    ASSERT_TRUE(handle) << handle.error().message;
    Write(*handle, {key, version});
    ValueRef value = std::move(*handle).Publish();
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    lock.key.SetBulk(std::move(value));
  }
  // Waits for memory, and for a region that is being made on a device.
  Result<WriteHandle> Reserve(uint64_t length, const Preference& preference) {
    DeviceSet growing = 0;
    const auto reserve = [&] {
      return preference.tier == protocol::Tier::kGpu
                 ? tenant->ReserveInArena(kGpuWriter, length, UnixNowMs(), preference, &growing)
                 : tenant->Reserve(length, UnixNowMs(), preference);
    };
    Result<WriteHandle> handle = reserve();
    EXPECT_TRUE(Eventually([&] {
      if (!handle && handle.error().code == ErrorCode::kBusy) {
        KeepUp();
        handle = reserve();
      }
      return handle || handle.error().code != ErrorCode::kBusy;
    }));
    return handle;
  }
  // As the writer of the reservation does it.
  static void Write(const WriteHandle& handle, const Stamp& stamp) {
    std::string bytes(handle.length(), '\0');
    FillStamped(bytes.data(), bytes.size(), stamp);
    const Extent& extent = handle.extent();
    if (DeviceMemory* const device = extent.region->device()) {
      // A device that is lost takes nothing.
      const Status copied = device->Copy(extent.address(), bytes.data(), bytes.size());
      EXPECT_TRUE(copied || device->lost());
    } else if (extent.region->kind() == Region::Kind::kArena) {
      char* const data =
          MapAligned(extent.region->fd(), extent.region->bytes(), PROT_READ | PROT_WRITE);
      ASSERT_NE(data, nullptr);
      std::memcpy(data + extent.offset, bytes.data(), bytes.size());
      munmap(data, extent.region->bytes());
    } else {
      std::memcpy(extent.data(), bytes.data(), bytes.size());
    }
  }
  // In the heap; below options.least_value_bytes it is lost when memory is short.
  void SetSmall(const std::string& name, uint64_t key, uint64_t version, uint64_t length = 64) {
    std::string bytes(length, '\0');
    FillStamped(bytes.data(), bytes.size(), {key, version});
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    lock.key.Set(bytes);
  }
  bool Erase(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    return lock.key.Erase();
  }
  bool Expire(const std::string& name, int64_t at_ms) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    if (lock.key.Find() == nullptr) return false;
    lock.key.SetExpiry(at_ms);
    return true;
  }
  bool Persist(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    if (lock.key.Find() == nullptr) return false;
    lock.key.ClearExpiry();
    return true;
  }
  // As RENAME does it.
  bool Rename(const std::string& from, const std::string& to) {
    const std::string_view names[] = {from, to};
    KeysLock lock(tenant->keyspace(), names, UnixNowMs());
    const Entry* entry = lock[0].Find();
    if (entry == nullptr) return false;
    const int64_t expiry_ms = entry->has(Entry::kHasExpiry) ? entry->expiry_ms() : 0;
    if (entry->has(Entry::kOnSsd)) {
      lock[1].TakeOnSsd(lock[0], expiry_ms);
      return true;
    }
    if (entry->has(Entry::kBulk)) {
      lock[1].SetBulk(lock[0].TakeBulk());
    } else {
      const std::string value(entry->value());
      lock[0].Erase();
      lock[1].Set(value);
    }
    if (expiry_ms != 0) lock[1].SetExpiry(expiry_ms);
    return true;
  }

  // "gpu", "dram", "cxl", "ssd"; "": nowhere.
  std::string TierOf(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    const Entry* entry = lock.key.Find();
    if (entry == nullptr) return "";
    if (entry->has(Entry::kOnSsd)) return "ssd";
    const bool bulk = entry->has(Entry::kBulk);
    return std::string(TierName(bulk ? entry->bulk()->tier() : protocol::Tier::kDram));
  }
  enum class Where { kNowhere, kMemory, kClean, kSsd };
  Where WhereIs(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    const Entry* entry = lock.key.Find();
    if (entry == nullptr) return Where::kNowhere;
    if (entry->has(Entry::kOnSsd)) return Where::kSsd;
    return entry->has(Entry::kBulk) && entry->bulk()->place() ? Where::kClean : Where::kMemory;
  }
  int64_t ExpiryOf(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    const Entry* entry = lock.key.Find();
    return entry != nullptr && entry->has(Entry::kHasExpiry) ? entry->expiry_ms() : 0;
  }
  ValueRef Hold(const std::string& name) {
    KeyLock lock(tenant->keyspace(), name, UnixNowMs());
    const Entry* entry = lock.key.Find();
    const bool bulk = entry != nullptr && entry->has(Entry::kBulk);
    return bulk ? ValueRef::Share(entry->bulk()) : ValueRef();
  }

  // Begins to move it down, or does nothing when it is not in memory.
  SsdTier::Taken BeginDemotion(const std::string& name, bool keep = false) {
    ValueRef value = Hold(name);
    return value ? tier().Demote(std::move(value), keep) : SsdTier::Taken::kRefused;
  }
  void MoveDown(const std::string& name) {
    EXPECT_TRUE(Eventually([&] {
      if (WhereIs(name) == Where::kMemory) BeginDemotion(name);
      if (WhereIs(name) == Where::kClean) Evict(name);
      return WhereIs(name) == Where::kSsd;
    })) << name;
  }
  // Out of memory; what is not on the SSD is lost.
  void Evict(const std::string& name) {
    if (const ValueRef value = Hold(name)) {
      tenant->keyspace().EvictBulk(*value, UnixNowMs(), true, Keyspace::Next::kDropped);
    }
  }
  // Nothing is going up or down.
  void Settle() {
    EXPECT_TRUE(Eventually([&] {
      if (tenant->cxl() != nullptr && tenant->cxl()->queued_bytes() > 0) return false;
      if (tenant->gpu() != nullptr && tenant->gpu()->stats().queued_bytes > 0) {
        KeepUp();
        return false;
      }
      const SsdTierStats now = ssd ? stats() : SsdTierStats();
      return now.queued_values == 0 && now.loads_queued == 0;
    }));
    EXPECT_TRUE(!ssd || tier().log().Sync(kPatience.count()));
  }

  struct Found {
    std::optional<uint64_t> version;
    SsdTier::LoadError error = SsdTier::LoadError::kNone;
  };
  // GET: brings the value up if need be.  Anything but one whole version of `key` is a failure.
  Found Get(const std::string& name, uint64_t key) {
    for (int tries = 0; tries < 100; ++tries) {
      SsdPlace place;
      std::string bytes;
      ValueRef held;
      {
        KeyLock lock(tenant->keyspace(), name, UnixNowMs());
        const Entry* entry = lock.key.Read();
        if (entry == nullptr) return {};
        if (entry->has(Entry::kOnSsd)) {
          place = entry->place();
        } else if (entry->has(Entry::kBulk)) {
          held = ValueRef::Share(entry->bulk());
          BulkValue* const read = entry->bulk();
          tenant->keyspace().Touch(std::span(&read, 1));
        } else {
          bytes = entry->value();
        }
      }
      if (place) {
        const SsdTier::LoadError error = Load(HashKey(name), place);
        if (error == SsdTier::LoadError::kNone || error == SsdTier::LoadError::kGone) continue;
        return {std::nullopt, error};
      }
      if (held && held->device() != nullptr) {
        ValueRef fetched = Fetch(held);
        if (!fetched) {
          if (held->device()->lost()) continue;  // its key goes
          return {std::nullopt, SsdTier::LoadError::kNoMemory};
        }
        held = std::move(fetched);
      }
      const std::string_view view = held ? BytesOf(*held) : std::string_view(bytes);
      Stamp stamp;
      const std::string wrong = CheckStamped(view.data(), view.size(), key, &stamp);
      EXPECT_EQ(wrong, "") << name;
      return {stamp.version};
    }
    return {std::nullopt, SsdTier::LoadError::kNoMemory};  // evicted again and again
  }
  // The bytes of a value that is on a device.
  ValueRef Fetch(const ValueRef& value, bool move = false) {
    std::promise<ValueRef> promise;
    tenant->gpu()->Fetch(value.Share(), move, [&promise](const ValueRef& fetched) {
      promise.set_value(fetched ? fetched.Share() : ValueRef());
    });
    auto future = promise.get_future();
    while (future.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) KeepUp();
    return future.get();
  }
  SsdTier::LoadError Load(uint64_t hash, const SsdPlace& place) {
    std::promise<SsdTier::LoadError> promise;
    tier().Load(hash, place, SsdTier::Why::kWanted,
                [&promise](const SsdTier::Loaded& loaded) { promise.set_value(loaded.error); });
    auto future = promise.get_future();
    while (future.wait_for(std::chrono::milliseconds(1)) != std::future_status::ready) KeepUp();
    return future.get();
  }

  // Memory that somebody waits for comes free by upkeep, too.
  void KeepUp() {
    if (!upkeep_runs) tenant->Maintain(UnixNowMs());
  }

  // Whose client writes what is to be on a device.
  static constexpr SessionId kGpuWriter = 77;

  std::vector<std::unique_ptr<FakeDevice>> gpus;
  SsdTierOptions options;
  TenantOptions tenant_options;
  bool ssd = true;
  bool upkeep_runs = false;  // as a thread of its own
  const std::shared_ptr<TierDisk> disk = std::make_shared<TierDisk>();

 private:
  const SsdDirectory directory_;
  std::unique_ptr<rocksdb::Env> env_;

 public:
  std::unique_ptr<Tenant> tenant;  // ends before the disk does
};

inline std::string Numbered(uint64_t key) {
  return "key:" + std::to_string(key);
}

}  // namespace moonpool::storage
