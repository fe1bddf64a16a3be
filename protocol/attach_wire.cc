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
  const auto strange = [] {
    return Fail(ErrorCode::kProtocol, "the attach socket's peer does not speak this protocol");
  };
  // Every version begins with magic and version, so that both sides can say which they speak.
  if (received.bytes < static_cast<ssize_t>(2 * sizeof(uint32_t)) || received.fds > 1 ||
      result.message.magic != AttachMessage::kMagic) {
    return strange();
  }
  if (result.message.version != AttachMessage::kVersion) {
    return Fail(ErrorCode::kProtocol, "the attach socket's peer speaks version " +
                                          std::to_string(result.message.version) +
                                          ", this side version " +
                                          std::to_string(AttachMessage::kVersion));
  }
  if (received.bytes != sizeof(AttachMessage) || received.truncated ||
      static_cast<size_t>(result.message.tier) >= kTiers ||
      result.message.handle > DeviceHandleKind::kIpc) {
    return strange();
  }
  return result;
}

}  // namespace moonpool::protocol
