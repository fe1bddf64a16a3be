// RdmaTransport of a library that was built without RDMA.
#include "client/rdma_transport.h"

namespace moonpool::client {

namespace {

constexpr const char* kWhy =
    "this libmoonpool was built without RDMA: install libibverbs-dev and librdmacm-dev "
    "(rdma-core-devel) "
    "and configure it with -DMOONPOOL_RDMA=ON, or use transport=auto";

class NoRdma final : public RdmaTransport {
 public:
  bool MayTry() override { return false; }
  Status OpenDevices() override { return {Code::kUnavailable, kWhy}; }
  Status Open(const RdmaOffer&, MoreTokens, std::unique_ptr<RdmaSession>*) override {
    return OpenDevices();
  }
  void Declare(void*, size_t, gpu::Device*) override {}
  void Withdraw(void*) override {}
  uint64_t registered_bytes() const override { return 0; }
  std::string error() const override { return {}; }
  std::string device_memory_error() const override { return {}; }
};

}  // namespace

std::shared_ptr<RdmaTransport> NewRdmaTransport(const Options&) {
  return std::make_shared<NoRdma>();
}

}  // namespace moonpool::client
