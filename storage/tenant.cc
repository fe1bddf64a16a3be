#include "storage/tenant.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <utility>

#include "storage/clock.h"

namespace moonpool::storage {

namespace {

constexpr uint64_t kMaxRegionBytes = 1ull << 30;
constexpr uint64_t kDefaultRegionsPerQuota = 16;
constexpr uint64_t kArenasPerRegion = 4;

// One slice of background work takes about so long, beside a step of each kind.
constexpr std::chrono::milliseconds kSlice{2};
constexpr size_t kExpireBucketsPerSlice = 512;
constexpr size_t kExpireBucketsWhenQuiet = 4096;  // there are fewer slices then
constexpr int kEvictionsPerSlice = 64;
constexpr size_t kMovesPerSlice = 4;

// Values of a device that is lost, in one step.
constexpr size_t kMostLost = 4096;
// How often it is looked for values on a device that is lost.
constexpr int64_t kLostPauseMs = 100;
// How often it is looked whether a device answers that nobody uses.
constexpr int64_t kProbeMs = 1000;

// A slice of eviction between two watermarks: from above the high one until the low one.  True when
// there is more.
template <typename Used, typename Evict>
bool EvictBetween(double high, double low, bool* evicting, Used&& used, Evict&& evict) {
  if (used() > high) *evicting = true;
  for (int i = 0; *evicting && i < kEvictionsPerSlice; ++i) {
    if (used() <= low || evict() == 0) *evicting = false;
  }
  return *evicting;
}

uint64_t RoundToHugePages(uint64_t bytes) {
  return std::max<uint64_t>(bytes / kHugePageBytes, 1) * kHugePageBytes;
}

}  // namespace

Tenant::Tenant(const TenantOptions& options)
    : name_(options.name),
      budget_(options.quota_bytes),
      cxl_budget_(options.cxl.memory_bytes),
      high_watermark_(options.high_watermark),
      evict_ratio_(options.evict_ratio),
      bulk_policy_(options.policy) {
  bulk_policy_.set_cold_share(options.cold_share);
  for (size_t i = 0; i < options.gpu.devices.size(); ++i) {
    gpu_budgets_.push_back(std::make_unique<MemoryBudget>(options.gpu.memory_bytes));
  }
}

Result<std::unique_ptr<Tenant>> Tenant::Create(const TenantOptions& options) {
  std::unique_ptr<Tenant> tenant(new Tenant(options));
  PoolOptions pool;
  pool.region = options.region;
  const bool cxl = options.cxl.memory_bytes > 0;
  if (cxl) {
    pool.cxl_region = options.region;
    pool.cxl_region.tier = Tier::kCxl;
    pool.cxl_region.numa_node = options.cxl.numa_node;
    if (pool.cxl_region.numa_node < 0) {
      const auto node = FindCpulessNode();
      if (!node) return tl::unexpected<Error>(node.error());
      pool.cxl_region.numa_node = *node;
    }
  }
  pool.region_bytes = RoundToHugePages(
      options.region_bytes != 0
          ? options.region_bytes
          : std::min(options.quota_bytes / kDefaultRegionsPerQuota, kMaxRegionBytes));
  pool.arena_bytes = RoundToHugePages(
      options.arena_bytes != 0 ? options.arena_bytes : pool.region_bytes / kArenasPerRegion);
  // Enough for the machine's whole memory in the smallest extents: address space only.
  const auto pages = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                     static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) / ExtentAllocator::kAlignment;
  pool.generation_slots = static_cast<uint32_t>(std::min<uint64_t>(pages, UINT32_MAX));
  std::vector<PoolDevice> devices;
  for (size_t i = 0; i < options.gpu.devices.size(); ++i) {
    devices.push_back({options.gpu.devices[i], tenant->gpu_budgets_[i].get()});
  }
  auto created = ExtentPool::Create(pool, &tenant->budget_, cxl ? &tenant->cxl_budget_ : nullptr,
                                    std::move(devices));
  if (!created) return tl::unexpected<Error>(std::move(created.error()));
  tenant->pool_ = std::move(*created);
  tenant->keyspace_ =
      std::make_unique<Keyspace>(&tenant->budget_, &tenant->bulk_policy_, options.policy);
  tenant->keyspace_->SetPartitions(options.partitions);
  if (cxl) tenant->OpenCxl(options.cxl);
  if (!options.gpu.devices.empty()) tenant->OpenGpu(options.gpu);
  return tenant;
}

