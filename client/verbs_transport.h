// RdmaTransport over rdma/.
//
// The NICs are opened when they are first needed.  What fails is remembered, and not tried again
// before a pause that doubles.
// Threads: any.  Lock order: open_mu_, mu_.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/rdma_transport.h"
#include "client/verbs_session.h"
#include "protocol/mutex.h"
#include "rdma/backoff.h"

namespace moonpool::client {

class VerbsTransport final : public RdmaTransport {
 public:
  using Library = std::function<Result<std::unique_ptr<rdma::Verbs>>()>;
  // `library`: rdma::OpenVerbs, or a double.
  VerbsTransport(const Options& options, Library library);
  ~VerbsTransport() override;

  bool MayTry() override EXCLUDES(mu_);
  Status OpenDevices() override EXCLUDES(open_mu_, mu_);
  Status Open(const RdmaOffer& offer, MoreTokens more,
              std::unique_ptr<RdmaSession>* session) override EXCLUDES(open_mu_, mu_);
  void Declare(void* data, size_t bytes, gpu::Device* device) override EXCLUDES(mu_);
  void Withdraw(void* data) override EXCLUDES(mu_);
  uint64_t registered_bytes() const override EXCLUDES(mu_);
  std::string error() const override EXCLUDES(mu_);
  std::string device_memory_error() const override EXCLUDES(mu_);

 private:
  struct Declared {
    char* data = nullptr;
    size_t bytes = 0;
    std::shared_ptr<rdma::PeerMemory> peer;  // null: host memory
  };

  Result<std::shared_ptr<VerbsShared>> OpenLibrary();
  Status Failed(const std::string& why) EXCLUDES(mu_);
  std::shared_ptr<VerbsShared> shared() const EXCLUDES(mu_);

  const Options options_;
  const Library library_;
  Mutex open_mu_;  // held while devices are opened
  mutable Mutex mu_;
  std::shared_ptr<VerbsShared> shared_ GUARDED_BY(mu_);  // null until the devices are open
  std::vector<Declared> declared_ GUARDED_BY(mu_);
  // One for each device, however many buffers it has: it knows which NICs refuse.
  std::map<gpu::Device*, std::shared_ptr<rdma::PeerMemory>> peers_ GUARDED_BY(mu_);
  rdma::Backoff backoff_ GUARDED_BY(mu_);
  std::string error_ GUARDED_BY(mu_);
};

}  // namespace moonpool::client
