#include "protocol/attach_wire.h"

#include <cerrno>
#include <string>
#include <utility>

#include "protocol/fd_message.h"

namespace moonpool::protocol {

Status SendAttachMessage(int socket, const AttachMessage& message, int fd) {
  if (!SendWithFd(socket, &message, sizeof(message), fd)) {
    return FailErrno("sending on the attach socket");
  }
  return {};
}

Result<ReceivedAttachMessage> ReceiveAttachMessage(int socket) {
  ReceivedAttachMessage result;
  FdMessage received = ReceiveWithFd(socket, &result.message, sizeof(result.message));
  result.fd = std::move(received.fd);
  if (received.bytes == 0) return Fail(ErrorCode::kUnavailable, "the attach socket was closed");
  if (received.bytes < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return Fail(ErrorCode::kTimeout, "nothing to read on the attach socket");
    }
    if (errno == ECONNRESET) return Fail(ErrorCode::kUnavailable, "the attach socket was closed");
    return FailErrno("reading from the attach socket");
  }
  if (received.bytes != sizeof(AttachMessage) || received.fds > 1 || received.truncated ||
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
