// One client's KV session: what its descriptors pin, what it has reserved, what it may map.
//
// Begins with KV.HELLO and ends with its RESP connection (or a new KV.HELLO, RESET, AUTH).  When
// it ends, for whatever reason, nothing of it is left: leases and holds are released, pending
// reservations go back to the pool, its write arenas drain, and its queue pairs are fenced.
//
// It does not end with its last queue pair: a client closes idle ones for room, and repairs lanes that
// failed.  Nothing depends on them: a lease ends at its deadline, a hold is of a shared-memory view,
// and a client that died has lost its RESP connection as well.
//
// What it had reserved on devices, and its client did not say that it is done with, is held back by the
// pool: LateWriters takes over the attach socket, and waits for the client or the end of its process.
//
// Threads: the loop of its connection.  The tenant and the server must outlive it.
#pragma once

#include <event2/event_struct.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "protocol/attach_wire.h"
#include "protocol/descriptor.h"
#include "server/command.h"
#include "server/counter.h"
#include "storage/bulk_value.h"
#include "storage/device_memory.h"

namespace moonpool::server {

// What KV.SESSIONS shows.  The session's loop writes, any thread reads.
struct SessionInfo {
  uint64_t id = 0;
  uint64_t client_id = 0;
  std::string address;
  std::string tenant;
  bool redirect = false;
  std::atomic<bool> attached{false};
  std::atomic<uint64_t> queue_pairs{0};  // the RDMA service's thread writes it
  Counter leases;
  Counter holds;
  Counter reservations;
};

// How long a descriptor is to stay good.
struct LeaseRequest {
  bool hold = false;
  std::optional<int64_t> ms;  // empty: the default
};

class Session {
 public:
  // `rdma`: it may have queue pairs.  REQUIRES: the server has RDMA then.
  // `devices`: GPUs whose memory it may map.
  Session(Server& server, Connection& connection, bool redirect, bool rdma,
          storage::DeviceSet devices);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  uint64_t id() const { return info_->id; }
  bool redirect() const { return info_->redirect; }
  bool attached() const { return static_cast<bool>(attach_fd_); }
  bool rdma() const { return rdma_; }
  // The GPUs whose memory it can map now.
  storage::DeviceSet devices() const { return attached() ? devices_ : 0; }
  // Those of them where it may be given extents to write to: none when the end of its client's process
  // would not be seen.
  storage::DeviceSet devices_to_write() const { return peer_ ? devices() : 0; }
  // Its client's NICs read memory of GPUs that ours show.  Who is attached takes what it maps.
  bool reaches_by_nics() const {
    return rdma_ && !attached() && info_->queue_pairs.load(std::memory_order_relaxed) > 0;
  }
  // The one-time token for the attach socket.
  protocol::AttachToken NewAttachToken();

  // Grants a lease or a hold on `value` and replies with its descriptor.
  void Describe(Context& context, const storage::ValueRef& value,
                const LeaseRequest& request = {});
  // Milliseconds the lease now has; 0: there is no such lease (any more).
  int64_t Renew(uint64_t lease, const LeaseRequest& request, int64_t now_ms);
  bool Release(uint64_t lease);

  // --- writes ------------------------------------------------------------------------------
  struct Reservation {
    storage::WriteHandle handle;
    std::string key;
    bool if_absent = false;
    bool if_present = false;
    int64_t expiry_ms = 0;  // from the commit on; 0: none
    storage::DeviceSet wanted_on = 0;  // where the value is to move after the commit
    int64_t deadline_ms = 0;
    // Its time is over: it cannot be committed any more.  Its client lives, though, and may write there
    // yet, so nobody else gets the memory before the client says that it is done, or (in arenas) the
    // session ends.
    bool overdue = false;
  };
  // Its token; empty when the session has too many.
  std::optional<uint64_t> AddReservation(Reservation reservation);
  // Null when there is no such token, it is for another key, or overdue.
  const storage::Extent* Reserved(uint64_t token, std::string_view key) const;
  // Takes it out, overdue or not; empty when there is no such token or it is for another key.
  std::optional<Reservation> TakeReservation(uint64_t token, std::string_view key);

  // The attach socket, once its token was accepted: at most once, as that is the only one.
  void Attach(UniqueFd fd);
  // Asks the client to unmap a region.
  void RegionGone(uint32_t region);

  // Ends leases that have run out, in the order they were granted.  When the next one does; INT64_MAX:
  // there is none.
  int64_t ExpireLeases(int64_t now_ms);
  // Now and then: those out of order, and reservations nobody committed.
  void OnTick(int64_t now_ms);
  const std::shared_ptr<SessionInfo>& info() const { return info_; }

 private:
  struct Lease {
    storage::ValueRef value;
    int64_t deadline_ms;
  };
  // Lease numbers from here on are holds.
  static constexpr uint64_t kFirstHold = uint64_t{1} << 62;

  // Sets `lease` and `lease_ms` of the descriptor.
  void Grant(const storage::ValueRef& value, const LeaseRequest& request, int64_t now_ms,
             protocol::Descriptor* descriptor);
  int64_t Capped(const storage::BulkValue& value, const LeaseRequest& request) const;
  void Detach();
  static void OnAttachReadable(evutil_socket_t, short, void* session);
  // False when the peer must be dropped.
  bool HandleAttachMessage(const protocol::AttachMessage& message);
  bool SendDeviceRegion(const storage::Region& region);
  bool SendAttach(const protocol::AttachMessage& message, int fd = -1);

  Server& server_;
  Connection& connection_;
  storage::Tenant& tenant_;
  std::shared_ptr<SessionInfo> info_;
  const bool rdma_;
  const storage::DeviceSet devices_;

  // Leases by number, first_lease_ being the number of the front; released ones stay, empty,
  // until they reach the front.
  std::deque<Lease> leases_;
  uint64_t first_lease_ = 1;
  uint64_t live_leases_ = 0;
  int64_t next_sweep_ms_ = 0;
  std::unordered_map<uint64_t, storage::ValueRef> holds_;
  uint64_t next_hold_ = kFirstHold;

  std::unordered_map<uint64_t, Reservation> reservations_;
  uint64_t next_token_ = 1;

  std::optional<protocol::AttachToken> token_;
  UniqueFd attach_fd_;
  UniqueFd peer_;  // a pidfd of the process at its other end, if that may map memory of devices
  struct event attach_event_ = {};
};

}  // namespace moonpool::server
