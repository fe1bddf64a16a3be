// The client's end of an attach socket: fetches the memory files of its tenant.
//
// Threads: any; mu_ serialises use of the socket.  Owns the socket and, through it, this
// session's right to its write arenas.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "client/node_memory.h"
#include "protocol/attach_wire.h"
#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::client {

class Attachment {
 public:
  // `address`: a path, or "@name" in the abstract namespace.  The generation table comes with it.
  static Result<std::unique_ptr<Attachment>> Connect(const std::string& address,
                                                     const std::string& token, int timeout_ms);
  ~Attachment();

  uint64_t epoch() const { return epoch_; }
  const std::shared_ptr<Mapping>& generations() const { return generations_; }

  // The region's mapping, from `memory` or fetched from the server and added to it.  Null when
  // the server has no such region (any more), or the socket is gone.  `for_writing`: an arena of
  // this session.
  std::shared_ptr<Mapping> Map(NodeMemory& memory, uint32_t region, bool for_writing);

  // Handles what the server sent unasked: regions to unmap.  Does not block.
  void Pump(NodeMemory& memory);
  // False once a call found the socket closed.
  bool attached() const { return alive_.load(std::memory_order_relaxed); }
  // Looks at the socket itself.
  bool alive();
  int fd() const { return fd_.get(); }
  // The arenas this session writes to must not stay mapped when it is over.
  void Abandon(NodeMemory& memory);

 private:
  Attachment() = default;
  // Reads until a message that is not kGone; false at the end of the socket.
  bool Receive(NodeMemory& memory, protocol::ReceivedAttachMessage* message) REQUIRES(mu_);
  void Gone(NodeMemory& memory, uint32_t region) REQUIRES(mu_);

  Mutex mu_;
  ForkSafeFd fd_;
  std::atomic<bool> alive_{true};
  uint64_t epoch_ = 0;
  std::shared_ptr<Mapping> generations_;
  std::vector<uint32_t> arenas_ GUARDED_BY(mu_);
};

}  // namespace moonpool::client
