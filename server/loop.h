// One event loop on its own thread, with the buffers its connections share.
//
// libevent without its locks: only the loop's own thread touches the event_base and everything
// that belongs to the loop's connections.  Other threads reach it through Post() alone.
//
// While no command of a connection is half received and no reply half sent, the connection owns
// no buffers: input is parsed in the loop's read buffer and replies are built in its scratch.
#pragma once

#include <event2/event.h>
#include <event2/event_struct.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/unique_fd.h"
#include "server/command.h"
#include "server/stats.h"

namespace moonpool::server {

class Connection;
class Server;
class Session;

class Loop {
 public:
  // Bytes read at once from a connection that has nothing half received.
  static constexpr size_t kReadBytes = 64 * 1024;
  // Commands parsed ahead, so that their keys can be prefetched together.
  static constexpr size_t kBatch = 64;
  static constexpr int kLeaseTickMs = 10;
  static constexpr int64_t kActiveMs = 2;

  Loop(Server& server, int index);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Starts the thread.
  void Start();
  // Asks the thread to stop once every connection has sent what it owes or `drain_ms` have
  // passed; Join() waits for it.
  void Stop(int64_t drain_ms);
  void Join();

  // Runs `task` on the loop's thread, in the order of the calls.  Any thread.
  void Post(std::function<void()> task);

  // --- the loop's own thread ---------------------------------------------------------------
  Server& server() { return server_; }
  int index() const { return index_; }
  event_base* base() { return base_; }
  // Unix milliseconds, read once per wake-up of a connection.
  int64_t now_ms() const { return now_ms_; }
  void UpdateClock();
  // A connection got input; whether another than `id` did within the last few milliseconds.
  void NoteActive(uint64_t id) {
    if (active_[0].id != id) active_[1] = std::exchange(active_[0], {id, now_ms_});
    active_[0].ms = now_ms_;
  }
  bool OthersActive(uint64_t id) const {
    const Active& other = active_[active_[0].id == id ? 1 : 0];
    return now_ms_ - other.ms <= kActiveMs;
  }

  void Adopt(UniqueFd fd, struct ConnectionOrigin origin);
  void Destroy(Connection* connection);
  Connection* Find(uint64_t id);
  // Their leases are looked after when the first ends, at most once in kLeaseTickMs.
  void AddSession(Session* session);
  void RemoveSession(Session* session);
  void LeaseEnds(int64_t at_ms) {
    if (at_ms < lease_end_ms_) WaitForLeases(at_ms);
  }
  template <typename Visit>
  void ForEachConnection(Visit&& visit) {
    for (const auto& [id, connection] : connections_) visit(*connection);
  }

  char* read_buffer() { return read_buffer_.get(); }
  Reply& scratch() { return scratch_; }
  std::vector<ParsedCommand>& batch() { return batch_; }
  std::vector<Argument>& batch_arguments() { return batch_arguments_; }
  // What the command that runs just now lacks.
  Missing& missing() { return missing_; }
  LoopStats& stats() { return stats_; }

 private:
  void Run();
  void RunTasks();
  void OnTimer();
  static void Wake(evutil_socket_t, short, void* loop);
  static void Tick(evutil_socket_t, short, void* loop);
  static void LeaseTick(evutil_socket_t, short, void* loop);
  void WaitForLeases(int64_t end_ms);

  Server& server_;
  const int index_;
  event_base* base_ = nullptr;
  UniqueFd wake_fd_;
  struct event wake_event_ = {};
  struct event timer_event_ = {};
  struct event lease_event_ = {};
  std::unordered_set<Session*> sessions_;
  int64_t lease_end_ms_ = INT64_MAX;  // for which lease_event_ waits, if it does
  int64_t now_ms_ = 0;
  struct Active {
    uint64_t id = 0;
    int64_t ms = 0;
  };
  Active active_[2];  // the two connections that had input last
  bool stopping_ = false;
  int64_t stop_at_ms_ = 0;

  std::unique_ptr<char[]> read_buffer_;
  Reply scratch_;
  std::vector<ParsedCommand> batch_;
  std::vector<Argument> batch_arguments_;
  Missing missing_;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> connections_;
  LoopStats stats_;

  Mutex mu_;
  std::vector<std::function<void()>> tasks_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moonpool::server
