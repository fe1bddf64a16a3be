// The part of libibverbs and librdmacm that Moonpool uses, as an interface: the real one is
// ibverbs.h, and a double that fails, delays and reorders is in the tests.
//
// Words are those of the InfiniBand specification (volume 1, chapters 10 and 11); what a call does
// is what the manual page of its namesake says (ibv_post_send, rdma_connect, ..).
// Nothing blocks, unless it says so: names are resolved and connections made by events.
// Threads: any thread may use different objects at once, and may Post() to a queue pair, Poll() a
// completion queue, and register memory at once; the rest of one object belongs to one thread.
// Ownership: a Device outlives what was made with it, a ProtectionDomain its registrations and
// queue pairs, completion queues their queue pairs, a CompletionChannel its queues, and
// ConnectionEvents its connections.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/status.h"

namespace moonpool::rdma {

// --- devices -------------------------------------------------------------------------------

enum class Protocol : uint8_t { kInfiniBand, kRoceV1, kRoceV2, kIwarp };
std::string_view ProtocolName(Protocol protocol);

using Gid = std::array<uint8_t, 16>;

struct GidEntry {
  uint32_t index = 0;
  Gid gid{};
  Protocol protocol = Protocol::kInfiniBand;
};

struct PortAttributes {
  uint8_t number = 1;
  bool active = false;
  bool ethernet = false;    // RoCE or iWARP; else InfiniBand
  uint32_t mtu_bytes = 0;   // active
  uint64_t speed_mbps = 0;  // width times lane speed, as the port reports it
  std::vector<GidEntry> gids;
};

struct DeviceAttributes {
  bool iwarp = false;
  uint32_t max_depth = 0;         // work requests of one queue
  uint32_t max_pieces = 0;        // scatter/gather elements of one READ
  uint32_t max_reads_served = 0;  // READs at once that one queue pair answers
  uint32_t max_reads_made = 0;    // and that one has in flight
  uint64_t max_registration_bytes = 0;
  std::vector<PortAttributes> ports;
};

// --- memory --------------------------------------------------------------------------------

enum Access : uint32_t {
  kLocalRead = 0,
  kLocalWrite = 1,
  kRemoteRead = 2,
  kRemoteWrite = 4,
  // READs of ours may land here.  The same as kLocalWrite, but for iWARP, where it takes remote
  // write access too: a server's pool never has it.
  kReadTarget = 8,
};

// Memory that a device may use; deregistered at the end.
class Registered {
 public:
  virtual ~Registered() = default;
  virtual uint32_t local_key() const = 0;
  virtual uint32_t remote_key() const = 0;
};

class ProtectionDomain {
 public:
  virtual ~ProtectionDomain() = default;
  // Pins the memory, faulting it in where that was not done.  Blocks: about 0.1 s per GiB.
  virtual Result<std::unique_ptr<Registered>> Register(void* data, size_t bytes,
                                                       uint32_t access) = 0;
  // The same for memory of another device, from `offset` of its dma-buf on, which keeps the pages
  // there while this is registered.  `address`: what requests call it; as far into a page as the
  // offset.  kUnavailable where the NIC, its driver or the kernel cannot.
  virtual Result<std::unique_ptr<Registered>> RegisterDmabuf(int fd, uint64_t offset, size_t bytes,
                                                             uint64_t address, uint32_t access) = 0;
};

// --- completions ---------------------------------------------------------------------------

struct Completion {
  enum class Status : uint8_t {
    kOk,
    kFlushed,        // the queue pair was in the error state
    kRemoteRefused,  // the other side has no such memory for us
    kUnreachable,    // no answer, after all retries
    kLocalError,     // our own request or memory was wrong
    kOther,
  };
  uint64_t id = 0;  // of the work request
  Status status = Status::kOk;
  uint32_t bytes = 0;     // of a receive
  const char* text = "";  // the library's name for the status; static
};

class CompletionQueue {
 public:
  virtual ~CompletionQueue() = default;
  // Takes what there is, at most as much as fits.
  virtual size_t Poll(std::span<Completion> completions) = 0;
  // Asks for one event on the channel with the next completion.  Poll again afterwards: what came
  // before makes no event.
  virtual Status Arm() = 0;
};

class CompletionChannel {
 public:
  virtual ~CompletionChannel() = default;
  // Readable when there are events.
  virtual int fd() const = 0;
  // Takes and acknowledges an event; the queue it is about, or null when there is none.
  virtual CompletionQueue* Next() = 0;
};

// --- queue pairs ---------------------------------------------------------------------------

struct Piece {
  uint64_t address = 0;
  uint32_t length = 0;
  uint32_t local_key = 0;
};

struct WorkRequest {
  enum class Kind : uint8_t { kRead, kWrite, kSend };
  uint64_t id = 0;
  Kind kind = Kind::kRead;
  bool signalled = false;  // makes a completion when it succeeds; it always does when it fails
  bool fenced = false;     // begins when all READs before it are complete
  bool inlined = false;    // kSend, kWrite: the bytes are taken at once
  std::span<const Piece> pieces;
  uint64_t remote_address = 0;
  uint32_t remote_key = 0;
};

// What one queue pair can do.  Of connection requests and answers: what that side can.
struct QueuePairLimits {
  uint32_t depth = 256;  // work requests posted and not completed
  uint32_t receives = 16;
  uint32_t max_pieces = 16;
  uint32_t inline_bytes = 0;
  // A READ cannot be fenced there, and a WRITE is complete when it is sent: it may still be refused.
  bool iwarp = false;
};

class QueuePair {
 public:
  virtual ~QueuePair() = default;
  virtual uint32_t number() const = 0;
  // As made: at least what was asked for, where the device has it.
  virtual const QueuePairLimits& limits() const = 0;
  // All with one doorbell, in order.  How many were taken: fewer when the queue pair is broken.
  virtual size_t Post(std::span<const WorkRequest> requests) = 0;
  virtual Status PostReceive(uint64_t id, const Piece& piece) = 0;
  // Into the error state: what is posted is flushed, and nothing more arrives from outside.
  virtual Status ToError() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const std::string& name() const = 0;
  virtual Result<DeviceAttributes> Query() = 0;
  virtual Result<std::unique_ptr<ProtectionDomain>> NewProtectionDomain() = 0;
  virtual Result<std::unique_ptr<CompletionChannel>> NewCompletionChannel() = 0;
  virtual Result<std::unique_ptr<CompletionQueue>> NewCompletionQueue(
      uint32_t entries, CompletionChannel* channel) = 0;
  // As long as it is open anywhere its queue pairs live: a forked child must close it.  -1: none.
  virtual int command_fd() const { return -1; }
  // Readable when something happened to the device by itself.
  virtual int event_fd() const = 0;
  // Takes note of that, on behalf of everybody who has the device; any thread.
  virtual void TakeEvents() = 0;
  // As of the last TakeEvents(); any thread.
  virtual bool port_up(uint8_t port) const = 0;
};

// --- connections ---------------------------------------------------------------------------

// Private data of a connection request, an acceptance and a refusal (rdma_connect(3), RDMA_PS_TCP:
// the rest of the fields is the connection manager's).
inline constexpr size_t kMaxRequestBytes = 56;
inline constexpr size_t kMaxAcceptBytes = 196;
inline constexpr size_t kMaxRejectBytes = 148;

struct ConnectParameters {
  uint8_t reads_served = 0;  // READs at once that this side answers
  uint8_t reads_made = 0;    // and that it makes
  // Until a request that nobody answers fails: this often, 4 us * 2^ack_timeout_exponent apart.
  // More than 6 means for ever on soft-RoCE.
  uint8_t retries = 6;
  uint8_t ack_timeout_exponent = 0;  // 0: as the connection manager has it
  std::string_view private_data;
};

class Connection {
 public:
  // Breaks it if it stands.  Destroys its queue pair: nothing touches memory through it any more.
  virtual ~Connection() = default;
  // --- of the side that connects, in this order
  // `source` and `destination`: numeric addresses.  -> kAddressResolved, and device() is known
  virtual Status ResolveAddress(const std::string& source, const std::string& destination,
                                uint16_t port, int timeout_ms) = 0;
  // -> kRouteResolved
  virtual Status ResolveRoute(int timeout_ms) = 0;
  // -> kEstablished or kRejected.  REQUIRES: a queue pair
  virtual Status Connect(const ConnectParameters& parameters) = 0;
  // --- of the side that listens
  // `address` empty: all.  `port` 0: any.  -> kRequest for each that comes
  virtual Status Listen(const std::string& address, uint16_t port, int backlog) = 0;
  virtual uint16_t port() const = 0;
  // -> kEstablished.  REQUIRES: a queue pair
  virtual Status Accept(const ConnectParameters& parameters) = 0;
  virtual Status Reject(std::string_view private_data) = 0;
  // --- of both
  // Null until it is known.
  virtual Device* device() const = 0;
  virtual Status CreateQueuePair(ProtectionDomain& domain, CompletionQueue& completions,
                                 const QueuePairLimits& limits) = 0;
  virtual QueuePair* queue_pair() const = 0;
  // -> kDisconnected on both sides; the queue pairs go into the error state.
  virtual void Disconnect() = 0;
  // "10.0.0.1:18515", for logs.
  virtual std::string peer() const = 0;
};

struct ConnectionEvent {
  enum class Kind : uint8_t {
    kAddressResolved,
    kRouteResolved,
    kRequest,
    kEstablished,
    kRejected,  // by the other side, with its private data
    kFailed,    // no such address, no route, nobody there, ..
    kDisconnected,
    kDeviceRemoved,
    kOther,
  };
  Kind kind = Kind::kOther;
  Connection* connection = nullptr;      // whose event; of a request, the listener's
  std::unique_ptr<Connection> incoming;  // of a request: Accept() or Reject() it
  // Of a request and of an establishment: what the other side said.
  uint8_t reads_served = 0;
  uint8_t reads_made = 0;
  std::string private_data;  // may have zeros behind what was sent
  std::string text;          // of a failure
};

class ConnectionEvents {
 public:
  virtual ~ConnectionEvents() = default;
  virtual int fd() const = 0;
  virtual std::optional<ConnectionEvent> Next() = 0;
  virtual Result<std::unique_ptr<Connection>> NewConnection() = 0;
};

// An address of this host, and where it leads.
struct LocalAddress {
  std::string address;  // numeric
  std::string device;
  uint8_t port = 0;
};

class Verbs {
 public:
  virtual ~Verbs() = default;
  // Those there are now.  A device stays usable for as long as somebody holds it.
  virtual Result<std::vector<std::shared_ptr<Device>>> Devices() = 0;
  // Those that connections can be made from, but for link-local ones.
  virtual std::vector<LocalAddress> Addresses() = 0;
  virtual Result<std::unique_ptr<ConnectionEvents>> NewConnectionEvents() = 0;
};

}  // namespace moonpool::rdma