void Tenant::OpenGpu(const GpuTierOptions& options) {
  GpuTier::Hooks hooks;
  hooks.reserve = [this](uint64_t length, DeviceSet on, DeviceSet* growing) {
    return ReserveInGpu(length, {protocol::Tier::kGpu, on}, kNoSession, UnixMs(), growing);
  };
  hooks.await = [this](DeviceSet growing, int64_t since_ms, int64_t until_ms,
                       std::function<void()> call) {
    pool_->growth()->Wait(growing, since_ms, until_ms, std::move(call));
  };
  hooks.reserve_dram = [this](uint64_t length, int64_t wait_ms, bool evicts) {
    auto handle = ReserveAndWait(length, MemoryWaitMs(wait_ms, length), evicts);
    if (handle) pool_->FaultIn(*handle);
    return handle;
  };
  hooks.refused = [this](const ValueRef& value) {
    const Outcome outcome = EvictFromMemory(value, UnixMs(), false);
    if (outcome == Outcome::kKept || outcome == Outcome::kWait) keyspace_->AbandonDemotion(*value);
  };
  gpu_ = std::make_unique<GpuTier>(options, *keyspace_, bulk_policy_, std::move(hooks));
}

void Tenant::OpenCxl(const CxlTierOptions& options) {
  CxlTier::Hooks hooks;
  hooks.reserve = [this](uint64_t length) { return ReserveInCxl(kNoSession, length, UnixMs()); };
  hooks.reserve_dram = [this](uint64_t length) -> Result<WriteHandle> {
    // Half of what is kept free for writers stays theirs.
    const double most = (1 + high_watermark_.load(std::memory_order_relaxed)) / 2;
    if (static_cast<double>(budget_.used_bytes() + length) >
        most * static_cast<double>(budget_.limit())) {
      return Fail(ErrorCode::kBusy, "DRAM is above its watermark");
    }
    return pool_->Reserve(length);
  };
  hooks.refused = [this](const ValueRef& value) {
    const Outcome outcome = EvictFromMemory(value, UnixMs(), false);
    if (outcome == Outcome::kKept || outcome == Outcome::kWait) keyspace_->AbandonDemotion(*value);
  };
  hooks.freed = [this](uint64_t bytes) { memory_queue_.Freed(bytes); };
  cxl_ = std::make_unique<CxlTier>(options, *keyspace_, bulk_policy_, std::move(hooks));
}

Tenant::~Tenant() { CloseMoves(); }

Status Tenant::OpenSsd(const SsdTierOptions& options, int64_t now_ms) {
  auto tier = SsdTier::Open(
      options, *keyspace_,
      [this, wait_ms = options.wait_ms](uint64_t length, bool wait) {
        auto handle = ReserveAndWait(length, wait ? MemoryWaitMs(wait_ms, length) : 0);
        if (handle) pool_->FaultIn(*handle);
        return handle;
      },
      [this](uint64_t bytes) { memory_queue_.Freed(bytes); }, now_ms);
  if (!tier) return tl::unexpected<Error>(std::move(tier.error()));
  ssd_ = std::move(*tier);
  keyspace_->SetLeastOnSsd(options.least_value_bytes);
  return {};
}

void Tenant::ReadAhead(uint64_t hash, uint8_t partition) {
  uint64_t next[ReadAheadWindow::kMost];
  const size_t window = bulk_policy_.read_ahead().size();
  if (ssd_ == nullptr || window == 0) return;
  const size_t found = bulk_policy_.Successors(hash, std::span(next).first(window), partition);
  for (size_t i = 0; i < found; ++i) {
    if (const SsdPlace place = keyspace_->PlaceOf(next[i])) {
      ssd_->Load(next[i], place, SsdTier::Why::kAhead, nullptr);
    }
  }
}

void Tenant::SetWatermarks(double high, double evict_ratio) {
  high_watermark_.store(high, std::memory_order_relaxed);
  evict_ratio_.store(evict_ratio, std::memory_order_relaxed);
}

bool Tenant::EvictAboveWatermark(int64_t now_ms) {
  const auto limit = static_cast<double>(budget_.limit());
  const double high = high_watermark_.load(std::memory_order_relaxed);
  const double low = high - evict_ratio_.load(std::memory_order_relaxed);
  const auto used = [&] {
    return static_cast<double>(budget_.used_bytes()) - static_cast<double>(coming_bytes());
  };
  return EvictBetween(high * limit, low * limit, &evicting_, used,
                      [&] { return EvictOne(now_ms); });
}

bool Tenant::MaintainCxl(int64_t now_ms) {
  if (cxl_ == nullptr) return false;
  if (bulk_policy_.any_wanted()) cxl_->Wake();
  const auto limit = static_cast<double>(cxl_budget_.limit());
  const double high = cxl_->options().high_watermark;
  const double low = high - cxl_->options().evict_ratio;
  const auto used = [&] {
    const uint64_t coming = ssd_ != nullptr ? ssd_->queued_bytes(Tier::kCxl) : 0;
    return static_cast<double>(cxl_budget_.used_bytes()) - static_cast<double>(coming);
  };
  return EvictBetween(high * limit, low * limit, &evicting_in_cxl_, used,
                      [&] { return EvictOneInCxl(now_ms); });
}

