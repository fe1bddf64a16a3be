// Makes a pool's regions on devices, shows them to NICs, and lets go of them.  A driver takes
// milliseconds for that, or never answers: each device has a thread for it, and nobody else calls
// the driver.
//
//   Start()  a region is being made there, one at a time -> Wait(): who wants to have it
//   made, or refused -> those who wait are called, and look again
//
// A device that was waited for in vain is silent until it answers: nobody waits for it any more.
//
// Threads: any; mu_ is a leaf lock, and no hook or call runs under it.  Owns its threads.  What the
// hooks use must outlive it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "protocol/mutex.h"
#include "storage/device_memory.h"
#include "storage/region.h"

namespace moonpool::storage {

class DeviceGrowth {
 public:
  struct Hooks {
    // Both on the device's thread; they may block.
    std::function<void(size_t device, uint64_t bytes)> make;
    std::function<void(size_t device)> probe;
  };
  DeviceGrowth(size_t devices, Hooks hooks);
  // After what its threads are at: a call into a driver cannot be broken off.
  ~DeviceGrowth();
  // Nothing is begun any more.  Who waits is called; when it returns nobody is called any more.  A
  // second call does nothing.
  void Stop() EXCLUDES(mu_);

  enum class State {
    kIdle,
    kGrowing,
    kSilent,  // likewise, for longer than somebody waited
  };
  State state(size_t device) const EXCLUDES(mu_);
  // Begins to make a region of so many bytes.  False: one is being made, or all has stopped.
  bool Start(size_t device, uint64_t bytes) EXCLUDES(mu_);
  // The device's thread sees whether it answers, unless it is busy.
  void Probe(size_t device) EXCLUDES(mu_);
  // Calls on the device's thread, after the regions that are waited for; not at all once all has
  // stopped.
  void Do(size_t device, std::function<void()> task) EXCLUDES(mu_);
  // Lets go of a region of that device on the device's thread, which may be the last that has it.
  void Discard(size_t device, std::shared_ptr<const Region> region) EXCLUDES(mu_);

  // Calls, on another thread or at once, when one of `devices` is not growing any more, or
  // `until_ms` (Unix) has passed.  `since_ms`: when this began to be waited for, if with other
  // calls; who waits longest is called first.
  void Wait(DeviceSet devices, int64_t since_ms, int64_t until_ms, std::function<void()> call)
      EXCLUDES(mu_);
  // Now and then: calls those whose time is over.
  void Tick(int64_t now_ms) EXCLUDES(mu_);
  size_t waiting() const EXCLUDES(mu_);
  // Waits until no thread is within a driver; false when that takes longer.
  bool AwaitIdle(std::chrono::milliseconds at_most) EXCLUDES(mu_);

 private:
  struct Device {
    bool growing = false;
    bool silent = false;
    bool probe = false;
    bool busy = false;  // its thread is within a hook or a task, or lets go of regions
    std::deque<std::function<void()>> tasks;
    std::vector<std::shared_ptr<const Region>> discarded;
    uint64_t bytes = 0;
    int64_t started_ms = 0;
    std::thread thread;
  };
  struct Waiting {
    DeviceSet devices;
    int64_t since_ms;
    int64_t until_ms;
    std::function<void()> call;
  };
  using Calls = std::vector<std::function<void()>>;

  void Run(size_t device);
  // Those that `leaves` says.  Whoever gets some must Call() them.
  template <typename Leaves>
  Calls Take(const Leaves& leaves) REQUIRES(mu_);
  void Call(const Calls& calls) EXCLUDES(mu_);

  const Hooks hooks_;
  mutable Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::vector<Device> devices_ GUARDED_BY(mu_);   // their number does not change
  std::vector<Waiting> waiting_ GUARDED_BY(mu_);  // since longest first
  int calling_ GUARDED_BY(mu_) = 0;
};

}  // namespace moonpool::storage
