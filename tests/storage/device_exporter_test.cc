// Regions on devices, as NICs are given them: who calls the exporter, and what a device that hangs,
// is lost or refuses costs.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "storage/exporter.h"
#include "tests/storage/fake_device.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

// Takes what a device exports, as a NIC does, and sees that the memory is there for as long.
class NicLike : public Exporter {
 public:
  explicit NicLike(ExtentPool& pool) : pool_(pool) {}
  ~NicLike() override { pool_.set_exporter(nullptr); }

  Status Export(const std::shared_ptr<Region>& region) override {
    EXPECT_FALSE(region->exported()) << "nothing there is told of before";
    std::optional<DeviceMemory::Dmabuf> file;
    if (region->device() != nullptr) {
      auto exported = region->range()->ExportDmabuf();
      if (!exported) return tl::unexpected<Error>(std::move(exported.error()));
      file = std::move(*exported);
    }
    MutexLock lock(mu_);
    threads_[region->id()] = std::this_thread::get_id();
    EXPECT_TRUE(exported_.emplace(region->id(), region).second);
    return {};
  }
  void Withdraw(uint32_t id) override {
    std::shared_ptr<Region> region;
    {
      MutexLock lock(mu_);
      ASSERT_TRUE(exported_.contains(id));
      region = exported_[id];
      withdrawn_by_[id] = std::this_thread::get_id();
    }
    EXPECT_FALSE(region->exported());
    pool_.GiveUpEmpty();  // as any thread may
    EXPECT_GT(region.use_count(), 2) << "its memory was given up before it was withdrawn";
    MutexLock lock(mu_);
    exported_.erase(id);
  }

  bool Has(uint32_t id) {
    MutexLock lock(mu_);
    return exported_.contains(id);
  }
  std::thread::id ExportedBy(uint32_t id) {
    MutexLock lock(mu_);
    return threads_[id];
  }
  std::thread::id WithdrawnBy(uint32_t id) {
    MutexLock lock(mu_);
    return withdrawn_by_[id];
  }

 private:
  ExtentPool& pool_;
  Mutex mu_;
  std::map<uint32_t, std::shared_ptr<Region>> exported_ GUARDED_BY(mu_);
  std::map<uint32_t, std::thread::id> threads_ GUARDED_BY(mu_);
  std::map<uint32_t, std::thread::id> withdrawn_by_ GUARDED_BY(mu_);
};

class DeviceExporterTest : public testing::Test {
 protected:
  DeviceExporterTest() {
    pool_ = std::move(*ExtentPool::Create(
        SmallPool(4 * kMiB), &budget_, nullptr,
        {{&devices_[0], &device_budgets_[0]}, {&devices_[1], &device_budgets_[1]}}));
    exporter_ = std::make_unique<NicLike>(*pool_);
    pool_->set_exporter(exporter_.get());
  }
  ~DeviceExporterTest() override {
    for (FakeDevice& device : devices_) device.HoldDmabufs(false);
  }

  // A value there, as a client's; upkeep has not seen a new region yet.
  ValueRef Put(size_t device, uint64_t length = 100'000) {
    ValueRef value;
    EXPECT_TRUE(Eventually([&] {
      auto handle = pool_->ReserveOnDevice(device, length, kNoSession, true);
      if (handle) value = std::move(*handle).Publish();
      return handle.has_value();
    }));
    return value;
  }
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
  // Upkeep goes on until it has come to that.
  template <typename Condition>
  bool Until(Condition&& condition) {
    return Eventually([&] {
      Maintain();
      return condition();
    });
  }

  FakeDevice devices_[2]{FakeDevice(0), FakeDevice(1)};
  MemoryBudget budget_{32 * kMiB};
  MemoryBudget device_budgets_[2]{MemoryBudget(64 * kMiB), MemoryBudget(64 * kMiB)};
  std::unique_ptr<ExtentPool> pool_;
  std::unique_ptr<NicLike> exporter_;
};

TEST_F(DeviceExporterTest, TheDevicesOwnThreadExportsAndWithdraws) {
  ValueRef value = Put(0);
  const uint32_t region = value->extent().region->id();
  EXPECT_FALSE(value->OnDeviceForNics());
  EXPECT_TRUE(Until([&] { return value->OnDeviceForNics(); }));
  EXPECT_TRUE(Info(region)->exported);
  EXPECT_EQ(Info(region)->export_error, "");
  EXPECT_NE(exporter_->ExportedBy(region), std::this_thread::get_id());
  // Until it is lost.
  devices_[0].Lose();
  pool_->GiveUpDevice(0);
  EXPECT_FALSE(value->OnDeviceForNics()) << "nobody is told of what is there any more";
  Maintain();
  EXPECT_TRUE(exporter_->Has(region)) << "whoever has a descriptor may read yet";
  EXPECT_GT(devices_[0].allocated(), 0u);
  value.Reset();
  EXPECT_TRUE(Until([&] { return devices_[0].allocated() == 0; }));
  EXPECT_FALSE(Info(region));
  EXPECT_FALSE(exporter_->Has(region));
  EXPECT_EQ(exporter_->WithdrawnBy(region), exporter_->ExportedBy(region));
}

