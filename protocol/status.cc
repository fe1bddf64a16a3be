#include "protocol/status.h"

#include <cerrno>
#include <cstring>

namespace moonpool {

tl::unexpected<Error> FailErrno(std::string_view what) {
  const int error = errno;
  char buffer[128];
  return Fail(ErrorCode::kSystem,
              std::string(what) + ": " + strerror_r(error, buffer, sizeof(buffer)));
}

}  // namespace moonpool
