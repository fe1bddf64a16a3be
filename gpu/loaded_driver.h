// Which addresses are device memory, asked of the CUDA driver that somebody else in this process has
// loaded.
//
// For a library that must tell pointers apart in any process: it needs no CUDA to build, loads
// nothing, and makes no context, which costs a device hundreds of megabytes.  Where nobody has
// loaded the driver there can be no device memory.
// Threads: any.
#pragma once

#include <cstdint>
#include <optional>

namespace moonpool::gpu {

// Some tens of nanoseconds while no library is loaded.
bool DriverLoaded();

struct DeviceMemory {
  int ordinal = 0;  // of the device, in the order of CudaDevices::all()
  // All of it is one allocation; empty when the driver does not say.
  uintptr_t begin = 0;
  uintptr_t end = 0;
};
// Empty: host memory.  A microsecond.
std::optional<DeviceMemory> FindDeviceMemory(const void* address);

}  // namespace moonpool::gpu
