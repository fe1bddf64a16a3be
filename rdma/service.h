// The server's end: accepts queue pairs, answers what clients ask over them, moves bytes for them,
// and fences them.
//
// A session of the RESP side is begun here, gets one-time tokens, and may then have queue pairs, in
// the protection domains of its tenant.  EndSession() fences them.  That a client closes its last one
// (`on_lanes` says so) ends no session: it may have closed it for room, or be about to repair a lane,
// and comes back with another token of the same session.
// Threads: any may call; one thread of its own does everything that touches queue pairs, and calls the
// callbacks.  mu_ is a leaf lock.
// Ownership: NicSet must outlive it.  Stop() fences all and ends what is under way with an error.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/unique_fd.h"
#include "rdma/lane.h"
#include "rdma/nic_set.h"
#include "rdma/tenant_memory.h"
#include "rdma/token_book.h"
#include "rdma/transfer_engine.h"

namespace moonpool::rdma {

struct ServiceOptions {
  std::string address;  // empty: all, or with iWARP those of the NICs
  uint16_t port = 0;    // 0: any
  int backlog = 128;
  uint64_t epoch = 0;
  LaneLimits limits;
  EngineOptions engine;
  size_t lanes_per_session = 32;
  size_t lanes = 8192;
  int64_t token_lifetime_ms = 30000;
  int64_t withdraw_ms = 1000;  // for clients to say that they use a region no more
  uint8_t ack_timeout_exponent = 14;
  std::function<void(const std::string&)> log;  // about the unusual; on any thread
  // How many queue pairs a session has now; on the service's thread.  Not told when a session ends.
  std::function<void(uint64_t session, size_t lanes)> on_lanes;
};

struct ServiceCounters {
  std::atomic<uint64_t> accepted{0};
  std::atomic<uint64_t> rejected{0};
  std::atomic<uint64_t> lanes{0};  // now
  std::atomic<uint64_t> lanes_failed{0};
  std::atomic<uint64_t> regions_told{0};
  std::atomic<uint64_t> bytes_read{0};     // by the server, of clients' memory
  std::atomic<uint64_t> bytes_written{0};  // by the server, to it
};

// One value between memory of ours and a client's buffer.
struct BufferTransfer {
  uint64_t session = 0;
  uint32_t buffer = 0;
  uint64_t offset = 0;   // in the buffer
  uint32_t region = 0;   // of the pool; one that is not registered (0 is none) takes a copy more,
                        // and one of a device is not moved
  char* data = nullptr;  // in that region, if there is one
  uint64_t length = 0;
  Transfer::Direction direction = Transfer::Direction::kRead;  // kRead: into the pool
  bool on_device = false;  // PeerMemory: `data` is not for the processor
};

class Service {
 public:
  static Result<std::unique_ptr<Service>> Start(NicSet& nics, ServiceOptions options);
  ~Service();
  void Stop();

  uint16_t port() const { return port_; }
  const NicSet& nics() const { return nics_; }
  const ServiceCounters& counters() const { return counters_; }

  void BeginSession(uint64_t session, std::shared_ptr<TenantMemory> memory) EXCLUDES(mu_);
  Token IssueToken(uint64_t session);
  // Fences its queue pairs; nothing is touched through them when `done` is called, on the service's
  // thread (or at once, when the service has stopped).
  void EndSession(uint64_t session, std::function<void()> done = {}) EXCLUDES(mu_);
  // Takes a region back: clients are asked to use it no more, it is deregistered, and whoever still
  // reads it gets an error.  Blocks, withdraw_ms at most.  Not on the service's thread.
  void Withdraw(const std::shared_ptr<TenantMemory>& memory, uint32_t region) EXCLUDES(mu_);

  // Moves bytes, of one session and all one way; `done` is called on the service's thread (or at once,
  // when that has stopped), with an outcome for each and what the first that failed failed for.  Our
  // side's memory must stay until then; nothing touches it, or the buffers, any more afterwards.
  using Done = std::function<void(std::span<const Outcome> outcomes, const std::string& error)>;
  void Move(std::vector<BufferTransfer> batch, Done done) EXCLUDES(mu_);

