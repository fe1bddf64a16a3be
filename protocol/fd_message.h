// Messages over a Unix socket that keeps their bounds (SOCK_SEQPACKET), with a file descriptor beside
// them: unix(7), SCM_RIGHTS.
//
// Threads: any; values.  Both block as the socket does, and go on after a signal.
#pragma once

#include <sys/types.h>

#include <cstddef>

#include "protocol/unique_fd.h"

namespace moonpool::protocol {

// One message, with `fd` unless that is -1.  False, and errno, when it was not sent.
bool SendWithFd(int socket, const void* message, size_t bytes, int fd = -1);

struct FdMessage {
  ssize_t bytes = 0;  // as recvmsg(2): 0 at the end, -1 and errno on errors
  int fds = 0;        // that came beside it
  UniqueFd fd;        // the last of them
  bool truncated = false;
};
// The next message, of at most so many bytes.
FdMessage ReceiveWithFd(int socket, void* message, size_t bytes);

}  // namespace moonpool::protocol
