#include "client/gpu_devices.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>

#include "client/errors.h"
#include "client/fork_guard.h"
#include "gpu/cuda.h"
#include "gpu/loaded_driver.h"
#include "protocol/mutex.h"

namespace moonpool::client {

namespace {

// Beyond that many ranges the driver is asked again: searching would cost as much.
constexpr size_t kMostAsked = 64;
// Devices map memory in blocks of at least this size and alignment (CUDA driver API, section 6.14,
// cuMemGetAllocationGranularity): what has a host address in it has no other.
constexpr uintptr_t kWindow = 64 << 10;

struct Opened {
  Mutex mu;
  std::vector<gpu::Device*> doubles GUARDED_BY(mu);
  bool tried GUARDED_BY(mu) = false;
  uint64_t forks GUARDED_BY(mu) = 0;
  Result<std::unique_ptr<gpu::CudaDevices>> cuda GUARDED_BY(mu) = nullptr;
};

// Never destroyed: when the process ends the driver may be gone before.
Opened& TheOpened() {
  static auto& opened = *new Opened();
  return opened;
}

std::atomic<bool> doubles_in_use{false};

Status Unusable(const std::string& why) {
  return {Code::kInvalidArgument, "a buffer is in a GPU's memory, but " + why};
}

}  // namespace

bool DeviceMemoryPossible() {
  return doubles_in_use.load(std::memory_order_relaxed) || gpu::DriverLoaded();
}

void ReplaceGpuDevices(std::vector<gpu::Device*> devices) {
  Opened& opened = TheOpened();
  MutexLock lock(opened.mu);
  doubles_in_use = !devices.empty();
  opened.doubles = std::move(devices);
}

Status OpenGpuDevices(Options::GpuChoice choice, std::span<gpu::Device* const>* devices) {
  if (choice == Options::GpuChoice::kNo) {
    return {Code::kUnavailable, "GPUs are switched off: pass gpu=auto (Options::gpu)"};
  }
  Opened& opened = TheOpened();
  MutexLock lock(opened.mu);
  if (!opened.doubles.empty()) {
    *devices = opened.doubles;
    return {};
  }
  if (!opened.tried) {
    opened.tried = true;
    opened.forks = ForkCount();
    opened.cuda = gpu::CudaDevices::Open();
  }
  if (opened.forks != ForkCount()) {
    return {Code::kUnavailable,
            "CUDA does not survive fork(): start processes that use GPUs with spawn"};
  }
  if (!opened.cuda) return FromError(opened.cuda.error());
  *devices = (*opened.cuda)->all();
  return {};
}

std::vector<std::string> GpuNames(Options::GpuChoice choice) {
  std::span<gpu::Device* const> devices;
  std::vector<std::string> names;
  if (!OpenGpuDevices(choice, &devices).ok()) return names;
  for (const gpu::Device* device : devices) names.push_back(device->info().uuid.ToString());
  return names;
}

std::string NearestFirst(Options::GpuChoice choice, std::string_view prefer,
                         const gpu::Device& near) {
  std::span<gpu::Device* const> devices;
  if (!OpenGpuDevices(choice, &devices).ok()) return std::string(prefer);
  std::vector<std::pair<gpu::Link, const gpu::Device*>> linked;  // `near` with the best of links
  for (const gpu::Device* device : devices) {
    const gpu::Link link = near.LinkTo(*device);
    if (link != gpu::Link::kNone) linked.emplace_back(link, device);
  }
  std::stable_sort(linked.begin(), linked.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::string told;
  for (size_t begin = 0; begin <= prefer.size();) {
    const size_t end = std::min(prefer.find(',', begin), prefer.size());
    const std::string_view word = prefer.substr(begin, end - begin);
    begin = end + 1;
    if (!told.empty()) told += ',';
    if (word == "gpu") {
      for (const auto& [link, device] : linked) {
        told += "gpu:" + device->info().uuid.ToString() + ',';
      }
    }
    told += word;
  }
  return told;
}

Result<std::shared_ptr<Mapping>> ImportDeviceMemory(Options::GpuChoice choice,
                                                    const gpu::RegionHandle& handle, int fd) {
  std::span<gpu::Device* const> devices;
  if (Status opened = OpenGpuDevices(choice, &devices); !opened.ok()) {
    return Fail(ErrorCode::kUnavailable, opened.message);
  }
  for (gpu::Device* device : devices) {
    if (device->info().uuid != handle.device) continue;
    auto region = device->Import(handle, fd);
    if (!region) return tl::unexpected(std::move(region.error()));
    return Mapping::OfDevice(device, std::move(*region));
  }
  return Fail(ErrorCode::kUnavailable, "this process does not see device " +
                                           handle.device.ToString() +
                                           "; add it to CUDA_VISIBLE_DEVICES");
}

const KnownMemory* MemoryLookup::Find(uintptr_t at) const {
  if (registered_ != nullptr) {
    auto next = std::upper_bound(
        registered_->begin(), registered_->end(), at,
        [](uintptr_t address, const KnownMemory& memory) { return address < memory.begin; });
    if (next != registered_->begin() && at < std::prev(next)->end) return &*std::prev(next);
  }
  for (const KnownMemory& memory : asked_) {
    if (at >= memory.begin && at < memory.end) return &memory;
  }
  return nullptr;
}

Status MemoryLookup::DeviceOf(const void* address, gpu::Device** device) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at < last_.begin || at >= last_.end) {
    const KnownMemory* const known = Find(at);
    last_ = known != nullptr ? *known : KnownMemory();
  }
  if (last_.end != 0) {
    *device = last_.device;
    return {};
  }
  *device = nullptr;
  if (at / kWindow == host_window_) return {};
  std::span<gpu::Device* const> all;
  KnownMemory found;
  if (doubles_in_use.load(std::memory_order_relaxed)) {
    // With the switch off, only to tell.
    if (Status opened = OpenGpuDevices(Options::GpuChoice::kAuto, &all); !opened.ok()) return {};
    const Result<gpu::Place> place = all[0]->WhereIs(address);
    if (!place || place->kind != gpu::Place::Kind::kDevice) return {};
    found = {place->begin, place->end, place->device};
    if (choice_ == Options::GpuChoice::kNo) return Unusable("GPUs are switched off: pass gpu=auto");
  } else {
    const std::optional<gpu::DeviceMemory> memory = gpu::FindDeviceMemory(address);
    if (!memory) {
      host_window_ = at / kWindow;
      return {};
    }
    if (Status opened = OpenGpuDevices(choice_, &all); !opened.ok()) {
      return Unusable(opened.message);
    }
    if (static_cast<size_t>(memory->ordinal) >= all.size()) {
      return Unusable("this process sees no device " + std::to_string(memory->ordinal));
    }
    found = {memory->begin, memory->end, all[static_cast<size_t>(memory->ordinal)]};
  }
  *device = found.device;
  if (asked_.size() < kMostAsked && found.end > found.begin) {
    last_ = found;
    asked_.push_back(found);
  }
  return {};
}

}  // namespace moonpool::client
