// ExtentPool: regions and reservations on devices.
#include <algorithm>
#include <chrono>
#include <utility>

#include "storage/extent_pool.h"
#include "storage/region_sizes.h"

namespace moonpool::storage {

namespace {

// Regions on devices do not change hands: larger ones hold larger values.
constexpr uint64_t kMostDeviceRegionBytes = 1ull << 30;

// How long a device that had no memory for a region is not asked for another, at first and at most.
constexpr std::chrono::seconds kGrowthPause{1};
constexpr std::chrono::seconds kLongestGrowthPause{60};

uint64_t UsualBytes(const MemoryBudget& budget) {
  return std::min(LargestOf(budget), kMostDeviceRegionBytes);
}

}  // namespace

Result<WriteHandle> ExtentPool::ReserveOnDevice(size_t device, uint64_t length, SessionId writer,
                                                bool may_grow) {
  using State = DeviceGrowth::State;
  MOONPOOL_CHECK(length > 0 && device < devices_.size());
  MutexLock lock(mu_);
  if (auto extent = TakeExtent({Region::Kind::kShared, kNoSession, Tier::kGpu, device}, length)) {
    WriteHandle handle(this, *extent);
    handle.late_writer_ = writer;
    return handle;
  }
  if (generations_->full()) return Fail(ErrorCode::kOutOfMemory, "every generation slot is taken");
  State state = growth_->state(device);
  if (state == State::kIdle && may_grow && GrowOnDevice(device, length)) state = State::kGrowing;
  if (state == State::kGrowing) {
    return Fail(ErrorCode::kBusy, "a region is being made on the device");
  }
  return Fail(ErrorCode::kOutOfMemory,
              state == State::kSilent
                  ? "the device does not answer"
                  : "no free extent of " + std::to_string(length) + " bytes on the device");
}

bool ExtentPool::GrowOnDevice(size_t device, uint64_t least_bytes) {
  if (devices_[device].memory->lost() ||
      std::chrono::steady_clock::now() < shared(Tier::kGpu, device).not_before) {
    return false;
  }
  MemoryBudget& budget = *devices_[device].budget;
  const auto bytes = TakeRegion(budget, UsualBytes(budget), least_bytes, 0, "gpu-memory");
  if (!bytes) return false;
  if (growth_->Start(device, *bytes)) return true;
  budget.ReleaseRegion(*bytes);
  return false;
}

void ExtentPool::GrowAheadOnDevice(size_t device) {
  MutexLock lock(mu_);
  Shared& shared = this->shared(Tier::kGpu, device);
  // One that refused is asked again: while it seems to be smaller, nobody else may need to.
  const bool again = refused_[device].load(std::memory_order_relaxed) &&
                     std::chrono::steady_clock::now() >= shared.not_before;
  if (!shared.grow_ahead && !again) return;
  // What is being made now may be enough.
  if (growth_->state(device) != DeviceGrowth::State::kIdle) return;
  shared.grow_ahead = false;
  [[maybe_unused]] const bool started = GrowOnDevice(device, 1);
}

void ExtentPool::MakeDeviceRegion(size_t device, uint64_t bytes) {
  MemoryBudget& budget = *devices_[device].budget;
  auto region = Region::CreateOnDevice(NextRegionId(), *devices_[device].memory, device, bytes);
  // That there is no room for one long value says nothing of others.
  if (region || bytes <= UsualBytes(budget)) {
    refused_[device].store(!region, std::memory_order_relaxed);
  }
  if (!region) {
    budget.ReleaseRegion(bytes);
    MutexLock lock(mu_);
    Shared& shared = this->shared(Tier::kGpu, device);
    shared.pause = std::clamp(2 * shared.pause, kGrowthPause, kLongestGrowthPause);
    shared.not_before = std::chrono::steady_clock::now() + shared.pause;
    return;
  }
  auto added =
      std::make_unique<PoolRegion>(std::shared_ptr<Region>(std::move(*region)), kNoSession);
  budget.AdjustRegion(static_cast<int64_t>(added->region->bytes() - bytes));
  // All of it is there.
  added->populating = false;
  added->populated = added->region->bytes();
  MutexLock lock(mu_);
  Shared& shared = this->shared(Tier::kGpu, device);
  shared.pause = {};
  shared.grow_ahead = false;  // until half of this one is gone
  shared.regions.push_back(added.get());
  const uint32_t id = added->region->id();
  regions_.emplace(id, std::move(added));
}

bool ExtentPool::CouldHoldOnDevice(size_t device, uint64_t length) const {
  MutexLock lock(mu_);
  for (const auto& [id, region] : regions_) {
    if (!region->draining && region->region->device() != nullptr &&
        region->region->device_number() == device && region->region->bytes() >= length) {
      return true;
    }
  }
  return devices_[device].budget->region_bytes() + RoundUpTo(length, kHugePageBytes) <=
         DeviceCapacity(device);
}

uint64_t ExtentPool::DeviceCapacity(size_t device) const {
  const MemoryBudget& budget = *devices_[device].budget;
  const bool refused = refused_[device].load(std::memory_order_relaxed);
  return refused ? std::min(budget.region_bytes(), budget.limit()) : budget.limit();
}

void ExtentPool::GiveUpDevice(size_t device) {
  MutexLock lock(mu_);
  for (const auto& [id, region] : regions_) {
    if (region->region->device() != nullptr && region->region->device_number() == device &&
        !region->draining) {
      DrainRegion(*region);
      region->region->set_exported(false);  // what is still there comes from nowhere
    }
  }
}

std::vector<ValueRef> ExtentPool::OnDevice(size_t device, size_t most) {
  std::vector<ValueRef> values;
  MutexLock lock(mu_);
  const auto there = [device](const Region& region) {
    return region.device() != nullptr && region.device_number() == device;
  };
  if (std::none_of(regions_.begin(), regions_.end(),
                   [&](const auto& entry) { return there(*entry.second->region); })) {
    return values;
  }
  for (BulkValue* const first : by_slot_) {
    if (values.size() >= most) break;
    if (first != nullptr && there(*first->extent_.region)) AddAliases(first, &values);
  }
  return values;
}

}  // namespace moonpool::storage
