// RdmaSession over rdma/: the queue pairs of one channel, and what the server knows of our memory.
//
// Threads: whoever has the channel.  Keeps what all sessions share alive.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/rdma_transport.h"
#include "rdma/buffer_cache.h"
#include "rdma/endpoint_cache.h"
#include "rdma/nic_set.h"

namespace moonpool::client {

// What the sessions of a Client share.  Threads: any.
struct VerbsShared {
  VerbsShared(std::unique_ptr<rdma::NicSet> n, std::unique_ptr<rdma::Domains> d,
              const Options& options)
      : nics(std::move(n)),
        domains(std::move(d)),
        staging_bytes(static_cast<uint64_t>(options.rdma_staging_mib) << 20),
        connect_timeout_ms(options.connect_timeout_ms),
        buffers(*domains, static_cast<uint64_t>(options.rdma_registered_mib) << 20),
        endpoints(static_cast<size_t>(options.rdma_sessions)) {}

  const std::unique_ptr<rdma::NicSet> nics;
  const std::unique_ptr<rdma::Domains> domains;
  const uint64_t staging_bytes;
  const int connect_timeout_ms;
  rdma::BufferCache buffers;
  rdma::EndpointCache endpoints;
  // Servers number their sessions from one at each start, so that keys of the cache are our own.
  std::atomic<uint64_t> next_key{1};
};

class VerbsSession final : public RdmaSession {
 public:
  // `first`: the token that came with the offer.
  VerbsSession(std::shared_ptr<VerbsShared> shared, rdma::EndpointTarget target, rdma::Token first,
               RdmaTransport::MoreTokens more);
  ~VerbsSession() override;

  // Why there is no queue pair, after Ready() was false.
  const std::string& why() const { return why_; }
  // Nothing failed: other sessions use all that may be had at a time.
  bool busy() const { return busy_; }

  bool Ready() override;
  void Rest() override { use_.Release(); }
  void Tend() override;
  Status Read(std::span<const Value> values, std::chrono::steady_clock::time_point deadline,
              std::vector<Outcome>* outcomes) override;
  void BeginRound() override;
  std::optional<Place> PlaceOf(const void* data, uint64_t bytes) override;
  std::optional<Place> Stage(std::span<const ConstBuffer> pieces, uint64_t bytes) override;
  uint64_t staging_bytes() const override { return shared_->staging_bytes; }
  void Fence() override;
  void Forget(const void* data, uint64_t bytes) override;

 private:
  // A registration the server knows, pinned for as long.
  using Announced = std::map<std::shared_ptr<const rdma::Registration>, uint32_t>;

  std::unique_ptr<rdma::Endpoint> MakeEndpoint();
  Result<rdma::Token> NextToken();
  bool EnsureStaging();
  bool Crowded();
  // What is in device memory, by value.
  static Status Flush(std::span<const std::pair<size_t, rdma::BufferCache::Pins>> on_device,
                      std::vector<Outcome>* outcomes);
  void RetractAll(rdma::Endpoint& endpoint);

  const std::shared_ptr<VerbsShared> shared_;
  const rdma::EndpointTarget target_;
  const RdmaTransport::MoreTokens more_;
  const uint64_t key_;
  std::optional<rdma::Token> first_;
  rdma::EndpointCache::Use use_;
  std::string why_;
  bool busy_ = false;
  bool used_ = false;  // since the last Tend()

  Announced announced_;
  uint32_t next_buffer_ = 1;
  uint64_t refusals_seen_ = 0;

  // Buffer 0 of the server's.
  std::unique_ptr<char[]> staging_;
  std::unique_ptr<rdma::Registration> staging_keys_;
  uint64_t staged_ = 0;
  bool no_staging_ = false;  // it could not be registered
};

}  // namespace moonpool::client
