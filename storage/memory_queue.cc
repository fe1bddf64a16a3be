#include "storage/memory_queue.h"

#include <utility>
#include <vector>

namespace moonpool::storage {

void MemoryQueue::Wait(uint64_t bytes, int64_t until_ms, bool again, std::function<void()> call) {
  MutexLock lock(mu_);
  Waiting waiting{bytes, until_ms, std::move(call)};
  again ? waiting_.push_front(std::move(waiting)) : waiting_.push_back(std::move(waiting));
  size_.store(waiting_.size(), std::memory_order_relaxed);
}

void MemoryQueue::Freed(uint64_t bytes) {
  if (empty()) return;
  std::vector<std::function<void()>> calls;
  {
    MutexLock lock(mu_);
    // The first gets its turn even when it wants more: extents are freed one by one.
    for (uint64_t given = 0; !waiting_.empty() && (given == 0 || given < bytes);) {
      given += waiting_.front().bytes;
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
