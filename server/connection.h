// One client connection: bytes in, commands run in order, replies out.
//
//   readable -> parse up to Loop::kBatch commands -> hash and prefetch their keys -> run them
//            -> send the replies in one call
//
// A long argument (Body) is received straight into the extent or the heap block where it stays.
// Threads: its loop's.  Owned by the loop; Close() makes the loop destroy it.
#pragma once

#include <event2/event_struct.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "protocol/byte_buffer.h"
#include "protocol/request_parser.h"
#include "protocol/unique_fd.h"
#include "server/client_info.h"
#include "server/command.h"
#include "server/output_queue.h"

namespace moonpool::server {

class Background;
class Session;
struct Arrivals;
struct Parked;

struct ConnectionOrigin {
  std::string address;        // "127.0.0.1:5000", "[::1]:5000", or the Unix socket's path
  std::string local_address;
  bool unix_socket = false;
  bool loopback = false;
};

enum class ReplyMode { kOn, kOff, kSkipNext, kSkipping };

class Connection {
 public:
  Connection(Loop& loop, uint64_t id, UniqueFd fd, const ConnectionOrigin& origin);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  uint64_t id() const { return id_; }
  Loop& loop() { return loop_; }
  ClientInfo& info() { return *info_; }
  storage::Tenant& tenant() { return *tenant_; }

  bool authenticated() const { return authenticated_; }
  void set_authenticated(bool value);
  int resp() const { return resp_; }
  void set_resp(int version);
  ReplyMode reply_mode() const { return reply_mode_; }
  void set_reply_mode(ReplyMode mode) { reply_mode_ = mode; }

  // The KV session, null before KV.HELLO.
  Session* session() { return session_.get(); }
  void set_session(std::unique_ptr<Session> session);

  // For a command that must wait: `finish` runs on this loop, and writes the reply, once what is
  // returned was called, on any thread.  Nothing else of this connection runs in between; its pipeline
  // keeps its order.  When the connection goes first, `finish` is only destroyed.
  std::function<void()> Suspend(const Command& command, std::function<void(Context&)> finish);
  // The same after `work`, on the background thread.
  void Suspend(const Command& command, Background& background, std::function<void()> work,
               std::function<void(Context&)> finish);

  // RESET: as if just connected.
  void ResetState();
  // Closes once everything queued is sent.
  void CloseAfterReply() { close_after_reply_ = true; }
  // Closes now.  The connection is destroyed when the current event has been handled.
  void Close();
  // What every tick of the loop's timer checks; may Close().
  void OnTick();
  // What it waited for is there, or will not come.
  void ValuesCameUp(Arrivals& arrivals);
  void MemoryCameFree();
  // Replies that waited for the SSD's log may go.
  void ReleaseOutput();
  // Nothing is owed: no reply half sent, no command waiting.
  bool Drained() const { return output_.empty() && !suspended_; }

 private:
  static void OnReadable(evutil_socket_t, short, void* connection);
  static void OnWritable(evutil_socket_t, short, void* connection);
  void Read();
  // Parses and runs what is in `input`; returns how many bytes were used up.  Stops early at a
  // body (body_wanted_) and when the connection closes.
  size_t Consume(std::string_view input);
  void Process(std::string_view fresh);
  // Runs the batch.  Returns how far into the input it got when a command suspended the
  // connection: what follows is parsed again later.
  std::optional<size_t> RunBatch();
  void Resume(const Command& command, bool silent, const std::function<void(Context&)>& finish);
  // Returns the time when it was done, in ticks; `start` is when the one before was.
  uint64_t Run(const ParsedCommand& parsed, uint64_t start);
  // `parked`: null when the command is run for the first time.
  uint64_t Execute(const Command* command, std::span<Argument> arguments, uint64_t key_hash,
                   uint64_t start, Reply::Mark mark, std::unique_ptr<Parked> parked);

  // --- connection_parking.cc
  std::unique_ptr<Parked> Park(const Command* command, std::span<Argument> arguments,
                               uint64_t key_hash);
  void Wait(std::unique_ptr<Parked> parked, bool again);
  void PrefetchRest(std::span<const ParsedCommand> rest);
  void WaitForBodyMemory(uint64_t bytes);
  void RunAgain();
  // True when the reply must wait for changes to be logged.
  bool HoldOutput();
  void Enqueue(size_t first_argument, size_t frame_end);
  const Command* Admit(const ParsedCommand& parsed, std::span<Argument> arguments);
  void RejectUnknown(std::span<Argument> arguments);
  void Flush();
  size_t SendBudget() const;
  void AfterSend(const OutputQueue::Sent& sent);
  void WatchWritable(bool on);
  void TriggerByLevel();
  void UpdateLimits();

  // Finds memory for the body whose header was just parsed.  False: the connection waits for it.
  bool ReserveBody(std::string_view frame);
  // Takes the body; `rest` is what follows its header in the buffer.  Returns how many bytes of
  // `rest` belong to it.
  size_t BeginBody(std::string_view rest);
  bool BodyComplete() const { return body_received_ == bodies_.back().size; }
  // False when the connection is blocked or gone.
  bool ReadBody();

  Loop& loop_;
  const uint64_t id_;
  UniqueFd fd_;
  storage::Tenant* tenant_;
  std::shared_ptr<ClientInfo> info_;
  struct event read_event_ = {};
  struct event write_event_ = {};
  bool watching_writable_ = false;
  bool level_triggered_ = false;
  bool sent_ = false;  // something, since the last input came

  protocol::RequestParser parser_;
  protocol::ParserLimits limits_;
  protocol::ByteBuffer input_;  // what is unfinished, from the start of its frame
  std::deque<Body> bodies_;     // of the current frame; stable addresses
  bool body_wanted_ = false;    // Consume() stopped at a body
  bool receiving_body_ = false;
  size_t body_received_ = 0;
  bool last_had_body_ = false;

  OutputQueue output_;
  int64_t over_soft_limit_since_ms_ = 0;
  int resp_ = 2;
  ReplyMode reply_mode_ = ReplyMode::kOn;
  bool authenticated_ = false;
  bool close_after_reply_ = false;
  bool closed_ = false;
  bool suspended_ = false;
  std::unique_ptr<Parked> parked_;  // a command that waits
  int64_t body_until_ms_ = 0;       // how long the body waits for memory; 0: it does not
  uint64_t held_sequence_ = 0;      // replies wait until the SSD's log has come this far; 0: none
  std::unique_ptr<Session> session_;
};

}  // namespace moonpool::server
