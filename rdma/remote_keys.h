// What one NIC of the other side lets us reach: regions of a server, or buffers of a client.
//
// A range may be known in part: each part has a key of its own.
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>

namespace moonpool::rdma {

struct RemotePart {
  uint64_t offset = 0;  // from the start of the region or buffer
  uint64_t length = 0;
  uint64_t address = 0;  // of its first byte
  uint32_t key = 0;
  uint32_t access = 0;  // Access
};

class RemoteKeys {
 public:
  // Null when that byte is in no known part.
  const RemotePart* Find(uint32_t id, uint64_t offset) const {
    const auto range = ranges_.find(id);
    if (range == ranges_.end()) return nullptr;
    auto part = range->second.upper_bound(offset);
    if (part == range->second.begin()) return nullptr;
    --part;
    return offset - part->first < part->second.length ? &part->second : nullptr;
  }
  void Add(uint32_t id, const RemotePart& part) { ranges_[id][part.offset] = part; }
  void Drop(uint32_t id) { ranges_.erase(id); }
  size_t size() const { return ranges_.size(); }

  // The generation table of a server's tenant; no length when there is none.
  RemotePart generations;

 private:
  std::unordered_map<uint32_t, std::map<uint64_t, RemotePart>> ranges_;
};

}  // namespace moonpool::rdma
