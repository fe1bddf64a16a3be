// The server's RDMA, as the rest of the server sees it: nothing here needs the libraries.
//
// rdma_service.cc is what it is; rdma_absent.cc stands in its place in a build without RDMA, where
// Start() fails with that as the reason.  The only place that decides is server/CMakeLists.txt.
// Threads: Start, Stop and the destructor the main thread; the rest any.
// Lifetime: the tenants must outlive it; their upkeep must have ended before it goes,
// which waits for the threads of their devices to be out of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "protocol/status.h"
#include "server/config.h"
#include "storage/tenant.h"

namespace moonpool::server {

class Rdma {
 public:
  // A port of a device, as KV.HELLO and INFO tell about it.
  struct Nic {
    std::string name;
    std::string protocol;
    uint64_t speed_mbps = 0;
    std::vector<std::string> addresses;
    std::vector<std::string> gids;
    int numa_node = -1;
    bool up = false;
  };
  struct Counters {
    uint64_t queue_pairs = 0;  // now
    uint64_t accepted = 0;
    uint64_t rejected = 0;
    uint64_t failed = 0;
    uint64_t regions_told = 0;
    uint64_t bytes_read = 0;     // by the server, of clients' buffers
    uint64_t bytes_written = 0;  // by the server, to them
    uint64_t regions_refused = 0;
  };
  // One value between our memory and a client's buffer.
  struct Move {
    uint32_t buffer = 0;
    uint64_t offset = 0;  // in the buffer
    uint32_t region = 0;  // of the pool; 0: other memory
    char* data = nullptr;
    uint64_t length = 0;
    bool on_device = false;  // in a region of a GPU, which was exported
  };
  enum class Way : uint8_t { kFromClient, kToClient };
  // What became of it: moved, not moved, or that no queue pair of the session was open.
  enum class Moved : uint8_t { kDone, kFailed, kNoQueuePair };

  struct Options {
    const Config* config = nullptr;
    uint64_t epoch = 0;
    std::span<const std::unique_ptr<storage::Tenant>> tenants;  // whose memory is exported from now on
    std::function<void(uint64_t session, size_t queue_pairs)> on_queue_pairs;
  };
  // The error says why there is no RDMA here.
  static Result<std::unique_ptr<Rdma>> Start(const Options& options);
  virtual ~Rdma() = default;
  // Fences every queue pair and ends what is being moved.
  virtual void Stop() = 0;

  virtual uint16_t port() const = 0;
  virtual std::vector<Nic> nics() const = 0;
  // Devices that are there and not used, each with the reason.
  virtual std::vector<std::string> left_out() const = 0;
  virtual Counters counters() const = 0;
  virtual size_t queue_pairs_per_session() const = 0;

  // From now on the session may have queue pairs, in its tenant's protection domains.
  virtual void BeginSession(uint64_t session, storage::Tenant& tenant) = 0;
  // Fences them.  What is being moved for the session ends, and is told of, once they are fenced.
  virtual void EndSession(uint64_t session) = 0;
  // Opens one queue pair of the session, once.
  virtual std::string NewToken(uint64_t session) = 0;

  // `done` is called on another thread, or at once; what each became, and the reason when one failed.
  // Until then `data` must stay: the NIC may touch it.
  using Done = std::function<void(std::span<const Moved> moved, const std::string& why)>;
  virtual void StartMoves(uint64_t session, Way way, std::vector<Move> moves, Done done) = 0;
};

}  // namespace moonpool::server
