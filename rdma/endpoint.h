// The client's end of one session: its lanes to the server, one per pair of NICs.
//
// A lane that fails is paused, longer each time, and then connected again; a NIC that comes back is
// tried at once.  What one carries not, the others do; with none left, transfers end as
// kUnreachable. Threads: one at a time (the one that uses the session's RESP connection); no thread
// of its own. Owns its lanes; NicSet and Domains must outlive it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "rdma/backoff.h"
#include "rdma/lane.h"
#include "rdma/nic_set.h"
#include "rdma/topology.h"
#include "rdma/transfer_engine.h"

namespace moonpool::rdma {

struct EndpointOptions {
  LaneLimits limits;
  EngineOptions engine;
  int connect_timeout_ms = 2000;
  int64_t answer_ms = 2000;           // the server has so long for its answer to a message
  uint8_t retries = 6;                // of the NIC, see ConnectParameters
  uint8_t ack_timeout_exponent = 14;  // 67 ms; the engine's stall_ms is what usually ends a wait
  int64_t first_pause_ms = 50;
  int64_t most_pause_ms = 10000;
  // Looks for completions this often before it sleeps; less than 0: as fits the processors.
  int spins = -1;
};

// What the session's HELLO told.
struct EndpointTarget {
  uint64_t epoch = 0;
  uint64_t session = 0;
  uint16_t port = 0;
  std::vector<RemoteNic> nics;
};

struct LaneInfo {
  std::string pair;  // who talks to whom, and why
  bool open = false;
  uint64_t bytes = 0;  // delivered, by all queue pairs the pair ever had
  double rate = 0;     // bytes per tick; 0: unknown
  uint64_t failures = 0;
  std::string why;  // of the last failure
};

class Endpoint {
 public:
  // `tokens`: gets one from the server over the session's own connection.  Called by Repair()
  // alone.
  using Tokens = std::function<Result<Token>()>;
  Endpoint(NicSet& nics, const Domains& domains, EndpointTarget target, Tokens tokens,
           const EndpointOptions& options);
  ~Endpoint();

  // Waits until a lane is open, and a moment for the others.  kUnavailable, with what each pair
  // said, when none can be had.
  Status Open();
  // Begins to connect the lanes that may be tried again.  Between commands: it may ask for tokens.
  void Repair();
  bool has_lane() const;

  using Clock = std::chrono::steady_clock;
  // Moves all of it; every item has an outcome afterwards, and nothing touches its memory any more.
  void Run(Transfer* transfer, Clock::time_point deadline);

  // Makes a buffer known to the server, for its own READs and WRITEs; on lanes to come as well.
  // `access`: what it was registered with.  Waits until the server knows it on every open lane;
  // again, for lanes that came since.
  Status Announce(uint32_t buffer, const Registration& registration, uint32_t access);
  // When this returns nothing touches the buffer any more: the server said so, or lanes were
  // fenced.
  void Retract(uint32_t buffer);

  // Takes what came unasked (regions that go, lanes that close).  Does not block.
  void Pump();
  // Fences all lanes, so that nothing touches any buffer any more.
  void Close(const std::string& why);

  std::vector<LaneInfo> lanes() const;
  const EngineCounters& counters() const { return engine_.counters(); }

 private:
  struct Slot {
    explicit Slot(NicPair p, const EndpointOptions& options)
        : pair(std::move(p)), backoff(options.first_pause_ms, options.most_pause_ms) {}
    NicPair pair;
    Backoff backoff;
    std::unique_ptr<Connection> connecting;  // until its device is known
    std::unique_ptr<Lane> lane;              // from then on
    Token token{};
    int64_t deadline_ms = 0;  // of connecting
    bool in_engine = false;
    bool was_up = true;
    uint8_t remote_nic = 0;
    uint64_t past_bytes = 0;
    uint64_t failures = 0;
    std::string why;
  };
  struct Announced {
    const Registration* registration = nullptr;
    uint32_t access = 0;
    std::vector<const Lane*> unanswered;  // one for each message
    bool going = false;
  };

  // endpoint_connecting.cc
  void Begin(Slot* slot, int64_t now_ms);
  bool HandleConnectionEvents();
  void Handle(const ConnectionEvent& event);
  void RouteKnown(Slot* slot);
  void Established(Slot* slot, const ConnectionEvent& event);
  void Failed(Slot* slot, const std::string& why, bool at_once = false);
  Slot* SlotOf(const Connection* connection);
  bool connecting() const;
  void Look(int64_t now_ms);

  bool Step();
  bool Wait(int64_t most_ms);
  void SendMissing();
  void HandleMessage(Lane* lane, const Message& message);
  bool AnnounceOn(Lane* lane, uint32_t buffer, Announced* announced);
  bool AwaitAnswers(const Announced& announced);
  bool SendPatiently(Lane* lane, const Message& message);
  void DropLane(Slot* slot);
  static int64_t NowMs();

  NicSet& nics_;
  const Domains& domains_;
  const EndpointTarget target_;
  const Tokens tokens_;
  const EndpointOptions options_;
  const int spins_;

  std::unique_ptr<ConnectionEvents> events_;
  std::vector<std::unique_ptr<CompletionChannel>> channels_;         // by device
  std::unordered_map<uint8_t, std::unique_ptr<RemoteKeys>> remote_;  // by NIC of the server
  TransferEngine engine_;
  std::vector<Slot> slots_;
  std::unordered_map<uint32_t, Announced> announced_;
  TransferEngine::Messages messages_;
  std::vector<TransferEngine::Missing> unsent_;  // lanes had no room to ask
  uint32_t waits_ = 0;
};

}  // namespace moonpool::rdma
