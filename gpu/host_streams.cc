#include "gpu/host_streams.h"

#include <utility>

namespace moonpool::gpu {

HostStreams::HostStreams(uint64_t seed) : random_(seed), thread_([this] { Run(); }) {}

HostStreams::~HostStreams() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void* HostStreams::NewStream(int device) {
  MutexLock lock(mu_);
  auto queue = std::make_unique<Queue>();
  queue->device = device;
  Queue* const stream = queue.get();
  queues_[stream] = std::move(queue);
  return stream;
}

void HostStreams::EndStream(void* stream) {
  MutexLock lock(mu_);
  auto* const queue = static_cast<Queue*>(stream);
  queue->ending = true;
  if (queue->items.empty() && !queue->busy) queues_.erase(queue);
}

void HostStreams::Add(void* stream, Item item) {
  MutexLock lock(mu_);
  static_cast<Queue*>(stream)->items.push_back(std::move(item));
  changed_.NotifyAll();
}

void HostStreams::Put(void* stream, Step step) {
  Add(stream, {std::move(step), nullptr, nullptr});
}

void HostStreams::PutMark(void* stream, std::shared_ptr<Point> point) {
  Add(stream, {nullptr, std::move(point), nullptr});
}

void HostStreams::PutWait(void* stream, std::shared_ptr<Point> point) {
  Add(stream, {nullptr, nullptr, std::move(point)});
}

bool HostStreams::Reached(const Point& point, bool* lost) const {
  MutexLock lock(mu_);
  *lost = point.lost;
  return point.reached;
}

bool HostStreams::WaitUntilReached(const Point& point) const {
  MutexLock lock(mu_);
  while (!point.reached) changed_.Wait(mu_);
  return !point.lost;
}

bool HostStreams::WaitUntil(const Point& point, std::chrono::steady_clock::time_point deadline,
                            bool* lost) const {
  MutexLock lock(mu_);
  while (!point.reached) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::steady_clock::duration::zero()) break;
    changed_.WaitFor(mu_, left);
  }
  *lost = point.lost;
  return point.reached;
}

void HostStreams::Pause(int device, uint64_t after) {
  MutexLock lock(mu_);
  devices_[device].steps_until_pause = after;
  changed_.NotifyAll();
}

void HostStreams::Resume(int device) {
  MutexLock lock(mu_);
  devices_[device].steps_until_pause.reset();
  changed_.NotifyAll();
}

bool HostStreams::still(int device) const {
  MutexLock lock(mu_);
  for (const auto& [queue, owned] : queues_) {
    if (queue->device == device && (queue->busy || CanGoOn(*queue))) return false;
  }
  return true;
}

void HostStreams::LoseAfter(int device, uint64_t steps) {
  MutexLock lock(mu_);
  devices_[device].steps_until_lost = steps;
  if (steps == 0) devices_[device].lost = true;
  changed_.NotifyAll();
}

bool HostStreams::lost(int device) const {
  MutexLock lock(mu_);
  const auto found = devices_.find(device);
  return found != devices_.end() && found->second.lost;
}

bool HostStreams::CanGoOn(const Queue& queue) const {
  if (queue.items.empty() || queue.busy) return false;
  const auto found = devices_.find(queue.device);
  const DeviceState* const device = found == devices_.end() ? nullptr : &found->second;
  if (device != nullptr && device->lost) return true;  // only to fail
  const Item& head = queue.items.front();
  if (head.wait != nullptr) return head.wait->reached;
  return head.mark != nullptr || device == nullptr || device->steps_until_pause != 0;
}

void HostStreams::Run() {
  mu_.Lock();
  while (!stop_) {
    std::vector<Queue*> ready;
    for (const auto& [queue, owned] : queues_) {
      if (CanGoOn(*queue)) ready.push_back(queue);
    }
    if (ready.empty()) {
      changed_.Wait(mu_);
      continue;
    }
    Queue* const queue = ready[random_() % ready.size()];
    Item item = std::move(queue->items.front());
    queue->items.pop_front();
    DeviceState& device = devices_[queue->device];
    if (item.mark != nullptr) {
      item.mark->reached = true;
      item.mark->lost = device.lost;
    } else if (item.wait != nullptr) {
      if (item.wait->lost) device.lost = true;
    } else if (!device.lost) {
      queue->busy = true;
      mu_.Unlock();
      const Status status = item.step();
      item.step = nullptr;
      mu_.Lock();
      queue->busy = false;
      // As a kernel that touches what it must not: the context is gone.
      if (!status) device.lost = true;
      if (device.steps_until_pause && *device.steps_until_pause > 0) --*device.steps_until_pause;
      if (device.steps_until_lost && --*device.steps_until_lost == 0) device.lost = true;
    }
    if (queue->ending && queue->items.empty()) queues_.erase(queue);
    changed_.NotifyAll();
  }
  mu_.Unlock();
}

}  // namespace moonpool::gpu
