// How expected failures travel: as values.  A miss is not an error (std::optional or a null
// reply); programmer errors abort through CHECK.  No exception crosses a folder.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include <tl/expected.hpp>

namespace moonpool {

enum class ErrorCode : uint8_t {
  kInvalidArgument,   // the caller passed something wrong; the message says what to pass
  kOutOfMemory,       // no memory and nothing evictable
  kBusy,              // no memory now; it comes as values reach the SSD
  kNotFound,          // the named thing (region, lease, token) does not exist any more
  kPermissionDenied,  // wrong tenant, token or ACL
  kUnavailable,       // the peer or device is gone; retrying on a new connection may work
  kProtocol,          // the peer sent bytes that are not of the protocol
  kTimeout,           // the deadline passed first
  kSystem,            // a system call failed; the message carries errno's text
  kNoSpace,           // the file system or a quota on it is full
  kCorrupt,           // stored bytes are not what was written
};

struct [[nodiscard]] Error {
  ErrorCode code;
  std::string message;
};

template <typename T>
using Result = tl::expected<T, Error>;
using Status = tl::expected<void, Error>;

inline tl::unexpected<Error> Fail(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}

// kSystem with "<what>: <strerror(errno)>".
tl::unexpected<Error> FailErrno(std::string_view what);

[[noreturn]] inline void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, expression);
  std::abort();
}

}  // namespace moonpool

// Aborts when a condition that only a bug can break does not hold.  Stays on in release builds.
#define MOONPOOL_CHECK(expression) \
  (__builtin_expect(!!(expression), 1) ? (void)0 \
                                       : ::moonpool::CheckFailed(#expression, __FILE__, __LINE__))
