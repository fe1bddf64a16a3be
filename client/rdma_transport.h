// Large values over RDMA, as the rest of the library sees it.
//
// Nothing of verbs shows here: a library that was built without them (rdma_missing.cc) has the same
// interface, and says so.
// RdmaTransport: of one Client: its NICs, its registered memory, the bound on its queue pairs.
// Threads: any.
// RdmaSession: the queue pairs of one Channel.  Threads: whoever has the channel.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/moonpool/client.h"
#include "gpu/device.h"

namespace moonpool::client {

// What a server's KV.HELLO tells about it.
struct RdmaOffer {
  struct Nic {
    std::string name;
    std::string protocol;  // "RoCE v2"
    uint64_t speed_mbps = 0;
    std::vector<std::string> addresses;
  };
  uint64_t epoch = 0;
  uint64_t session = 0;
  uint16_t port = 0;
  std::string token;
  std::vector<Nic> nics;
};

class RdmaSession {
 public:
  virtual ~RdmaSession() = default;

  // Between commands: connects what may be connected again, for which it may ask for tokens. False:
  // there is no queue pair now.
  virtual bool Ready() = 0;
  // The channel is not used for a while: another session may have the queue pairs.
  virtual void Rest() = 0;
  // Now and then while it rests, by whoever has the channel: what the server sent is answered.
  virtual void Tend() = 0;

  struct Value {
    uint32_t region = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t slot = 0;
    uint64_t generation = 0;
    std::span<const Buffer> into;  // exactly `length` bytes
    // Device memory is among them: the bytes land there or are not read at all.
    bool on_device = false;
  };
  enum class Outcome : uint8_t {
    kDone,
    kChanged,        // the bytes are nobody's; a fresh descriptor will tell
    kNotThere,       // the server does not show that region (any more); likewise
    kUnreachable,    // no queue pair is left, or the deadline passed
    kNotRegistered,  // of those on_device: NICs do not reach all of it, nothing was read
    kDeviceFailed,   // of those on_device: it cannot be told when the bytes are there
  };
  // Nothing touches the buffers any more when it returns: what had arrived in device memory, of
  // whatever outcome, has been flushed, and work of the device finds it.  An error is that of
  // kDeviceFailed.  REQUIRES: Ready() was true.
  virtual Status Read(std::span<const Value> values, std::chrono::steady_clock::time_point deadline,
                      std::vector<Outcome>* outcomes) = 0;

  // --- values that the server reads (KV.WRITE).  REQUIRES: Ready() was true
  // Where one is, in the server's words.
  struct Place {
    uint32_t buffer = 0;
    uint64_t offset = 0;
  };
  // Nothing of what was placed before is needed any more.
  virtual void BeginRound() = 0;
  // In a registered buffer, until the next round; empty when it is in none.
  virtual std::optional<Place> PlaceOf(const void* data, uint64_t bytes) = 0;
  // Copied into memory of the session; empty when there is no room left in this round.
  virtual std::optional<Place> Stage(std::span<const ConstBuffer> pieces, uint64_t bytes) = 0;
  virtual uint64_t staging_bytes() const = 0;
  // The server may be reading still: when this returns it is not.
  virtual void Fence() = 0;
  // The buffer that begins there is no more placed in.
  virtual void Forget(const void* data, uint64_t bytes) = 0;
};

class RdmaTransport {
 public:
  virtual ~RdmaTransport() = default;

  // False for a while after a failure, longer each time.
  virtual bool MayTry() = 0;
  // Opens the NICs, if that was not done.  The message of an error has its cure; while MayTry() is
  // false it is the last one's.
  virtual Status OpenDevices() = 0;
  // The queue pairs of a channel, at least one of them connected, unless other channels use all
  // that may be had at a time (Options::rdma_sessions).  `more`: gets another token over the
  // channel; it is called within Open() and RdmaSession::Ready().
  using MoreTokens = std::function<Status(std::string* token)>;
  virtual Status Open(const RdmaOffer& offer, MoreTokens more,
                      std::unique_ptr<RdmaSession>* session) = 0;

  // Memory that may be registered while it is declared.  REQUIRES: it overlaps none that is.
  // `device`: whose memory it is, if one's.
  virtual void Declare(void* data, size_t bytes, gpu::Device* device) = 0;
  // REQUIRES: every session has forgotten it.
  virtual void Withdraw(void* data) = 0;

  virtual uint64_t registered_bytes() const = 0;
  // Why the last try failed; empty when it did not.
  virtual std::string error() const = 0;
  // Why NICs do not reach device memory that was declared, last; empty when they do.
  virtual std::string device_memory_error() const = 0;
};

std::shared_ptr<RdmaTransport> NewRdmaTransport(const Options& options);

}  // namespace moonpool::client
