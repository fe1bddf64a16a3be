#include "storage/device_growth.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "storage/clock.h"

namespace moonpool::storage {

DeviceGrowth::DeviceGrowth(size_t devices, Hooks hooks) : hooks_(std::move(hooks)) {
  MutexLock lock(mu_);
  devices_.resize(devices);
  for (size_t i = 0; i < devices; ++i) {
    devices_[i].thread = std::thread([this, i] { Run(i); });
    pthread_setname_np(devices_[i].thread.native_handle(), "gpu-regions");
  }
}

DeviceGrowth::~DeviceGrowth() {
  Stop();
  std::vector<std::thread> threads;
  {
    MutexLock lock(mu_);
    for (Device& device : devices_) threads.push_back(std::move(device.thread));
  }
  for (std::thread& thread : threads) thread.join();
}

void DeviceGrowth::Stop() {
  Calls calls;
  {
    MutexLock lock(mu_);
    stop_ = true;
    calls = Take([](const Waiting&) { return true; });
  }
  changed_.NotifyAll();
  Call(calls);
  MutexLock lock(mu_);
  while (calling_ > 0) changed_.Wait(mu_);
}

DeviceGrowth::State DeviceGrowth::state(size_t device) const {
  MutexLock lock(mu_);
  const Device& of = devices_[device];
  return !of.growing ? State::kIdle : of.silent ? State::kSilent : State::kGrowing;
}

bool DeviceGrowth::Start(size_t device, uint64_t bytes) {
  {
    MutexLock lock(mu_);
    Device& of = devices_[device];
    if (stop_ || of.growing) return false;
    of.growing = true;
    of.bytes = bytes;
    of.started_ms = UnixMs();
  }
  changed_.NotifyAll();
  return true;
}

void DeviceGrowth::Probe(size_t device) {
  {
    MutexLock lock(mu_);
    if (devices_[device].busy) return;
    devices_[device].probe = true;
  }
  changed_.NotifyAll();
}

void DeviceGrowth::Do(size_t device, std::function<void()> task) {
  {
    MutexLock lock(mu_);
    devices_[device].tasks.push_back(std::move(task));
  }
  changed_.NotifyAll();
}

void DeviceGrowth::Discard(size_t device, std::shared_ptr<const Region> region) {
  {
    MutexLock lock(mu_);
    devices_[device].discarded.push_back(std::move(region));
  }
  changed_.NotifyAll();
}

void DeviceGrowth::Run(size_t device) {
  for (;;) {
    bool grow = false, probe = false;
    uint64_t bytes = 0;
    std::vector<std::shared_ptr<const Region>> discarded;
    std::function<void()> task;
    {
      MutexLock lock(mu_);
      Device& of = devices_[device];
      while (!of.growing && !of.probe && of.discarded.empty() && of.tasks.empty() && !stop_) {
        changed_.Wait(mu_);
      }
      if (stop_) return;
      discarded.swap(of.discarded);
      grow = of.growing;
      // One at a time: who waits for a region does not wait for all of them.
      if (!grow && !of.tasks.empty()) {
        task = std::move(of.tasks.front());
        of.tasks.pop_front();
      }
      probe = std::exchange(of.probe, false);
      bytes = of.bytes;
      of.busy = true;
    }
    discarded.clear();
    if (probe) hooks_.probe(device);
    if (grow) hooks_.make(device, bytes);
    if (task) task();
    task = nullptr;  // with what it held, before the device counts as idle
    Calls calls;
    {
      MutexLock lock(mu_);
      Device& of = devices_[device];
      of.busy = false;
      if (grow) {
        of.growing = of.silent = false;
        calls = Take([device](const Waiting& waiting) { return waiting.devices >> device & 1; });
      }
    }
    changed_.NotifyAll();
    Call(calls);
  }
}

template <typename Leaves>
DeviceGrowth::Calls DeviceGrowth::Take(const Leaves& leaves) {
  Calls calls;
  std::erase_if(waiting_, [&](Waiting& waiting) {
    if (!leaves(waiting)) return false;
    calls.push_back(std::move(waiting.call));
    return true;
  });
  if (!calls.empty()) ++calling_;
  return calls;
}

void DeviceGrowth::Call(const Calls& calls) {
  if (calls.empty()) return;
  for (const auto& call : calls) call();
  {
    MutexLock lock(mu_);
    --calling_;
  }
  changed_.NotifyAll();
}

void DeviceGrowth::Wait(DeviceSet devices, int64_t since_ms, int64_t until_ms,
                        std::function<void()> call) {
  {
    MutexLock lock(mu_);
    bool growing = !stop_;
    for (size_t i = 0; i < devices_.size(); ++i) {
      if ((devices >> i & 1) != 0 && !devices_[i].growing) growing = false;
    }
    if (growing) {
      const auto behind =
          std::find_if(waiting_.begin(), waiting_.end(),
                       [&](const Waiting& waiting) { return waiting.since_ms > since_ms; });
      waiting_.insert(behind, {devices, since_ms, until_ms, std::move(call)});
      return;
    }
  }
  call();
}

void DeviceGrowth::Tick(int64_t now_ms) {
  Calls calls;
  {
    MutexLock lock(mu_);
    for (const Waiting& waiting : waiting_) {
      if (waiting.until_ms > now_ms) continue;
      // Unless others had their turn for most of that time.
      const int64_t half_ms = (waiting.until_ms - waiting.since_ms) / 2;
      for (size_t i = 0; i < devices_.size(); ++i) {
        Device& of = devices_[i];
        if ((waiting.devices >> i & 1) == 0 || !of.growing) continue;
        of.silent |= now_ms - of.started_ms >= half_ms;
      }
    }
    calls = Take([now_ms](const Waiting& waiting) { return waiting.until_ms <= now_ms; });
  }
  Call(calls);
}

size_t DeviceGrowth::waiting() const {
  MutexLock lock(mu_);
  return waiting_.size();
}

bool DeviceGrowth::AwaitIdle(std::chrono::milliseconds at_most) {
  const auto end = std::chrono::steady_clock::now() + at_most;
  MutexLock lock(mu_);
  for (;;) {
    const bool busy = std::any_of(devices_.begin(), devices_.end(),
                                  [](const Device& device) { return device.busy; });
    if (!busy) return true;
    const auto left = end - std::chrono::steady_clock::now();
    if (left <= std::chrono::steady_clock::duration::zero()) return false;
    changed_.WaitFor(mu_, left);
  }
}

}  // namespace moonpool::storage
