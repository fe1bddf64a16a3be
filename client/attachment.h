// The client's end of an attach socket: fetches the memory files of its tenant.
//
// Threads: any; mu_ serialises use of the socket.  Owns the socket and, through it, this
// session's right to its write arenas.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "client/moonpool/client.h"
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
  // the server has no such region (any more), the socket is gone, or it is memory of a device that
  // this process does not reach.  `for_writing`: an arena of this session, or memory of a device.
  std::shared_ptr<Mapping> Map(NodeMemory& memory, uint32_t region, bool for_writing,
                               Options::GpuChoice gpu);

  // Handles what the server sent unasked: regions to unmap.  Does not block.  To be called now and
  // then, whether or not anything came.
  void Pump(NodeMemory& memory);
  // False once a call found the socket closed.
  bool attached() const { return alive_.load(std::memory_order_relaxed); }
  // Looks at the socket itself.
  bool alive();
  int fd() const { return fd_.get(); }
  // To the server, as the last message: no work of this session's writes into memory of its devices any
  // more.  Also when the session is lost: until then nobody else is given what was reserved there.
  void SayDone();
  // The arenas this session writes to must not stay mapped when it is over.
  void Abandon(NodeMemory& memory);

 private:
  Attachment() = default;
  // Reads until a message that is not kGone; false at the end of the socket.
  bool Receive(NodeMemory& memory, protocol::ReceivedAttachMessage* message) REQUIRES(mu_);
  void Gone(NodeMemory& memory, uint32_t region) REQUIRES(mu_);
  void SayUnmapped(uint32_t region) REQUIRES(mu_);
  // Says so of what no copy uses any more.
  void SayWhatLeft(NodeMemory& memory) REQUIRES(mu_);
  std::shared_ptr<Mapping> Import(NodeMemory& memory,
                                  const protocol::ReceivedAttachMessage& answer,
                                  Options::GpuChoice gpu);

  Mutex mu_;
  ForkSafeFd fd_;
  std::atomic<bool> alive_{true};
  uint64_t epoch_ = 0;
  std::shared_ptr<Mapping> generations_;
  std::vector<uint32_t> arenas_ GUARDED_BY(mu_);
  std::vector<uint32_t> gone_ GUARDED_BY(mu_);  // of which the server has not been told yet
};

}  // namespace moonpool::client
