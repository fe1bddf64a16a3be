// ExtentPool: what the background thread does with regions, from faulting them in to giving them up.
#include <algorithm>
#include <utility>

#include "storage/exporter.h"
#include "storage/extent_pool.h"

namespace moonpool::storage {

bool ExtentPool::Maintain(uint64_t populate_bytes) {
  for (const Tier tier : {Tier::kDram, Tier::kCxl}) {
    if (budget(tier) != nullptr) GrowAhead(tier);
  }
  for (size_t device = 0; device < devices_.size(); ++device) GrowAheadOnDevice(device);
  const bool populated = PopulateSlice(populate_bytes);
  const bool exported = ExportOne();
  bool gave_up = GiveUpEmpty();
  if (WithdrawOne()) gave_up |= GiveUpEmpty();
  return populated || exported || gave_up;
}

void ExtentPool::GrowAhead(Tier tier) {
  {
    MutexLock lock(mu_);
    if (!std::exchange(shared(tier).grow_ahead, false)) return;
  }
  MutexLock adding(adding_);
  // Ahead of need only; when the budget has no room, reservations will find out themselves.
  [[maybe_unused]] const Status added =
      AddRegion({Region::Kind::kShared, kNoSession, tier}, 1);
}

bool ExtentPool::PopulateSlice(uint64_t bytes) {
  std::shared_ptr<Region> region;
  uint64_t offset = 0;
  {
    MutexLock lock(mu_);
    for (const auto& [id, candidate] : regions_) {
      if (!candidate->populating) continue;
      region = candidate->region;
      offset = candidate->populated;
      break;
    }
  }
  if (region == nullptr) return false;
  const uint64_t length = std::min(bytes, region->bytes() - offset);
  const bool populated = region->Populate(offset, length);
  MutexLock lock(mu_);
  const auto found = regions_.find(region->id());
  if (found == regions_.end()) return true;
  PoolRegion& pool_region = *found->second;
  if (populated) pool_region.populated = offset + length;
  if (!populated || pool_region.populated == region->bytes()) pool_region.populating = false;
  return true;
}

void ExtentPool::set_exporter(Exporter* exporter) {
  MutexLock lock(mu_);
  exporter_ = exporter;
  while (exporter == nullptr && within_exporter_ > 0) exporter_left_.Wait(mu_);
}

Exporter* ExtentPool::EnterExporter() {
  MutexLock lock(mu_);
  if (exporter_ != nullptr) ++within_exporter_;
  return exporter_;
}

void ExtentPool::LeaveExporter() {
  if (--within_exporter_ == 0) exporter_left_.NotifyAll();
}

// A driver that hangs holds up nothing but its device.
void ExtentPool::RunFor(std::shared_ptr<Region> region,
                        void (ExtentPool::*act)(const std::shared_ptr<Region>&)) {
  if (region->device() == nullptr) return (this->*act)(region);
  const size_t device = region->device_number();
  growth_->Do(device, [this, act, region = std::move(region)] { (this->*act)(region); });
}

// One at a time, as it takes a tenth of a second per GiB: eviction has its turns in between.
bool ExtentPool::ExportOne() {
  std::shared_ptr<Region> region;
  {
    MutexLock lock(mu_);
    if (exporter_ == nullptr) return false;
    for (const auto& [id, candidate] : regions_) {
      const bool shared = candidate->region->kind() == Region::Kind::kShared;
      if (candidate->draining || candidate->export_tried || (!shared && !candidate->sealed) ||
          candidate->populated < candidate->region->bytes()) {
        continue;
      }
      region = candidate->region;
      candidate->export_tried = true;
      candidate->exported = true;  // from here on nobody else gives it up
      candidate->exporting = true;
      break;
    }
  }
  if (region == nullptr) return false;
  RunFor(std::move(region), &ExtentPool::ExportNow);
  return true;
}

void ExtentPool::ExportNow(const std::shared_ptr<Region>& region) {
  Exporter* const exporter = EnterExporter();
  Status exported = Fail(ErrorCode::kUnavailable, "there is no exporter any more");
  if (exporter != nullptr) exported = exporter->Export(region);
  MutexLock lock(mu_);
  PoolRegion& tried = *regions_.at(region->id());
  tried.exported = exported.has_value();
  tried.exporting = false;
  if (!exported) tried.export_error = std::move(exported.error().message);
  // One that drains has a device that was lost meanwhile.
  region->set_exported(tried.exported && !tried.draining);
  if (exporter != nullptr) LeaveExporter();
}

// Likewise: a client that does not answer is waited for.
bool ExtentPool::WithdrawOne() {
  std::shared_ptr<Region> leaving;
  {
    MutexLock lock(mu_);
    if (exporter_ == nullptr) return false;
    for (const auto& [id, region] : regions_) {
      if (!region->draining || region->extents > 0 || !region->exported || region->exporting ||
          region->withdrawing) {
        continue;
      }
      region->withdrawing = true;
      leaving = region->region;
      break;
    }
  }
  if (leaving == nullptr) return false;
  RunFor(std::move(leaving), &ExtentPool::WithdrawNow);
  return true;
}

void ExtentPool::WithdrawNow(const std::shared_ptr<Region>& region) {
  region->set_exported(false);
  Exporter* const exporter = EnterExporter();
  if (exporter != nullptr) exporter->Withdraw(region->id());
  MutexLock lock(mu_);
  PoolRegion& withdrawn = *regions_.at(region->id());
  withdrawn.exported = withdrawn.withdrawing = false;
  if (exporter != nullptr) LeaveExporter();
}

bool ExtentPool::GiveUpEmpty() {
  std::vector<std::shared_ptr<Region>> empty;
  std::vector<uint32_t> untold;
  {
    MutexLock lock(mu_);
    for (const auto& [id, region] : regions_) {
      if (!region->draining || region->extents > 0) continue;
      if (!region->exported) empty.push_back(region->region);
      if (!std::exchange(region->told_gone, true)) untold.push_back(id);
    }
  }
  if (on_gone_) {
    for (const uint32_t id : untold) on_gone_(id);
  }
  bool any = false;
  for (std::shared_ptr<Region>& region : empty) {
    if (region->kind() == Region::Kind::kArena && !region->ProveNoWriters()) continue;
    {
      MutexLock lock(mu_);
      if (regions_.erase(region->id()) == 0) continue;  // another thread was faster
      budget(*region)->ReleaseRegion(region->bytes());
      any = true;
    }
    const size_t device = region->device_number();
    if (region->device() != nullptr) growth_->Discard(device, std::move(region));
  }
  return any;
}

}  // namespace moonpool::storage
