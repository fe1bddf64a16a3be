#include "rdma/rdma_exporter.h"

namespace moonpool::rdma {

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
  while (!exported_.empty()) Withdraw(exported_.begin()->first);
}

Status RdmaExporter::Export(const std::shared_ptr<storage::Region>& region) {
  // The server maps arenas read-only: it moves nothing into them.
  const bool writable = region->kind() == storage::Region::Kind::kShared;
  if (Status status = memory_->Add(region->id(), region->data(), region->bytes(), writable);
      !status) {
    return status;
  }
  exported_[region->id()] = region;
  return {};
}

void RdmaExporter::Withdraw(uint32_t region) {
  const auto found = exported_.find(region);
  if (found == exported_.end()) return;
  service_.Withdraw(memory_, region);
  exported_.erase(found);
}

}  // namespace moonpool::rdma
