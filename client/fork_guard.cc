#include "client/fork_guard.h"

#include <pthread.h>

#include <atomic>
#include <iterator>

namespace moonpool::client {

namespace {

constexpr int kEmpty = -1;
// Two per connection; connections beyond that many are simply not closed in children.
constexpr size_t kMostFds = 4096;

std::atomic<uint64_t> forks{0};
struct OpenFds {
  OpenFds() {
    for (auto& fd : fds) fd.store(kEmpty, std::memory_order_relaxed);
  }
  std::atomic<int> fds[kMostFds];
};
OpenFds open_fds;

// Only what a signal handler may do: no locks, no allocation.
void InChild() {
  forks.fetch_add(1, std::memory_order_relaxed);
  for (auto& slot : open_fds.fds) {
    const int fd = slot.exchange(kEmpty, std::memory_order_relaxed);
    if (fd != kEmpty) close(fd);
  }
}

}  // namespace

uint64_t ForkCount() {
  static const int registered = pthread_atfork(nullptr, nullptr, InChild);
  (void)registered;
  return forks.load(std::memory_order_relaxed);
}

void CloseInChildren(int fd) {
  ForkCount();  // sees to it that children are noticed
  for (auto& slot : open_fds.fds) {
    int empty = kEmpty;
    if (slot.load(std::memory_order_relaxed) == fd ||
        slot.compare_exchange_strong(empty, fd, std::memory_order_relaxed)) {
      return;
    }
  }
}

ForkSafeFd::ForkSafeFd(int fd) : fd_(fd), forks_(ForkCount()) {
  if (fd < 0) return;
  for (size_t i = 0; i < std::size(open_fds.fds); ++i) {
    int empty = kEmpty;
    if (open_fds.fds[i].compare_exchange_strong(empty, fd, std::memory_order_relaxed)) {
      slot_ = static_cast<int>(i);
      return;
    }
  }
}

void ForkSafeFd::Close() {
  if (fd_ < 0) return;
  const int fd = std::exchange(fd_, -1);
  if (ForkCount() != forks_) return;  // closed in the child already; the number may be another's
  if (slot_ >= 0) open_fds.fds[slot_].store(kEmpty, std::memory_order_relaxed);
  close(fd);
}

}  // namespace moonpool::client
