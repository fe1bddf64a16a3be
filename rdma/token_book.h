// The one-time tokens that open queue pairs: each is good once, for its session, for a while.
//
// A token is 128 random bits that came to the client over its own authenticated connection.  It is
// used up by the first request that presents it, whatever else is wrong with that.
// Threads: any; mu_ is a leaf lock.  Times: any clock that does not jump, in ms.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>

#include "protocol/mutex.h"
#include "rdma/wire.h"

namespace moonpool::rdma {

class TokenBook {
 public:
  // Of one session; with one more its oldest is void.
  static constexpr size_t kMostPerSession = 1024;

  Token Issue(uint64_t session, int64_t now_ms, int64_t lifetime_ms) EXCLUDES(mu_);
  // Empty: the token is good, and from now on used.
  std::optional<RejectReason> Redeem(const Token& token, uint64_t session, int64_t now_ms)
      EXCLUDES(mu_);
  // The session is over: none of its tokens is good any more.
  void Revoke(uint64_t session) EXCLUDES(mu_);
  size_t size() const EXCLUDES(mu_);

 private:
  struct Entry {
    uint64_t session = 0;
    int64_t expires_ms = 0;
    bool used = false;  // remembered until it would have expired, to tell what was wrong
  };
  void Forget(int64_t now_ms) REQUIRES(mu_);

  mutable Mutex mu_;
  std::map<Token, Entry> entries_ GUARDED_BY(mu_);
  std::unordered_map<uint64_t, std::deque<Token>> by_session_ GUARDED_BY(mu_);
  int64_t next_forget_ms_ GUARDED_BY(mu_) = 0;
};

}  // namespace moonpool::rdma
