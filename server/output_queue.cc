#include "server/output_queue.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

namespace moonpool::server {

namespace {

constexpr size_t kMaxPieces = 64;
// Small replies are gathered up to this size instead of queueing piece by piece.
constexpr size_t kGatherBytes = 64 * 1024;

OutputQueue::Sent SendPieces(int socket, iovec* pieces, size_t count, size_t wanted) {
  OutputQueue::Sent sent;
  ssize_t n;
  do {
    if (count == 1) {
      n = send(socket, pieces[0].iov_base, pieces[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } else {
      msghdr header{};
      header.msg_iov = pieces;
      header.msg_iovlen = count;
      n = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    sent.blocked = errno == EAGAIN || errno == EWOULDBLOCK;
    sent.failed = !sent.blocked;
    return sent;
  }
  sent.bytes = static_cast<size_t>(n);
  sent.blocked = sent.bytes < wanted;
  return sent;
}

}  // namespace

OutputQueue::Sent OutputQueue::SendReply(int socket, Reply& reply, size_t budget) {
  if (reply.splices().empty()) {
    iovec piece{const_cast<char*>(reply.data()), std::min(reply.size(), budget)};
    return SendPieces(socket, &piece, 1, piece.iov_len);
  }
  iovec pieces[kMaxPieces];
  bool is_value[kMaxPieces] = {};
  size_t count = 0;
  size_t wanted = 0;
  const auto add = [&](const char* data, uint64_t length, bool value) {
    if (count == kMaxPieces || wanted >= budget || length == 0) return;
    length = std::min<uint64_t>(length, budget - wanted);
    is_value[count] = value;
    pieces[count++] = {const_cast<char*>(data), length};
    wanted += length;
  };
  size_t position = 0;
  for (const Reply::Splice& splice : reply.splices()) {
    add(reply.data() + position, splice.position - position, false);
    add(splice.value->data() + splice.offset, splice.length, true);
    position = splice.position;
  }
  add(reply.data() + position, reply.size() - position, false);
  Sent sent = SendPieces(socket, pieces, count, wanted);
  size_t left = sent.bytes;
  for (size_t i = 0; i < count && left > 0; ++i) {
    const size_t part = std::min(left, pieces[i].iov_len);
    if (is_value[i]) sent.value_bytes += part;
    left -= part;
  }
  return sent;
}

void OutputQueue::PushBytes(std::string_view bytes) {
  if (bytes.empty()) return;
  bytes_ += bytes.size();
  heap_bytes_ += bytes.size();
  if (!pieces_.empty() && !pieces_.back().value) {
    Piece& last = pieces_.back();
    if (last.heap.size() + bytes.size() <= kGatherBytes) {
      last.heap.Append(bytes);
      last.length += bytes.size();
      return;
    }
  }
  Piece& piece = pieces_.emplace_back();
  piece.heap.Append(bytes);
  piece.length = bytes.size();
}

void OutputQueue::Take(Reply& reply, size_t sent) {
  size_t position = 0;
  // The part of [position, end) of the buffer that was not sent.
  const auto push = [&](size_t end) {
    const size_t skip = std::min(sent, end - position);
    sent -= skip;
    PushBytes({reply.data() + position + skip, end - position - skip});
    position = end;
  };
  for (Reply::Splice& splice : reply.splices()) {
    push(splice.position);
    const uint64_t skip = std::min<uint64_t>(sent, splice.length);
    sent -= skip;
    if (skip == splice.length) continue;
    Piece& piece = pieces_.emplace_back();
    piece.value = std::move(splice.value);
    piece.offset = splice.offset + skip;
    piece.length = splice.length - skip;
    bytes_ += piece.length;
  }
  push(reply.size());
  reply.Reset();
}

OutputQueue::Sent OutputQueue::Send(int socket, size_t budget) {
  iovec pieces[kMaxPieces];
  size_t count = 0;
  size_t wanted = 0;
  for (const Piece& piece : pieces_) {
    if (count == kMaxPieces || wanted >= budget) break;
    const size_t length = std::min<uint64_t>(piece.length, budget - wanted);
    pieces[count++] = {const_cast<char*>(piece.data()), length};
    wanted += length;
  }
  if (count == 0) return {};
  Sent sent = SendPieces(socket, pieces, count, wanted);
  bytes_ -= sent.bytes;
  size_t left = sent.bytes;
  while (left > 0) {
    Piece& piece = pieces_.front();
    const uint64_t part = std::min<uint64_t>(left, piece.length);
    if (piece.value) {
      sent.value_bytes += part;
    } else {
      heap_bytes_ -= part;
    }
    piece.offset += part;
    piece.length -= part;
    left -= part;
    if (piece.length == 0) pieces_.pop_front();
  }
  return sent;
}

}  // namespace moonpool::server