TEST_F(DeviceExporterTest, AnExportThatHangsHoldsUpNothingElse) {
  devices_[0].HoldDmabufs(true);
  ValueRef stuck = Put(0);
  const uint32_t region = stuck->extent().region->id();
  EXPECT_TRUE(Until([&] { return devices_[0].dmabufs() == 1; }));
  // Upkeep, host memory, the other device, and what is there already.
  const ValueRef other = Put(1);
  EXPECT_TRUE(Until([&] { return other->OnDeviceForNics(); }));
  const ValueRef host = MakeBulk(*pool_, std::string(5000, 'a'));
  EXPECT_TRUE(Until([&] { return exporter_->Has(host->extent().region->id()); }));
  EXPECT_TRUE(pool_->ReserveOnDevice(0, 4096, kNoSession, false));
  EXPECT_FALSE(stuck->OnDeviceForNics());
  EXPECT_FALSE(Info(region)->exported);
  // What is being exported is not given up, whatever becomes of it.
  pool_->GiveUpDevice(0);
  stuck.Reset();
  Maintain();
  EXPECT_TRUE(Info(region));
  EXPECT_GT(devices_[0].allocated(), 0u);
  devices_[0].HoldDmabufs(false);
  EXPECT_TRUE(Until([&] { return devices_[0].allocated() == 0; }));
  EXPECT_FALSE(exporter_->Has(region));
}

TEST_F(DeviceExporterTest, OneThatWasLostMeanwhileIsToldOfToNobody) {
  devices_[0].HoldDmabufs(true);
  const ValueRef value = Put(0);
  EXPECT_TRUE(Until([&] { return devices_[0].dmabufs() == 1; }));
  pool_->GiveUpDevice(0);
  devices_[0].HoldDmabufs(false);
  EXPECT_TRUE(Until([&] { return exporter_->Has(value->extent().region->id()); }));
  EXPECT_TRUE(Eventually([&] { return Info(value->extent().region->id())->exported; }));
  EXPECT_FALSE(value->OnDeviceForNics());
}

TEST_F(DeviceExporterTest, ARefusalIsRememberedWithItsReason) {
  devices_[0].RefuseDmabufs(true);
  const ValueRef value = Put(0);
  const uint32_t region = value->extent().region->id();
  EXPECT_TRUE(Until([&] { return Info(region)->export_error == "it has no dma-buf"; }));
  EXPECT_FALSE(Info(region)->exported);
  EXPECT_FALSE(value->OnDeviceForNics());
  Maintain();
  EXPECT_EQ(devices_[0].dmabufs(), 1u) << "not again and again";
}

TEST_F(DeviceExporterTest, AnExporterGoesWhenNoDeviceIsWithinIt) {
  const ValueRef value = Put(0), more = Put(0, 10 * kMiB);
  ASSERT_NE(value->extent().region, more->extent().region);
  devices_[0].HoldDmabufs(true);
  EXPECT_TRUE(Until([&] { return devices_[0].dmabufs() == 1; }));
  Maintain();  // the other's turn has not come
  std::atomic<bool> gone{false};
  std::thread ends([&] {
    pool_->set_exporter(nullptr);
    gone = true;
  });
  // Nobody is let go before the call has returned.
  for (int i = 0; i < 100; ++i) {
    std::this_thread::yield();
    EXPECT_FALSE(gone);
  }
  devices_[0].HoldDmabufs(false);
  ends.join();
  // Who comes later finds none; and none is called that may be gone.
  const auto exported = [&] {
    const auto regions = pool_->Regions();
    return std::count_if(regions.begin(), regions.end(),
                         [&](const RegionInfo& info) { return exporter_->Has(info.id); });
  };
  const auto by_then = exported();
  EXPECT_GE(by_then, 1);
  const ValueRef later = Put(0, 8 * kMiB);
  Maintain();
  const ValueRef last = Put(0, 9 * kMiB);  // the device's thread has done what it was told before
  EXPECT_EQ(exported(), by_then);
}

}  // namespace
}  // namespace moonpool::storage
