// The caller's buffers, registered when they are first used and for as long as there is room.
//
// Only memory that was declared is registered: the caller promises that it stays mapped until it is
// withdrawn.  (Memory that was unmapped and mapped again would have its old pages read into.)
// Within that, registrations are a cache: at most `max_bytes`, the least recently used go first.
// Threads: any; mu_ is a leaf lock, and registering (slow) is done without it.
// Owns its registrations; the Domains must outlive it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "protocol/mutex.h"
#include "rdma/registration.h"
#include "rdma/transfer.h"

namespace moonpool::rdma {

class BufferCache {
 public:
  // `chunk_bytes`: what is registered, and dropped, at a time.
  BufferCache(const Domains& domains, uint64_t max_bytes, uint64_t chunk_bytes = 1ull << 30);
  ~BufferCache();

  // kInvalidArgument when it overlaps another one.  `peer`: whose memory it is, if a device's. What
  // of that cannot be registered is not tried again.
  Status Declare(char* data, uint64_t bytes, std::shared_ptr<PeerMemory> peer = nullptr)
      EXCLUDES(mu_);
  // False when no declared buffer begins there.  REQUIRES: no transfer uses it.
  bool Withdraw(char* data) EXCLUDES(mu_);

  // What keeps registrations while a transfer uses them.
  using Pins = std::vector<std::shared_ptr<const Registration>>;
  // Appends the range to `pieces`: with keys where it is registered, now or by this call; without
  // where it was not declared, or there is no room for it.
  void Describe(char* data, uint64_t bytes, std::vector<LocalPiece>* pieces, Pins* pins)
      EXCLUDES(mu_);
  // The registration the whole range is in, made when there is none; null when it is in none or in
  // several.  The other side may read what it pins, if it is told the key.
  std::shared_ptr<const Registration> Pin(char* data, uint64_t bytes) EXCLUDES(mu_);

  struct Counters {
    uint64_t bytes = 0;    // registered now
    uint64_t hits = 0;     // of Describe()'s chunks
    uint64_t misses = 0;   // registered by it
    uint64_t dropped = 0;  // to make room
    uint64_t refused = 0;  // no room, or the devices refused
    uint64_t peer_refused = 0;  // chunks of devices' memory that cannot be registered
  };
  Counters counters() const EXCLUDES(mu_);
  // Why a device's memory was refused, last; by all NICs or by one.
  std::string peer_error() const EXCLUDES(mu_);

 private:
  struct Chunk {
    char* data = nullptr;
    uint64_t bytes = 0;
    bool registering = false;
    bool refused = false;  // of a peer's
    std::shared_ptr<PeerMemory> peer;
    std::shared_ptr<Registration> registration;  // null: not registered
    std::list<Chunk*>::iterator place;           // in recent_, while it is
  };
  struct Buffer {
    uint64_t bytes = 0;
    std::vector<std::unique_ptr<Chunk>> chunks;
  };

  Buffer* Containing(char* data, uint64_t* until) REQUIRES(mu_);
  std::shared_ptr<const Registration> Use(Chunk* chunk) REQUIRES(mu_);
  bool MakeRoom(uint64_t bytes) REQUIRES(mu_);
  void Drop(Chunk* chunk) REQUIRES(mu_);

  const Domains& domains_;
  const uint64_t max_bytes_;
  const uint64_t chunk_bytes_;

  mutable Mutex mu_;
  std::map<char*, Buffer> buffers_ GUARDED_BY(mu_);
  std::list<Chunk*> recent_ GUARDED_BY(mu_);  // least recently used first
  Counters counters_ GUARDED_BY(mu_);
  std::string peer_error_ GUARDED_BY(mu_);
};

}  // namespace moonpool::rdma
