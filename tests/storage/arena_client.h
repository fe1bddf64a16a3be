// A session's client, in the process of the test.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "storage/tenant.h"

namespace moonpool::storage {

// Maps its arenas and writes there itself.
class ArenaClient {
 public:
  ArenaClient(Tenant& tenant, SessionId session) : tenant_(tenant), session_(session) {}
  ~ArenaClient() { Unmap(); }

  // KV.ALLOC, a write through the mapping, KV.COMMIT.  Returns the arena.
  uint32_t Put(const std::string& key, const std::string& bytes) {
    auto handle = tenant_.ReserveInArena(session_, bytes.size(), 1);
    MOONPOOL_CHECK(handle.has_value());
    return Commit(std::move(*handle), key, bytes);
  }
  // The same for what is reserved.
  uint32_t Commit(WriteHandle handle, const std::string& key, const std::string& bytes) {
    Region* region = handle.extent().region;
    auto [mapping, fresh] = mappings_.emplace(region->id(), nullptr);
    if (fresh) {
      MOONPOOL_CHECK(tenant_.pool().MayMapWritable(session_, region->id()));
      bytes_ = region->bytes();
      mapping->second = MapAligned(region->fd(), region->bytes(), PROT_READ | PROT_WRITE);
      MOONPOOL_CHECK(mapping->second != nullptr);
      MOONPOOL_CHECK(tenant_.pool().ArenaMapped(session_, region->id()).has_value());
    }
    std::memcpy(mapping->second + handle.extent().offset, bytes.data(), bytes.size());
    const uint32_t id = region->id();
    ValueRef value = std::move(handle).Publish(0xc0ffee);
    KeyLock lock(tenant_.keyspace(), key, 1);
    lock.key.SetBulk(std::move(value));
    return id;
  }
  void Unmap(uint32_t region) {
    const auto mapping = mappings_.find(region);
    if (mapping == mappings_.end()) return;
    munmap(mapping->second, bytes_);
    mappings_.erase(mapping);
  }
  void Unmap() {
    for (const auto& [id, data] : mappings_) munmap(data, bytes_);
    mappings_.clear();
  }
  const std::map<uint32_t, char*>& mappings() const { return mappings_; }

 private:
  Tenant& tenant_;
  const SessionId session_;
  std::map<uint32_t, char*> mappings_;
  size_t bytes_ = 0;
};

}  // namespace moonpool::storage
