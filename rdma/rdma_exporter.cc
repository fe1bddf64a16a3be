#include "rdma/rdma_exporter.h"

#include <vector>

namespace moonpool::rdma {

namespace {

// A region on a device, as registrations know it.
class RangeMemory final : public PeerMemory {
 public:
  // It is exported while the range is there.
  explicit RangeMemory(const storage::DeviceMemory::Range& range) : range_(range) {}

  Result<File> Export(char*, uint64_t) override {
    auto exported = range_.ExportDmabuf();
    if (!exported) return tl::unexpected<Error>(std::move(exported.error()));
    return File{std::move(exported->fd), exported->offset};
  }
  // Nothing of the server's is read into it.
  Status Flush() override { return {}; }

 private:
  const storage::DeviceMemory::Range& range_;
};

}  // namespace

Result<std::unique_ptr<RdmaExporter>> RdmaExporter::Create(
    Service& service, const storage::GenerationTable& generations, uint64_t slice_bytes,
    std::function<void(const std::string&)> refused) {
  std::unique_ptr<RdmaExporter> exporter(new RdmaExporter(service));
  auto memory =
      TenantMemory::Create(service.nics(), reinterpret_cast<char*>(&generations.counter(0)),
                           generations.bytes(), slice_bytes, std::move(refused));
  if (!memory) return tl::unexpected<Error>(std::move(memory.error()));
  exporter->memory_ = std::move(*memory);
  return exporter;
}

RdmaExporter::~RdmaExporter() {
  std::vector<uint32_t> left;
  {
    MutexLock lock(mu_);
    for (const auto& [id, region] : exported_) left.push_back(id);
  }
  for (const uint32_t id : left) Withdraw(id);
}

Status RdmaExporter::Export(const std::shared_ptr<storage::Region>& region) {
  Status registered = region->device() != nullptr ? RegisterOnDevice(*region) : Register(*region);
  if (!registered) return registered;
  MutexLock lock(mu_);
  exported_[region->id()] = region;
  return {};
}

Status RdmaExporter::Register(storage::Region& region) {
  // The server maps arenas read-only: it moves nothing into them.
  const bool writable = region.kind() == storage::Region::Kind::kShared;
  return memory_->Add(region.id(), region.data(), region.bytes(), writable);
}

Status RdmaExporter::RegisterOnDevice(storage::Region& region) {
  {
    MutexLock lock(mu_);
    const auto refused = refused_.find(region.device());
    if (refused != refused_.end()) return tl::unexpected<Error>(refused->second);
  }
  const auto range = std::make_shared<RangeMemory>(*region.range());
  Status added =
      memory_->AddPeer(region.id(), range, region.address(), region.bytes(), /*writable=*/false);
  if (added || !range->any_refused()) return added;
  MutexLock lock(mu_);
  refused_.emplace(region.device(), added.error());
  return added;
}

void RdmaExporter::Withdraw(uint32_t region) {
  std::shared_ptr<storage::Region> withdrawn;
  {
    MutexLock lock(mu_);
    const auto found = exported_.find(region);
    if (found == exported_.end()) return;
    withdrawn = std::move(found->second);
    exported_.erase(found);
  }
  service_.Withdraw(memory_, region);
}

}  // namespace moonpool::rdma