 private:
  struct ServerLane {
    std::unique_ptr<RemoteKeys> remote;  // buffers of the client
    std::unique_ptr<Lane> lane;
    const Connection* connection = nullptr;  // the lane's, also when that is gone
    bool closed_by_client = false;
  };
  struct Moving {
    std::unique_ptr<Transfer> transfer;
    std::vector<std::vector<LocalPiece>> pieces;
    std::unordered_map<uint32_t, std::shared_ptr<const Registration>> keys;  // by region
    Done done;
  };
  struct Session {
    Session(uint64_t number, std::shared_ptr<TenantMemory> m, const EngineOptions& options)
        : id(number), memory(std::move(m)), engine(memory->domains(), options) {}
    const uint64_t id;
    const std::shared_ptr<TenantMemory> memory;
    std::vector<ServerLane> lanes;
    TransferEngine engine;
    std::vector<Moving> moving;
    std::vector<uint32_t> known;  // regions that clients were told of
  };
  struct Withdrawal {
    std::shared_ptr<TenantMemory> memory;
    uint32_t region = 0;
    std::vector<const Lane*> unanswered;
    int64_t deadline_ms = 0;
    std::function<void()> done;
  };

  Service(NicSet& nics, ServiceOptions options) : nics_(nics), options_(std::move(options)) {}
  Status Listen();
  std::vector<std::string> ListenAddresses() const;
  Status ListenOn(std::span<const std::string> addresses);
  void Run();
  // False when the service has stopped: nothing of it is left that the task could be about.
  bool Post(std::function<void()> task) EXCLUDES(mu_);
  void RunTasks() EXCLUDES(mu_);
  void Drain(uint64_t session, int64_t now_ms);
  void Log(const std::string& text) const {
    if (options_.log) options_.log(text);
  }

  // service_connections.cc
  void HandleConnectionEvents();
  void Request(ConnectionEvent event);
  Result<std::unique_ptr<Lane>> Admit(ConnectionEvent* event, Session** session,
                                      RejectReason* reason);
  void LaneEnded(Session* session, size_t index);
  void Fence(Session* session);
  Session* Find(uint64_t session);

  // service.cc
  bool Serve(Session* session);
  void Handle(Session* session, Lane* lane, const Message& message);
  void AnswerWant(Session* session, Lane* lane, const Message& message);
  void Reply(Lane* lane, uint32_t type, const Message& to);
  void AskToDrop(Withdrawal* withdrawal);
  void Dropped(const Lane* lane, uint32_t region);
  void FinishWithdrawals(int64_t now_ms);
  bool busy() const;
  static int64_t NowMs();

  // service_moves.cc
  void StartMove(const std::vector<BufferTransfer>& batch, Done done);
  static void AddPieces(const BufferTransfer& what, const Registration* keys,
                        std::vector<LocalPiece>* pieces);
  void FinishMoves(Session* session);

  NicSet& nics_;
  const ServiceOptions options_;
  uint16_t port_ = 0;
  TokenBook tokens_;
  ServiceCounters counters_;

  Mutex mu_;
  std::vector<std::function<void()>> tasks_ GUARDED_BY(mu_);
  bool stop_ GUARDED_BY(mu_) = false;
  bool stopped_ GUARDED_BY(mu_) = false;

  // The service's thread alone, from here on.
  UniqueFd wake_fd_;
  std::unique_ptr<ConnectionEvents> events_;
  std::vector<std::unique_ptr<Connection>> listeners_;
  std::vector<std::unique_ptr<CompletionChannel>> channels_;  // by device
  std::unordered_map<uint64_t, std::unique_ptr<Session>> sessions_;
  std::unordered_map<const CompletionQueue*, Session*> by_queue_;
  std::unordered_map<const Connection*, Session*> by_connection_;
  std::vector<Withdrawal> withdrawals_;
  std::unordered_set<uint64_t> awake_;  // sessions something happened to
  std::thread thread_;
};

}  // namespace moonpool::rdma
