#include "storage/extent_pool.h"

#include <algorithm>
#include <atomic>

#include "storage/region_sizes.h"

namespace moonpool::storage {

void ValueRef::Destroy(BulkValue* value) { value->pool_->Destroy(value); }

ValueRef WriteHandle::Publish(std::optional<uint32_t> crc) && {
  return std::exchange(pool_, nullptr)->Publish(extent_, crc);
}

void WriteHandle::Abort() {
  if (pool_ != nullptr) std::exchange(pool_, nullptr)->Recycle(extent_, late_writer_);
}

// Unique within the process, so that no session can take one tenant's region for another's.
uint32_t ExtentPool::NextRegionId() {
  static std::atomic<uint32_t> next_id{1};
  return next_id.fetch_add(1, std::memory_order_relaxed);
}

Result<std::unique_ptr<ExtentPool>> ExtentPool::Create(const PoolOptions& options,
                                                       MemoryBudget* budget,
                                                       MemoryBudget* cxl_budget,
                                                       std::vector<PoolDevice> devices) {
  MOONPOOL_CHECK(devices.size() <= kMaxDevices);
  std::unique_ptr<ExtentPool> pool(
      new ExtentPool(options, budget, cxl_budget, std::move(devices)));
  auto generations = GenerationTable::Create(options.generation_slots);
  if (!generations) return tl::unexpected<Error>(std::move(generations.error()));
  pool->generations_ = std::move(*generations);
  if (cxl_budget != nullptr) {
    // A node that cannot be had is an error at the start, not of every write.
    MutexLock adding(pool->adding_);
    const Status added = pool->AddRegion({Region::Kind::kShared, kNoSession, Tier::kCxl}, 1);
    if (!added) return tl::unexpected<Error>(added.error());
  }
  if (pool->devices_.empty()) return pool;
  DeviceGrowth::Hooks hooks;
  hooks.make = [made = pool.get()](size_t device, uint64_t bytes) {
    made->MakeDeviceRegion(device, bytes);
  };
  hooks.probe = [made = pool.get()](size_t device) { made->devices_[device].memory->Probe(); };
  pool->growth_ = std::make_unique<DeviceGrowth>(pool->devices_.size(), std::move(hooks));
  return pool;
}

ExtentPool::~ExtentPool() {
  growth_.reset();
  MutexLock lock(mu_);
  // Nobody is given them any more; a device's memory goes when those who imported it have let go, too.
  for (const auto& [writer, extents] : late_) {
    for (const Extent& extent : extents) FreeExtent(extent);
  }
  for (const auto& [id, region] : regions_) {
    MOONPOOL_CHECK(region->extents == 0);
    budget(*region->region)->ReleaseRegion(region->region->bytes());
  }
}

Result<WriteHandle> ExtentPool::Reserve(uint64_t length, Tier tier) {
  return ReserveIn({Region::Kind::kShared, kNoSession, tier}, length);
}

Result<WriteHandle> ExtentPool::ReserveInArena(SessionId session, uint64_t length, Tier tier) {
  return ReserveIn({Region::Kind::kArena, session, tier}, length);
}

Result<WriteHandle> ExtentPool::ReserveIn(const Source& source, uint64_t length) {
  if (auto done = TryReserve(source, length)) return std::move(*done);
  MutexLock adding(adding_);
  if (auto done = TryReserve(source, length)) return std::move(*done);
  return ReserveAdded(source, length, AddRegion(source, length));
}

// Nothing: a region is to be added.
std::optional<Result<WriteHandle>> ExtentPool::TryReserve(const Source& source, uint64_t length) {
  MOONPOOL_CHECK(length > 0 && budget(source.tier, source.device) != nullptr);
  MutexLock lock(mu_);
  if (auto extent = TakeExtent(source, length)) return WriteHandle(this, *extent);
  if (generations_->full()) return Fail(ErrorCode::kOutOfMemory, "every generation slot is taken");
  return std::nullopt;
}

Result<WriteHandle> ExtentPool::ReserveAdded(const Source& source, uint64_t length, Status added) {
  MutexLock lock(mu_);
  if (added) {
    if (auto extent = TakeExtent(source, length)) return WriteHandle(this, *extent);
  } else if (added.error().code != ErrorCode::kOutOfMemory) {
    return tl::unexpected<Error>(std::move(added.error()));
  }
  return Fail(ErrorCode::kOutOfMemory, "no free extent of " + std::to_string(length) + " bytes");
}

bool ExtentPool::CouldHold(uint64_t length) const {
  MutexLock adding(adding_);
  MutexLock lock(mu_);
  uint64_t staying = 0;
  for (const auto& [id, region] : regions_) {
    if (region->draining || !InDram(*region)) continue;
    if (region->region->bytes() >= length) return true;
    staying += region->region->bytes();
  }
  return staying + RoundUpTo(length, kHugePageBytes) <= budget(Tier::kDram)->limit();
}

std::optional<Extent> ExtentPool::TakeExtent(const Source& source, uint64_t length) {
  const bool is_shared = source.kind == Region::Kind::kShared;
  const std::vector<PoolRegion*>& regions =
      is_shared ? shared(source.tier, source.device).regions : arenas_[source.session];
  for (PoolRegion* region : regions) {
    if (region->region->tier() != source.tier) continue;
    const auto offset = region->allocator.Allocate(length);
    if (!offset) continue;
    const auto slot = generations_->Take();
    if (!slot) {
      region->allocator.Free(*offset, length);
      return std::nullopt;
    }
    ++region->extents;
    budget(*region->region)->AddExtent(static_cast<int64_t>(ExtentAllocator::RoundUp(length)));
    const uint64_t generation = generations_->counter(*slot).load(std::memory_order_relaxed);
    // Half of the newest region is gone: time to prepare the next.
    if (is_shared && region == regions.back() &&
        region->allocator.free_bytes() < region->region->bytes() / 2) {
      shared(source.tier, source.device).grow_ahead = true;
    }
    return Extent{region->region.get(), *offset, length, *slot, generation};
  }
  return std::nullopt;
}

Status ExtentPool::AddRegion(const Source& source, uint64_t least_bytes) {
  const bool is_shared = source.kind == Region::Kind::kShared;
  MemoryBudget& budget = *this->budget(source.tier);
  // The usual sizes are of DRAM; where there is less of the other tier, regions are smaller.
  const auto usual_bytes = [&](uint64_t bytes) {
    return source.tier == Tier::kDram ? bytes : std::min(bytes, LargestOf(budget));
  };
  const uint64_t usual = usual_bytes(is_shared ? options_.region_bytes : options_.arena_bytes);
  // Arenas must never take the place of the last shared region.
  uint64_t spare = 0;
  if (!is_shared) {
    MutexLock lock(mu_);
    if (shared(source.tier).regions.empty()) spare = usual_bytes(options_.region_bytes);
  }
  const auto taken = TakeRegion(budget, usual, least_bytes, spare, "the memory limit");
  if (!taken) return tl::unexpected<Error>(taken.error());
  const uint64_t bytes = *taken;
  auto region = Region::Create(NextRegionId(), source.kind, bytes,
                               source.tier == Tier::kCxl ? options_.cxl_region : options_.region);
  if (!region) {
    budget.ReleaseRegion(bytes);
    return tl::unexpected<Error>(std::move(region.error()));
  }
  const uint32_t id = (*region)->id();
  auto added =
      std::make_unique<PoolRegion>(std::shared_ptr<Region>(std::move(*region)), source.session);
  MutexLock lock(mu_);
  (is_shared ? shared(source.tier).regions : arenas_[source.session]).push_back(added.get());
  regions_.emplace(id, std::move(added));
  return {};
}

void ExtentPool::FaultIn(const WriteHandle& handle) {
  const Extent& extent = handle.extent();
  {
    MutexLock lock(mu_);
    const PoolRegion& region = *regions_.at(extent.region->id());
    if (!region.populating || region.populated >= extent.offset + extent.length) return;
  }
  extent.region->Populate(extent.offset, extent.length);
}

ValueRef ExtentPool::Publish(const Extent& extent, std::optional<uint32_t> crc) {
  auto* value = new BulkValue();
  value->pool_ = this;
  value->extent_ = extent;
  value->crc_ = crc;
  value->policy_bytes = ExtentAllocator::RoundUp(extent.length);
  MutexLock lock(mu_);
  if (by_slot_.size() <= extent.slot) by_slot_.resize(extent.slot + 1);
  by_slot_[extent.slot] = value;
  return ValueRef::Adopt(value);
}

ValueRef ExtentPool::Alias(const BulkValue& value) {
  auto* alias = new BulkValue();
  alias->pool_ = this;
  alias->extent_ = value.extent_;
  alias->crc_ = value.crc_;
  alias->policy_bytes = value.policy_bytes;
  MutexLock lock(mu_);
  BulkValue*& first = by_slot_[value.extent_.slot];
  alias->next_alias_ = first;
  first = alias;
  return ValueRef::Adopt(alias);
}

void ExtentPool::Recycle(const Extent& extent, SessionId late_writer) {
  MutexLock lock(mu_);
  if (late_writer == kNoSession) return FreeExtent(extent);
  late_[late_writer].push_back(extent);
  late_bytes_ += ExtentAllocator::RoundUp(extent.length);
}

bool ExtentPool::HasLateWrites(SessionId writer) const {
  MutexLock lock(mu_);
  return late_.contains(writer);
}

void ExtentPool::WriterGone(SessionId writer) {
  MutexLock lock(mu_);
  const auto found = late_.find(writer);
  if (found == late_.end()) return;
  for (const Extent& extent : found->second) {
    late_bytes_ -= ExtentAllocator::RoundUp(extent.length);
    FreeExtent(extent);
  }
  late_.erase(found);
}

uint64_t ExtentPool::late_bytes() const {
  MutexLock lock(mu_);
  return late_bytes_;
}

void ExtentPool::Destroy(BulkValue* value) {
  {
    MutexLock lock(mu_);
    BulkValue** link = &by_slot_[value->extent_.slot];
    while (*link != value) link = &(*link)->next_alias_;
    *link = value->next_alias_;
    if (by_slot_[value->extent_.slot] == nullptr) FreeExtent(value->extent_);
  }
  delete value;
}

void ExtentPool::FreeExtent(const Extent& extent) {
  // Readers that copied from here learn it before the next writer can touch a byte.
  protocol::BumpGeneration(generations_->counter(extent.slot));
  PoolRegion& region = *regions_.at(extent.region->id());
  region.allocator.Free(extent.offset, extent.length);
  --region.extents;
  if (region.draining) region.progress = std::chrono::steady_clock::now();
  generations_->GiveBack(extent.slot);
  budget(*extent.region)
      ->AddExtent(-static_cast<int64_t>(ExtentAllocator::RoundUp(extent.length)));
}

std::shared_ptr<Region> ExtentPool::FindRegion(uint32_t id) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(id);
  if (found == regions_.end() || found->second->told_gone) return nullptr;
  return found->second->region;
}

std::vector<RegionInfo> ExtentPool::Regions() const {
  std::vector<RegionInfo> infos;
  MutexLock lock(mu_);
  for (const auto& [id, region] : regions_) {
    RegionInfo info;
    info.id = id;
    info.kind = region->region->kind();
    info.tier = region->region->tier();
    info.session = region->session;
    info.draining = region->draining;
    info.exported = region->exported && !region->exporting;
    info.export_error = region->export_error;
    info.huge_pages = region->region->huge_pages();
    if (region->region->device() != nullptr) info.device = region->region->device()->name();
    info.bytes = region->region->bytes();
    info.populated_bytes = region->populated;
    info.extent_bytes = info.bytes - region->allocator.free_bytes();
    info.extents = region->extents;
    infos.push_back(info);
  }
  std::sort(infos.begin(), infos.end(),
            [](const RegionInfo& a, const RegionInfo& b) { return a.id < b.id; });
  return infos;
}

}  // namespace moonpool::storage
