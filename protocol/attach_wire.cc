#include "protocol/attach_wire.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace moonpool::protocol {

Status SendAttachMessage(int socket, const AttachMessage& message, int fd) {
  iovec data{const_cast<AttachMessage*>(&message), sizeof(message)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (fd >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return FailErrno("sending on the attach socket");
  return {};
}

Result<ReceivedAttachMessage> ReceiveAttachMessage(int socket) {
  ReceivedAttachMessage result;
  iovec data{&result.message, sizeof(result.message)};
  // Room for two descriptors, so that a peer that sends too many is seen, not truncated silently.
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t received;
  do {
    received = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  int fds = 0;
  if (received >= 0) {
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i, ++fds) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
        result.fd.Reset(fd);
      }
    }
  }
  if (received == 0) return Fail(ErrorCode::kUnavailable, "the attach socket was closed");
  if (received < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return Fail(ErrorCode::kTimeout, "nothing to read on the attach socket");
    }
    if (errno == ECONNRESET) return Fail(ErrorCode::kUnavailable, "the attach socket was closed");
    return FailErrno("reading from the attach socket");
  }
  if (received != sizeof(AttachMessage) || fds > 1 ||
      (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
      result.message.magic != AttachMessage::kMagic) {
    return Fail(ErrorCode::kProtocol, "the attach socket's peer does not speak this protocol");
  }
  if (result.message.version != AttachMessage::kVersion) {
    return Fail(ErrorCode::kProtocol, "the attach socket's peer speaks version " +
                                          std::to_string(result.message.version) +
                                          ", this side version " +
                                          std::to_string(AttachMessage::kVersion));
  }
  return result;
}

}  // namespace moonpool::protocol