bool Tenant::MaintainGpu(int64_t now_ms) {
  if (gpu_ == nullptr) return false;
  bool more = false;
  pool_->growth()->Tick(now_ms);
  const double high = gpu_->options().high_watermark;
  const double low = high - gpu_->options().evict_ratio;
  for (size_t i = 0; i < gpu_->devices().size(); ++i) {
    if (now_ms >= device_upkeep_[i].probe_ms) {
      device_upkeep_[i].probe_ms = now_ms + kProbeMs;
      pool_->growth()->Probe(i);
    }
    if (gpu_->devices()[i]->lost()) {
      more |= DropDevice(i, now_ms);
      continue;
    }
    const auto limit = static_cast<double>(gpu_capacity(i));
    const auto used = [&] {
      return static_cast<double>(gpu_budgets_[i]->used_bytes()) -
             static_cast<double>(coming_bytes_on(i));
    };
    more |= EvictBetween(high * limit, low * limit, &device_upkeep_[i].evicting, used,
                         [&] { return EvictOneInGpu(i, now_ms); });
  }
  return more;
}

bool Tenant::DropDevice(size_t device, int64_t now_ms) {
  DeviceUpkeep& upkeep = device_upkeep_[device];
  if (now_ms < upkeep.look_again_ms) return false;
  if (!std::exchange(upkeep.given_up, true)) {
    gpu_->Note("GPU " + gpu_->devices()[device]->name() +
               " is lost: its keys go, and nothing is stored there any more");
  }
  pool_->GiveUpDevice(device);
  uint64_t dropped = 0;
  for (const ValueRef& value : pool_->OnDevice(device, kMostLost)) {
    if (!keyspace_->DropLost(*value)) continue;
    gpu_->CountLost();
    ++dropped;
  }
  // What was reserved before may be committed yet.
  if (dropped == 0) upkeep.look_again_ms = now_ms + kLostPauseMs;
  return dropped > 0;
}

bool Tenant::DrainSome(int64_t now_ms) {
  const std::vector<ValueRef> values = pool_->Draining(kMovesPerSlice);
  bool progress = false;
  for (const ValueRef& value : values) {
    if (value->device() != nullptr) continue;  // DropDevice() sees to those
    auto target = pool_->Reserve(value->length(), value->tier());
    if (target) {
      std::memcpy(target->data(), value->data(), value->length());
      ValueRef moved = std::move(*target).Publish(value->crc());
      progress |= keyspace_->MoveBulk(*value, std::move(moved));
    } else {
      progress |= Evict(value, now_ms, true) == Outcome::kFreed;
    }
  }
  return progress;
}

bool Tenant::Maintain(int64_t now_ms) {
  const auto end = std::chrono::steady_clock::now() + kSlice;
  bool more;
  do {
    more = MaintainOnce(now_ms);
  } while (more && std::chrono::steady_clock::now() < end);
  // While values wait to be moved or freed, memory is faulted in only a little at a time.
  return pool_->Maintain(more ? kHugePageBytes : ExtentPool::kPopulateSlice) || more;
}

bool Tenant::Quiet() {
  uint64_t memory = budget_.used_bytes() + budget_.region_bytes() + cxl_budget_.used_bytes();
  for (const auto& budget : gpu_budgets_) memory += budget->used_bytes() + budget->region_bytes();
  const bool same = std::exchange(memory_seen_, memory) == memory;
  quiet_ = same && memory_queue_.empty() && coming_bytes() == 0 && !pool_->Drains() &&
           (gpu_ == nullptr ||
            (gpu_->queued_bytes() == 0 && pool_->growth()->waiting() == 0)) &&
           (ssd_ == nullptr || !ssd_->WarmsUp());
  return quiet_;
}

bool Tenant::MaintainSsd(int64_t now_ms) {
  memory_queue_.Tick(now_ms);
  if (ssd_ == nullptr) return false;
  ssd_->WarmUp([this] {
    const double low = (high_watermark_.load(std::memory_order_relaxed) -
                        evict_ratio_.load(std::memory_order_relaxed)) *
                       static_cast<double>(budget_.limit());
    return static_cast<double>(budget_.used_bytes()) < low;
  });
  return ssd_->Maintain(now_ms);
}

bool Tenant::MaintainOnce(int64_t now_ms) {
  const size_t buckets = quiet_ ? kExpireBucketsWhenQuiet : kExpireBucketsPerSlice;
  bool more = keyspace_->ExpireSome(buckets, now_ms) >= buckets;
  more |= keyspace_->SweepVoids(now_ms);
  more |= EvictAboveWatermark(now_ms);
  more |= MaintainCxl(now_ms);
  more |= MaintainGpu(now_ms);
  more |= MaintainSsd(now_ms);
  // Heap and regions together are over the limit: turn a region's memory to other use.
  if (budget_.region_bytes() + budget_.inline_bytes() > budget_.limit()) {
    using Sparing = ExtentPool::Sparing;
    const bool keep_all = !keyspace_->partitions().evicts();
    pool_->RetireOne(keep_all ? Sparing::kAll : Sparing::kNone);
  }
  more |= DrainSome(now_ms);
  return more;
}

}  // namespace moonpool::storage
