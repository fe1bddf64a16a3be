// A tenant's pool that is exported by a service, and clients of it: for tests with real devices.
//
// Threads: one at a time.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "rdma/buffer_cache.h"
#include "rdma/endpoint.h"
#include "rdma/ibverbs.h"
#include "rdma/rdma_exporter.h"
#include "rdma/service.h"
#include "storage/extent_pool.h"
#include "tests/rdma/known_bytes.h"

namespace moonpool::rdma::test {

// The value of a Result, which must be one.
template <typename T>
T Must(Result<T> result, const char* what) {
  if (!result) {
    std::fprintf(stderr, "%s: %s\n", what, result.error().message.c_str());
    std::abort();
  }
  return std::move(*result);
}

inline std::unique_ptr<NicSet> OpenNics(const std::string& only = "") {
  return Must(NicSet::Open(Must(OpenVerbs(), "verbs"), ParseNicFilter(only, "")), "NICs");
}

// As a session's HELLO tells about them.
inline std::vector<RemoteNic> Told(const NicSet& nics) {
  std::vector<RemoteNic> result;
  for (const Nic& nic : nics.nics()) {
    result.push_back({nic.name(), nic.addresses, nic.protocol, nic.speed_mbps});
  }
  return result;
}

// Over iWARP a refused request just ends the connection, as any other failure does.
inline bool OverIwarp(const NicSet& nics) {
  return nics.nics()[0].protocol == Protocol::kIwarp;
}

class LivePool {
 public:
  explicit LivePool(Service& service, uint64_t region_bytes = 256 << 20,
                    uint64_t limit_bytes = 768 << 20)
      : budget_(limit_bytes) {
    storage::PoolOptions options;
    options.region_bytes = region_bytes;
    options.arena_bytes = 32 << 20;
    options.generation_slots = 1 << 16;
    pool_ = Must(storage::ExtentPool::Create(options, &budget_), "pool");
    exporter_ = Must(RdmaExporter::Create(service, pool_->generations()), "exporter");
  }
  ~LivePool() { exporter_ = nullptr; }

  storage::ExtentPool& pool() { return *pool_; }
  RdmaExporter& exporter() { return *exporter_; }
  const std::shared_ptr<TenantMemory>& memory() const { return exporter_->memory(); }

  // Exports the regions that are new.
  void Export() {
    for (const storage::RegionInfo& info : pool_->Regions()) {
      if (!exported_.insert(info.id).second) continue;
      const Status status = exporter_->Export(pool_->FindRegion(info.id));
      ASSERT_TRUE(status) << status.error().message;
    }
  }
  storage::ValueRef Put(uint64_t bytes, uint64_t value) {
    storage::WriteHandle handle = Must(pool_->Reserve(bytes), "Reserve");
    pool_->FaultIn(handle);
    FillKnown(handle.data(), bytes, value);
    storage::ValueRef ref = std::move(handle).Publish();
    Export();
    return ref;
  }

 private:
  storage::MemoryBudget budget_;
  std::unique_ptr<storage::ExtentPool> pool_;
  std::unique_ptr<RdmaExporter> exporter_;
  std::set<uint32_t> exported_;
};

// A client's memory to read into.
class ClientBuffer {
 public:
  explicit ClientBuffer(uint64_t bytes) : bytes_(bytes), memory_(bytes + 4096, '\xee') {}
  char* data() {
    return memory_.data() + (4096 - reinterpret_cast<uintptr_t>(memory_.data()) % 4096);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  const uint64_t bytes_;
  std::vector<char> memory_;
};

// A session's client end with what it needs.
class LiveClient {
 public:
  LiveClient(NicSet& nics, EndpointTarget target, Endpoint::Tokens tokens,
             const EndpointOptions& options = {})
      : domains_(Must(Domains::Create(nics.devices()), "domains")),
        cache_(*domains_, 1ull << 30),
        endpoint_(nics, *domains_, std::move(target), std::move(tokens), options) {}

  Endpoint& endpoint() { return endpoint_; }
  BufferCache& cache() { return cache_; }
  const Domains& domains() { return *domains_; }

  // A value as a descriptor tells of it, and where its bytes go.
  struct Want {
    Want() = default;
    Want(const storage::Extent& extent, char* into)
        : region(extent.region->id()),
          offset(extent.offset),
          length(extent.length),
          slot(extent.slot),
          generation(extent.generation),
          to(into) {}
    uint32_t region = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t slot = 0;
    uint64_t generation = 0;
    char* to = nullptr;
  };
  // Reads them all; what became of each.
  std::vector<Outcome> Read(const std::vector<Want>& wants,
                            std::chrono::milliseconds time = std::chrono::seconds(30)) {
    std::vector<std::vector<LocalPiece>> pieces(wants.size());
    BufferCache::Pins pins;
    std::vector<TransferItem> items;
    for (size_t i = 0; i < wants.size(); ++i) {
      const Want& want = wants[i];
      cache_.Describe(want.to, want.length, &pieces[i], &pins);
      items.push_back(
          {want.region, want.offset, want.length, pieces[i], true, want.slot, want.generation});
    }
    Transfer transfer(Transfer::Direction::kRead, std::move(items));
    endpoint_.Run(&transfer, Endpoint::Clock::now() + time);
    error_ = transfer.error();
    std::vector<Outcome> outcomes;
    for (size_t i = 0; i < wants.size(); ++i) outcomes.push_back(transfer.outcome(i));
    return outcomes;
  }
  const std::string& error() const { return error_; }

 private:
  std::unique_ptr<Domains> domains_;
  BufferCache cache_;
  Endpoint endpoint_;
  std::string error_;
};

}  // namespace moonpool::rdma::test
