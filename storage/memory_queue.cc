#include "storage/memory_queue.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace moonpool::storage {

namespace {

// Who wants much looks again when so much came: it may be enough with what was free before.  Many
// small extents, though, are freed one by one, and each would be looked at in vain.
constexpr uint64_t kGoodPart = 256 << 10;

}  // namespace

void MemoryQueue::Wait(uint64_t bytes, int64_t until_ms, bool again, std::function<void()> call) {
  MutexLock lock(mu_);
  if (waiting_.empty()) came_ = 0;
  Waiting waiting{bytes, until_ms, std::move(call)};
  again ? waiting_.push_front(std::move(waiting)) : waiting_.push_back(std::move(waiting));
  size_.store(waiting_.size(), std::memory_order_relaxed);
}

void MemoryQueue::Freed(uint64_t bytes) {
  if (empty()) return;
  std::vector<std::function<void()>> calls;
  {
    MutexLock lock(mu_);
    came_ += bytes;
    while (!waiting_.empty() && came_ >= std::min(waiting_.front().bytes, kGoodPart)) {
      came_ -= std::min(waiting_.front().bytes, came_);
      calls.push_back(std::move(waiting_.front().call));
      waiting_.pop_front();
    }
    size_.store(waiting_.size(), std::memory_order_relaxed);
  }
  for (auto& call : calls) call();
}

void MemoryQueue::Tick(int64_t now_ms) {
  if (empty()) return;
  std::vector<std::function<void()>> calls;
  {
    MutexLock lock(mu_);
    bool first = true;
    std::erase_if(waiting_, [&](Waiting& waiting) {
      if (!std::exchange(first, false) && waiting.until_ms > now_ms) return false;
      calls.push_back(std::move(waiting.call));
      return true;
    });
    size_.store(waiting_.size(), std::memory_order_relaxed);
  }
  for (auto& call : calls) call();
}

}  // namespace moonpool::storage
