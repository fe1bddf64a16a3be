// Bytes a connection still has to send: copies of replies, and values by reference.
// Threads: the loop's.  Owns the bytes and pins the values until the socket has taken them.
#pragma once

#include <cstdint>
#include <deque>
#include <string_view>

#include "server/command.h"

namespace moonpool::server {

class OutputQueue {
 public:
  // What one call of Send() may move: large replies take turns with each other, and shorter turns
  // while other clients of the loop wait for small ones.
  static constexpr size_t kSendBudget = 1024 * 1024;
  static constexpr size_t kSharedBudget = 32 * 1024;

  bool empty() const { return pieces_.empty(); }
  // What is waiting, pinned values included.
  uint64_t bytes() const { return bytes_; }
  // The part of it that is heap memory.
  uint64_t heap_bytes() const { return heap_bytes_; }

  // Appends what `reply` holds behind its first `sent` bytes (bytes of values counted) and
  // empties it.
  void Take(Reply& reply, size_t sent);

  struct Sent {
    size_t bytes = 0;
    size_t value_bytes = 0;  // of them, from extents
    bool blocked = false;    // the socket is full
    bool failed = false;     // the peer is gone
  };
  // Sends up to `budget` bytes from the queue.
  Sent Send(int socket, size_t budget);
  // Sends straight from `reply`, which stays as it is.
  static Sent SendReply(int socket, Reply& reply, size_t budget);

 private:
  struct Piece {
    protocol::ByteBuffer heap;
    storage::ValueRef value;
    uint64_t offset = 0;  // of what is still to be sent
    uint64_t length = 0;

    const char* data() const { return (value ? value->data() : heap.data()) + offset; }
  };

  void PushBytes(std::string_view bytes);

  std::deque<Piece> pieces_;
  uint64_t bytes_ = 0;
  uint64_t heap_bytes_ = 0;
};

}  // namespace moonpool::server
