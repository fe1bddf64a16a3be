#include "rdma/token_book.h"

#include <sys/random.h>

#include <cerrno>
#include <iterator>

namespace moonpool::rdma {

namespace {

// Expired tokens are told from unknown ones for this long.
constexpr int64_t kRememberMs = 60000;
constexpr int64_t kForgetEveryMs = 1000;

Token RandomToken() {
  Token token{};
  size_t filled = 0;
  while (filled < token.size()) {
    const ssize_t got = getrandom(token.data() + filled, token.size() - filled, 0);
    MOONPOOL_CHECK(got > 0 || errno == EINTR);
    if (got > 0) filled += static_cast<size_t>(got);
  }
  return token;
}

}  // namespace

Token TokenBook::Issue(uint64_t session, int64_t now_ms, int64_t lifetime_ms) {
  const Token token = RandomToken();
  MutexLock lock(mu_);
  Forget(now_ms);
  entries_[token] = {session, now_ms + lifetime_ms, false};
  std::deque<Token>& issued = by_session_[session];
  issued.push_back(token);
  if (issued.size() > kMostPerSession) {
    entries_.erase(issued.front());
    issued.pop_front();
  }
  return token;
}

std::optional<RejectReason> TokenBook::Redeem(const Token& token, uint64_t session,
                                              int64_t now_ms) {
  MutexLock lock(mu_);
  Forget(now_ms);
  const auto found = entries_.find(token);
  if (found == entries_.end()) return RejectReason::kUnknownToken;
  Entry& entry = found->second;
  if (entry.used) return RejectReason::kUsedToken;
  entry.used = true;
  if (now_ms >= entry.expires_ms) return RejectReason::kExpiredToken;
  if (entry.session != session) return RejectReason::kWrongSession;
  return std::nullopt;
}

void TokenBook::Revoke(uint64_t session) {
  MutexLock lock(mu_);
  const auto issued = by_session_.find(session);
  if (issued == by_session_.end()) return;
  for (const Token& token : issued->second) entries_.erase(token);
  by_session_.erase(issued);
}

size_t TokenBook::size() const {
  MutexLock lock(mu_);
  return entries_.size();
}

void TokenBook::Forget(int64_t now_ms) {
  if (now_ms < next_forget_ms_) return;
  next_forget_ms_ = now_ms + kForgetEveryMs;
  for (auto at = entries_.begin(); at != entries_.end();) {
    at = now_ms >= at->second.expires_ms + kRememberMs ? entries_.erase(at) : std::next(at);
  }
}

}  // namespace moonpool::rdma
