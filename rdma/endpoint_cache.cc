#include "rdma/endpoint_cache.h"

#include <utility>

namespace moonpool::rdma {

EndpointCache::Use::Use(Use&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)),
      session_(other.session_),
      endpoint_(std::exchange(other.endpoint_, nullptr)) {}

EndpointCache::Use& EndpointCache::Use::operator=(Use&& other) noexcept {
  if (this != &other) {
    Release();
    cache_ = std::exchange(other.cache_, nullptr);
    session_ = other.session_;
    endpoint_ = std::exchange(other.endpoint_, nullptr);
  }
  return *this;
}

void EndpointCache::Use::Release() {
  endpoint_ = nullptr;
  if (cache_ != nullptr) std::exchange(cache_, nullptr)->LetGo(session_);
}

EndpointCache::~EndpointCache() {
  MutexLock lock(mu_);
  for (const auto& [session, entry] : entries_) MOONPOOL_CHECK(entry.users == 0);
}

EndpointCache::Use EndpointCache::UseLocked(uint64_t session, Entry* entry) {
  if (entry->users++ == 0) idle_.erase(entry->idle_place);
  return Use(this, session, entry->endpoint.get());
}

Result<EndpointCache::Use> EndpointCache::Get(uint64_t session, const Make& make) {
  std::unique_ptr<Endpoint> closed;  // fenced without the lock
  {
    MutexLock lock(mu_);
    const auto found = entries_.find(session);
    if (found != entries_.end() && !found->second.going) return UseLocked(session, &found->second);
    if (found != entries_.end()) return Fail(ErrorCode::kBusy, "the endpoint is being closed");
    if (entries_.size() + making_ >= most_) {
      if (idle_.empty()) {
        return Fail(ErrorCode::kBusy, "all " + std::to_string(most_) + " endpoints are in use");
      }
      const auto oldest = entries_.find(idle_.front());
      closed = std::move(oldest->second.endpoint);
      idle_.pop_front();
      entries_.erase(oldest);
      ++closed_for_room_;
    }
    ++making_;
  }
  closed = nullptr;
  auto made = make();
  MutexLock lock(mu_);
  --making_;
  if (!made) return tl::unexpected<Error>(std::move(made.error()));
  const auto [at, is_new] = entries_.try_emplace(session);
  if (is_new) {
    at->second.endpoint = std::move(*made);
    at->second.idle_place = idle_.insert(idle_.end(), session);
  }
  return UseLocked(session, &at->second);
}

EndpointCache::Use EndpointCache::Find(uint64_t session) {
  MutexLock lock(mu_);
  const auto found = entries_.find(session);
  if (found == entries_.end() || found->second.going) return {};
  return UseLocked(session, &found->second);
}

void EndpointCache::Drop(uint64_t session) {
  std::unique_ptr<Endpoint> closed;
  MutexLock lock(mu_);
  const auto found = entries_.find(session);
  if (found == entries_.end()) return;
  if (found->second.users > 0) {
    found->second.going = true;
    return;
  }
  closed = std::move(found->second.endpoint);
  idle_.erase(found->second.idle_place);
  entries_.erase(found);
}

void EndpointCache::LetGo(uint64_t session) {
  std::unique_ptr<Endpoint> closed;
  MutexLock lock(mu_);
  const auto found = entries_.find(session);
  MOONPOOL_CHECK(found != entries_.end() && found->second.users > 0);
  Entry& entry = found->second;
  if (--entry.users > 0) return;
  if (entry.going) {
    closed = std::move(entry.endpoint);
    entries_.erase(found);
  } else {
    entry.idle_place = idle_.insert(idle_.end(), session);
  }
}

size_t EndpointCache::size() const {
  MutexLock lock(mu_);
  return entries_.size();
}

uint64_t EndpointCache::closed_for_room() const {
  MutexLock lock(mu_);
  return closed_for_room_;
}

}  // namespace moonpool::rdma
