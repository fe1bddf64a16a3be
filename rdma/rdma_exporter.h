// Makes a tenant's regions readable through RDMA.
//
// Threads: Export and Withdraw one at a time; memory() any.
// Lifetime: the service must outlive it, and the pool's generation table too.
#pragma once

#include <memory>
#include <unordered_map>

#include "rdma/service.h"
#include "rdma/tenant_memory.h"
#include "storage/exporter.h"
#include "storage/generation_table.h"

namespace moonpool::rdma {

class RdmaExporter : public storage::Exporter {
 public:
  static Result<std::unique_ptr<RdmaExporter>> Create(
      Service& service, const storage::GenerationTable& generations,
      uint64_t slice_bytes = kDefaultSliceBytes,
      std::function<void(const std::string&)> refused = {});
  // Withdraws what is left.
  ~RdmaExporter() override;

  // What sessions of the tenant are begun with.
  const std::shared_ptr<TenantMemory>& memory() const { return memory_; }

  Status Export(const std::shared_ptr<storage::Region>& region) override;
  void Withdraw(uint32_t region) override;

 private:
  explicit RdmaExporter(Service& service) : service_(service) {}

  Service& service_;
  std::shared_ptr<TenantMemory> memory_;
  std::unordered_map<uint32_t, std::shared_ptr<storage::Region>> exported_;
};

}  // namespace moonpool::rdma
