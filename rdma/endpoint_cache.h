// A bounded number of endpoints: the one that has been idle longest makes room for a new one.
//
// Threads: any; mu_ is a leaf lock: endpoints are made and closed without it.
// Lifetime: must outlive every Use.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <unordered_map>

#include "protocol/mutex.h"
#include "rdma/endpoint.h"

namespace moonpool::rdma {

class EndpointCache {
 public:
  explicit EndpointCache(size_t most) : most_(most) {}
  ~EndpointCache();

 private:
  struct Entry {
    std::unique_ptr<Endpoint> endpoint;
    uint32_t users = 0;
    bool going = false;                          // closed when the last user lets go
    std::list<uint64_t>::iterator idle_place{};  // in idle_, while there is no user
  };

 public:
  // Keeps an endpoint from being closed for room.  Its users take turns by themselves.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept;
    Use& operator=(Use&& other) noexcept;
    ~Use() { Release(); }
    void Release();
    Endpoint* operator->() const { return endpoint_; }
    Endpoint* get() const { return endpoint_; }
    explicit operator bool() const { return endpoint_ != nullptr; }

   private:
    friend class EndpointCache;
    Use(EndpointCache* cache, uint64_t session, Endpoint* endpoint)
        : cache_(cache), session_(session), endpoint_(endpoint) {}
    EndpointCache* cache_ = nullptr;
    uint64_t session_ = 0;
    Endpoint* endpoint_ = nullptr;
  };

  using Make = std::function<Result<std::unique_ptr<Endpoint>>()>;
  // The session's endpoint, made when there is none.  kBusy when all are in use.
  Result<Use> Get(uint64_t session, const Make& make) EXCLUDES(mu_);
  // The session's endpoint; empty when there is none (any more).
  Use Find(uint64_t session) EXCLUDES(mu_);
  // The session is over: its endpoint is closed, at once or when its last user lets go.
  void Drop(uint64_t session) EXCLUDES(mu_);

  size_t size() const EXCLUDES(mu_);
  uint64_t closed_for_room() const EXCLUDES(mu_);

 private:
  void LetGo(uint64_t session) EXCLUDES(mu_);
  Use UseLocked(uint64_t session, Entry* entry) REQUIRES(mu_);

  const size_t most_;
  mutable Mutex mu_;
  std::unordered_map<uint64_t, Entry> entries_ GUARDED_BY(mu_);
  std::list<uint64_t> idle_ GUARDED_BY(mu_);  // longest first
  size_t making_ GUARDED_BY(mu_) = 0;
  uint64_t closed_for_room_ GUARDED_BY(mu_) = 0;
};

}  // namespace moonpool::rdma
