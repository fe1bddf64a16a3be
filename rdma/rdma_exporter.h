// Makes a tenant's regions readable through RDMA: those in host memory, and those on devices by
// their dma-buf, if every NIC takes that.
//
// Threads: any; mu_ is a leaf lock, and nothing is registered under it.
// Lifetime: the service must outlive it, and the pool's generation table too.
#pragma once

#include <memory>
#include <unordered_map>

#include "protocol/mutex.h"
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

  Status Export(const std::shared_ptr<storage::Region>& region) override EXCLUDES(mu_);
  void Withdraw(uint32_t region) override EXCLUDES(mu_);

 private:
  explicit RdmaExporter(Service& service) : service_(service) {}
  Status Register(storage::Region& region) EXCLUDES(mu_);
  Status RegisterOnDevice(storage::Region& region) EXCLUDES(mu_);

  Service& service_;
  std::shared_ptr<TenantMemory> memory_;
  Mutex mu_;
  std::unordered_map<uint32_t, std::shared_ptr<storage::Region>> exported_ GUARDED_BY(mu_);
  // Why a NIC takes no memory of that device: none is asked again.
  std::unordered_map<const storage::DeviceMemory*, Error> refused_ GUARDED_BY(mu_);
};

}  // namespace moonpool::rdma
