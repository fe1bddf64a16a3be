// One connected queue pair with what is posted on it.
//
// Knows which of its requests are complete: a completion stands for all before it, so that only the
// last of a chain, and one now and then, ask for one.  Requests are made in a chain, Add() by
// Add(), and posted with one doorbell by Post().
//
//   open -> failed     an error, or Fail(): nothing more is taken; what is posted is being flushed
//        -> fenced     all of it was, or the queue pair is destroyed: nothing is touched through it
//
// Threads: one at a time.  Owns connection, completion queue and message buffers; the domains, the
// channel and the remote keys must outlive it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "rdma/registration.h"
#include "rdma/remote_keys.h"
#include "rdma/verbs.h"
#include "rdma/wire.h"

namespace moonpool::rdma {

class Lane {
 public:
  // Makes the queue pair of a connection whose device is known, and posts its receives.  `limits`:
  // what is to be agreed upon at most; limits() is what was had.  `channel` may be null.
  static Result<std::unique_ptr<Lane>> Create(std::unique_ptr<Connection> connection,
                                              const Domains& domains, CompletionChannel* channel,
                                              const LaneLimits& limits);
  ~Lane();

  enum class State : uint8_t { kConnecting, kOpen, kFailed, kFenced };
  State state() const { return state_; }
  bool open() const { return state_ == State::kOpen; }
  // The handshake is over: both sides keep to these limits.
  void Open(const LaneLimits& agreed, RemoteKeys* remote);

  Connection& connection() { return *connection_; }
  CompletionQueue& completions() { return *completions_; }
  size_t device() const { return device_; }  // its number in the domains
  const LaneLimits& limits() const { return limits_; }
  uint32_t max_pieces() const { return max_pieces_; }
  // Its READs may be fenced.
  bool fences_reads() const { return !iwarp_; }
  RemoteKeys* remote() const { return remote_; }
  const std::string& why() const { return why_; }  // it failed
  // It failed because the other side has no such memory for us: no fault of the lane.
  bool refused() const { return refused_; }
  // It failed because its receives were flushed, and by nothing that we did: the other side has closed
  // it (or the device has), and the event that says so may be on its way still.
  bool flushed() const { return flushed_; }

  // --- requests
  // What a request is for, given back with its end.
  struct Ticket {
    void* owner = nullptr;
    uint64_t index = 0;
    uint64_t bytes = 0;
  };
  struct End {
    Ticket ticket;
    Completion::Status status = Completion::Status::kOk;
    const char* text = "";
  };
  // Requests that Add() takes now.
  uint32_t room() const { return limits_.depth - kKept - static_cast<uint32_t>(posted_.size()); }
  // Bytes of requests that are not complete.
  uint64_t outstanding_bytes() const { return outstanding_bytes_; }
  size_t outstanding() const { return posted_.size(); }
  // Requests that have ended since it was made.
  uint64_t ended() const { return first_; }
  // REQUIRES: open(), room() > 0 (1 for a WRITE), at most max_pieces() pieces, and `fenced` only where it fences.
  // A WRITE ends when its bytes are at the other side: over iWARP a READ of nothing behind it says so.
  void Add(WorkRequest::Kind kind, std::span<const Piece> pieces, uint64_t remote_address,
           uint32_t remote_key, bool fenced, const Ticket& ticket);
  // Those added since the last call.  False when the queue pair took not all of them: it has
  // failed.
  bool Post();

  // Sends a message; false when too many are under way (or the lane is not open).  `fenced`: when
  // all READs posted before are complete.
  bool Send(const Message& message, bool fenced = false);

  // Takes completions; requests that are complete or have failed are appended to `ends`, messages
  // to `messages`.  True when there were any.
  bool Poll(std::vector<End>* ends, std::vector<Message>* messages);
  // For one event with the next completion; nothing when that was asked for already.
  void Arm();
  void Armed(bool armed) { armed_ = armed; }

  // Nothing more is posted, and what is posted is flushed: Poll() gives it back.
  void Fail(const std::string& why);
  // Destroys the queue pair, which fences whatever is left of it: `ends` has that.
  void Destroy(std::vector<End>* ends);

  // How fast it is and whether it is stuck: kept by the engine that posts on it.
  struct Pace {
    double rate = 0;  // bytes per tick; 0: not known yet
    uint64_t completed_bytes = 0;
    uint64_t since_ticks = 0;  // of the present measurement, and what was complete then
    uint64_t since_bytes = 0;
    uint64_t seen_ended = 0;
    int64_t stuck_ms = 0;  // since that changed
  } pace;

 private:
  // Of the depth, for messages.
  static constexpr uint32_t kKept = 16;
  static constexpr uint32_t kReceives = 32;
  static constexpr uint64_t kReceiveBit = uint64_t{1} << 63;

  struct Posted {
    enum class Kind : uint8_t { kRequest, kMessage, kSent };  // kSent: of a WRITE, which ends behind it
    Ticket ticket;
    Kind kind = Kind::kRequest;
  };

  Lane(std::unique_ptr<Connection> connection, size_t device);
  Status PostReceive(uint64_t slot);
  void AddOne(WorkRequest::Kind kind, std::span<const Piece> pieces, uint64_t remote_address,
              uint32_t remote_key, bool fenced, const Posted& posted);
  void Sign(WorkRequest* request);
  void EndFront(Completion::Status status, const char* text, std::vector<End>* ends);
  void ClearChain();

  std::unique_ptr<CompletionQueue> completions_;
  std::vector<Message> message_memory_;  // received ones, then those to send
  std::unique_ptr<Registered> message_keys_;
  std::unique_ptr<Connection> connection_;  // before what its queue pair uses
  const size_t device_;
  LaneLimits limits_;
  uint32_t max_pieces_ = 1;
  bool iwarp_ = false;
  RemoteKeys* remote_ = nullptr;
  State state_ = State::kConnecting;
  std::string why_;
  bool refused_ = false;
  bool flushed_ = false;
  bool armed_ = false;

  // Requests that are not complete, the first having number first_.
  std::deque<Posted> posted_;
  uint64_t first_ = 0;
  uint64_t outstanding_bytes_ = 0;
  // Since the last that asked for a completion.
  uint32_t unsigned_requests_ = 0;
  uint64_t unsigned_bytes_ = 0;
  uint32_t messages_sent_ = 0;  // under way
  uint32_t next_message_ = 0;

  // Added and not posted: the pieces of all, and how many are whose.
  std::vector<WorkRequest> chain_;
  std::vector<size_t> chain_counts_;
  std::vector<Piece> chain_pieces_;
  size_t never_posted_ = 0;  // the last so many of posted_, of a lane that has failed
};

}  // namespace moonpool::rdma
