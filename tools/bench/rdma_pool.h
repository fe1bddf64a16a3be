// What `moonpool-bench rdma` reads from: a pool behind a service, and a session's endpoint.
//
// Threads: one at a time.  Throws Failure.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rdma/buffer_cache.h"
#include "rdma/endpoint.h"
#include "rdma/nic_set.h"
#include "rdma/rdma_exporter.h"
#include "rdma/service.h"
#include "storage/extent_pool.h"
#include "tools/bench/memory_block.h"

namespace moonpool::bench {

// Values of one size in a pool, their bytes known by their number.
class RdmaPool {
 public:
  RdmaPool(const std::string& devices, const std::string& exclude, uint64_t pool_bytes);
  ~RdmaPool();

  rdma::NicSet& nics() { return *nics_; }
  // One of them alone, for a reader.
  std::unique_ptr<rdma::NicSet> OpenNic(size_t nic) const;
  rdma::Service& service() { return *service_; }
  std::vector<rdma::RemoteNic> told() const;
  const rdma::TenantMemory& memory() const { return *exporter_->memory(); }
  rdma::EndpointTarget NewSession(uint64_t session);

  // In place of those before.
  void Fill(uint64_t bytes, size_t count);
  const storage::Extent& extent(size_t i) const { return values_[i]->extent(); }
  size_t count() const { return values_.size(); }

  static constexpr uint64_t kEpoch = 1;

 private:
  std::unique_ptr<rdma::NicSet> nics_;
  storage::MemoryBudget budget_;
  std::unique_ptr<rdma::Service> service_;
  std::unique_ptr<storage::ExtentPool> pool_;
  std::unique_ptr<rdma::RdmaExporter> exporter_;
  std::vector<storage::ValueRef> values_;
};

// Reads batches of values into one registered buffer, as batch_get_into does.
class PoolReader {
 public:
  // Over these NICs, which must outlive it.
  PoolReader(RdmaPool& pool, rdma::NicSet& nics, uint64_t session, uint64_t buffer_bytes);

  // The values of these numbers, side by side in the buffer.
  void Read(const std::vector<uint32_t>& numbers);
  // Whether each is the value of its number.
  bool Check(const std::vector<uint32_t>& numbers) const;
  rdma::Endpoint& endpoint() { return *endpoint_; }
  size_t open_lanes() const;
  void WaitForLanes(size_t lanes);

 private:
  RdmaPool& pool_;
  MemoryBlock buffer_;
  std::unique_ptr<rdma::Domains> domains_;
  std::unique_ptr<rdma::BufferCache> cache_;
  std::unique_ptr<rdma::Endpoint> endpoint_;
  rdma::BufferCache::Pins pins_;
};

// The device's own figure: one queue pair, so many READs under way, nothing else.  What perftest
// does.
class RawReader {
 public:
  RawReader(RdmaPool& pool, uint64_t session, uint64_t buffer_bytes);
  ~RawReader();

  // Waiting for completions by looking, or by sleeping until there is one.
  enum class Waits { kLooks, kSleeps };
  void Read(const std::vector<uint32_t>& numbers, Waits waits);
  // READs under way over all calls until this: Read() leaves them there.
  void Finish(Waits waits);

 private:
  void Reap(size_t at_most_left, Waits waits);

  RdmaPool& pool_;
  MemoryBlock buffer_;
  std::unique_ptr<rdma::Domains> domains_;
  std::unique_ptr<rdma::Registration> keys_;
  std::unique_ptr<rdma::CompletionChannel> channel_;
  std::unique_ptr<rdma::CompletionQueue> completions_;
  std::unique_ptr<rdma::ConnectionEvents> events_;
  std::unique_ptr<rdma::Connection> connection_;
  size_t device_ = 0;
  uint64_t posted_ = 0;
  uint64_t done_ = 0;
  std::vector<rdma::Piece> pieces_;
  std::vector<rdma::WorkRequest> requests_;
};

}  // namespace moonpool::bench
