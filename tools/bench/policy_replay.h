// Runs a trace through an eviction policy without any bytes, as the server would drive it, and
// through Belady's optimum.
//
// A request looks all its blocks up in order (a hit is an access), then inserts those that
// missed, in order.  Every block takes the same room.
#pragma once

#include <cstdint>
#include <vector>

#include "storage/eviction_policy.h"
#include "tools/bench/trace.h"

namespace moonpool::bench {

// A trace with its blocks numbered from 0 in the order in which they appear.
struct BlockTrace {
  explicit BlockTrace(const Trace& trace);

  std::vector<uint32_t> blocks;  // of all requests
  std::vector<size_t> ends;      // of each request in `blocks`
  std::vector<uint64_t> hashes;  // of each distinct block
  size_t distinct() const { return hashes.size(); }
};

struct HitFigures {
  uint64_t accesses = 0;
  uint64_t block_hits = 0;
  uint64_t prefix_hits = 0;  // blocks that were there with all earlier ones of their request
  uint64_t evictions = 0;
  double ns_per_access = 0;  // everything, evictions too
  double ns_per_eviction = 0;

  double block_hit() const { return Share(block_hits); }
  double prefix_hit() const { return Share(prefix_hits); }

 private:
  double Share(uint64_t hits) const {
    return accesses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(accesses);
  }
};

// `capacity`: blocks, at least one.
HitFigures RunPolicy(const BlockTrace& trace, storage::EvictionPolicy& policy, size_t capacity,
                     uint64_t block_bytes);
// Evicts what is used again last (L. Belady, "A study of replacement algorithms for a
// virtual-storage computer", 1966): no policy has more block hits.
HitFigures RunBelady(const BlockTrace& trace, size_t capacity);

}  // namespace moonpool::bench
