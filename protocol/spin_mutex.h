// A mutex of four bytes whose uncontended lock and unlock are one inline atomic instruction each;
// contended, it spins a little and then sleeps in the kernel.  For very short critical sections
// that are taken millions of times a second.
// Algorithm: U. Drepper, "Futexes Are Tricky" (2011), the second mutex.
#pragma once

#include <atomic>
#include <cstdint>

#include "protocol/mutex.h"

namespace moonpool {

class MOONPOOL_ANNOTATION(capability("mutex")) SpinMutex {
 public:
  void Lock() ACQUIRE() {
    uint32_t expected = kFree;
    if (!state_.compare_exchange_strong(expected, kLocked, std::memory_order_acquire)) {
      LockSlowly();
    }
  }
  void Unlock() RELEASE() {
    if (state_.exchange(kFree, std::memory_order_release) == kContended) state_.notify_one();
  }
  void AssertHeld() const ASSERT_HELD(this) {}

 private:
  static constexpr uint32_t kFree = 0;
  static constexpr uint32_t kLocked = 1;
  static constexpr uint32_t kContended = 2;  // somebody sleeps, or is about to
  static constexpr int kSpins = 100;

  void LockSlowly() {
    for (int i = 0; i < kSpins; ++i) {
      uint32_t expected = kFree;
      if (state_.load(std::memory_order_relaxed) == kFree &&
          state_.compare_exchange_weak(expected, kLocked, std::memory_order_acquire)) {
        return;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    while (state_.exchange(kContended, std::memory_order_acquire) != kFree) {
      state_.wait(kContended, std::memory_order_relaxed);
    }
  }

  std::atomic<uint32_t> state_{kFree};
};

class MOONPOOL_ANNOTATION(scoped_lockable) SpinLock {
 public:
  explicit SpinLock(SpinMutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~SpinLock() RELEASE() { mutex_.Unlock(); }
  SpinLock(const SpinLock&) = delete;
  SpinLock& operator=(const SpinLock&) = delete;

 private:
  SpinMutex& mutex_;
};

}  // namespace moonpool
