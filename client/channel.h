// One connection to the server: RESP, its KV session, and its attachment to shared memory or its
// queue pairs.
//
// Threads: the calls on the stream by one thread at a time (the one that borrowed the channel);
// QueueRelease, session_alive and Pump by any.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/attachment.h"
#include "client/endpoint.h"
#include "client/hello.h"
#include "client/node_memory.h"
#include "client/rdma_transport.h"
#include "client/resp_stream.h"
#include "protocol/descriptor.h"

namespace moonpool::client {

using Clock = std::chrono::steady_clock;

class Channel : public std::enable_shared_from_this<Channel> {
 public:
  // What of a client its channels share.
  struct Common {
    // Replaced when the server turns out to be of another epoch.
    std::shared_ptr<NodeMemory> memory;
    std::shared_ptr<RdmaTransport> rdma;
    bool try_shm = true;  // it has not failed lately
    bool want_gpu = false;  // device memory of the server's
  };
  // Connects, authenticates, says KV.HELLO, and attaches to shared memory or else connects queue
  // pairs, as far as they are wanted and possible.
  static Status Open(const Endpoint& endpoint, const Options& options, Common* common,
                     std::unique_ptr<Channel>* channel);
  ~Channel();

  RespStream& stream() { return stream_; }
  const ServerLimits& limits() const { return limits_; }
  // Null without shared memory.
  const std::shared_ptr<NodeMemory>& memory() const { return memory_; }
  bool shm() const { return attachment_ != nullptr && attachment_->attached(); }
  // There is no shared memory although the caller wanted it.
  bool attach_failed() const { return attach_failed_; }
  // Device memory was asked for; it need not have been offered.
  bool asked_gpu() const { return asked_gpu_; }
  // Null without RDMA.
  RdmaSession* rdma() const { return rdma_.get(); }
  // It was wanted and could not be had, or was not tried for an earlier failure.
  bool rdma_failed() const { return rdma_failed_; }
  // The server speaks RESP only: no KV.* commands.
  bool plain() const { return plain_; }
  bool usable() const { return !stream_.broken() && !parked(); }
  // The server has ended the session, whose copies to its devices it waits for: this is closed when
  // nobody holds it, and says so then.
  bool ended() const { return asked_gpu_ && attachment_ != nullptr && !attachment_->attached(); }
  // A device may still write to an extent of this session's: the server must not be told that it is
  // free, and so it is told nothing more.  The session ends when the device is done: who has work there
  // holds the channel, and its destructor says that there is none.
  void Park() { parked_.store(true, std::memory_order_relaxed); }
  bool parked() const { return parked_.load(std::memory_order_relaxed); }
  // No call will be given it any more.
  void Retire() { retired_.store(true, std::memory_order_relaxed); }
  bool retired() const { return retired_.load(std::memory_order_relaxed); }

  // The region's mapping; null when it cannot be had.
  std::shared_ptr<Mapping> Map(uint32_t region, bool for_writing) {
    return attachment_->Map(*memory_, region, for_writing, gpu_);
  }

  // After the header of a descriptor's array was read.
  bool ReadDescriptor(protocol::Descriptor* descriptor);

  // Releases a lease or a hold with the next command.
  void QueueRelease(uint64_t lease);
  // Puts the queued releases in front of the next command.  REQUIRES: no reply is outstanding.
  void BeginReleases();
  bool has_releases() const { return has_releases_.load(std::memory_order_relaxed); }

  // Looks at the socket: false as soon as the server is gone.
  bool session_alive() const { return attachment_ != nullptr && attachment_->alive(); }
  // To poll for messages the server sends unasked; -1 without shared memory.
  int attach_fd() const { return attachment_ != nullptr ? attachment_->fd() : -1; }
  void Pump() {
    if (attachment_ != nullptr) attachment_->Pump(*memory_);
  }

 private:
  Channel() = default;
  Status Hello(const Options& options, Common* common);
  Status AttachTo(const HelloAnswer& answer, const Options& options, Common* common);
  Status ConnectQueuePairs(const HelloAnswer& answer, const Options& options, Common* common);
  Status NewToken(std::string* token);

  RespStream stream_;
  ServerLimits limits_;
  bool plain_ = false;
  std::unique_ptr<Attachment> attachment_;
  std::shared_ptr<NodeMemory> memory_;
  bool attach_failed_ = false;
  bool asked_gpu_ = false;
  Options::GpuChoice gpu_ = Options::GpuChoice::kAuto;
  std::unique_ptr<RdmaSession> rdma_;
  bool rdma_failed_ = false;

  std::atomic<bool> retired_{false};
  std::atomic<bool> parked_{false};
  std::atomic<bool> has_releases_{false};
  Mutex releases_mu_;
  std::vector<uint64_t> releases_ GUARDED_BY(releases_mu_);
};

}  // namespace moonpool::client
