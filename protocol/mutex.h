// std::mutex and std::condition_variable with Clang's thread-safety annotations
// (https://clang.llvm.org/docs/ThreadSafetyAnalysis.html), so that a clang build proves which
// lock guards what.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define MOONPOOL_ANNOTATION(x) __attribute__((x))
#else
#define MOONPOOL_ANNOTATION(x)
#endif

#define GUARDED_BY(x) MOONPOOL_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY(x) MOONPOOL_ANNOTATION(pt_guarded_by(x))
#define REQUIRES(...) MOONPOOL_ANNOTATION(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) MOONPOOL_ANNOTATION(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) MOONPOOL_ANNOTATION(acquire_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) MOONPOOL_ANNOTATION(try_acquire_capability(__VA_ARGS__))
#define RELEASE(...) MOONPOOL_ANNOTATION(release_capability(__VA_ARGS__))
#define ASSERT_HELD(x) MOONPOOL_ANNOTATION(assert_capability(x))
#define NO_THREAD_SAFETY_ANALYSIS MOONPOOL_ANNOTATION(no_thread_safety_analysis)

namespace moonpool {

class MOONPOOL_ANNOTATION(capability("mutex")) Mutex {
 public:
  void Lock() ACQUIRE() { mutex_.lock(); }
  void Unlock() RELEASE() { mutex_.unlock(); }
  bool TryLock() TRY_ACQUIRE(true) { return mutex_.try_lock(); }
  // Tells the analysis what it cannot see: the caller holds it.
  void AssertHeld() const ASSERT_HELD(this) {}

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class MOONPOOL_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.Lock(); }
  ~MutexLock() RELEASE() { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class CondVar {
 public:
  void Wait(Mutex& mutex) REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False when the time passed first.
  bool WaitFor(Mutex& mutex, std::chrono::nanoseconds time)
      REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool notified = condition_.wait_for(lock, time) == std::cv_status::no_timeout;
    lock.release();
    return notified;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace moonpool
