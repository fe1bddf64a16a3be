// Rdma, in a build without it.
#include "server/rdma.h"

namespace moonpool::server {

Result<std::unique_ptr<Rdma>> Rdma::Start(const Options&) {
  return Fail(ErrorCode::kUnavailable,
              "this build has no RDMA (libibverbs and librdmacm were not found, or MOONPOOL_RDMA is off)");
}

}  // namespace moonpool::server
