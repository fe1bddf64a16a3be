#include "gpu/loaded_driver.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>

namespace moonpool::gpu {

namespace {

// As cuda.h of the CUDA driver API has them, section 6.17 (unified addressing); their numbers are
// part of the driver's ABI.
using PointerGetAttributes = int (*)(unsigned count, const int* attributes, void** values,
                                     uint64_t address);
constexpr int kMemoryType = 2;
constexpr int kDeviceOrdinal = 9;
constexpr int kRangeStart = 11;
constexpr int kRangeSize = 12;
constexpr unsigned kTypeDevice = 2;

// How many libraries this process has loaded so far.
uint64_t LibrariesLoaded() {
  uint64_t loaded = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        *static_cast<uint64_t*>(to) = info->dlpi_adds;
        return 1;
      },
      &loaded);
  return loaded;
}

PointerGetAttributes Loaded() {
  static std::atomic<PointerGetAttributes> found{nullptr};
  static std::atomic<uint64_t> looked_at{0};
  if (const PointerGetAttributes function = found.load(std::memory_order_acquire)) return function;
  const uint64_t libraries = LibrariesLoaded();
  if (looked_at.load(std::memory_order_relaxed) == libraries) return nullptr;
  // Keeps the driver loaded, for which the process has no end anyway.
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver == nullptr) {
    looked_at.store(libraries, std::memory_order_relaxed);
    return nullptr;
  }
  const auto function =
      reinterpret_cast<PointerGetAttributes>(dlsym(driver, "cuPointerGetAttributes"));
  found.store(function, std::memory_order_release);
  return function;
}

}  // namespace

bool DriverLoaded() { return Loaded() != nullptr; }

std::optional<DeviceMemory> FindDeviceMemory(const void* address) {
  const PointerGetAttributes get_attributes = Loaded();
  if (get_attributes == nullptr) return std::nullopt;
  unsigned type = 0;
  int ordinal = -1;
  uint64_t begin = 0;
  size_t bytes = 0;
  const int attributes[] = {kMemoryType, kDeviceOrdinal, kRangeStart, kRangeSize};
  void* values[] = {&type, &ordinal, &begin, &bytes};
  // An error: the driver was not initialized, so that nobody has device memory of it.
  if (get_attributes(4, attributes, values, reinterpret_cast<uintptr_t>(address)) != 0 ||
      type != kTypeDevice || ordinal < 0) {
    return std::nullopt;
  }
  DeviceMemory memory{ordinal, 0, 0};
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at >= begin && at - begin < bytes) {
    memory.begin = begin;
    memory.end = begin + bytes;
  }
  return memory;
}

}  // namespace moonpool::gpu
