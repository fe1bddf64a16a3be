// The GPUs of this process, as far as the library uses them: which buffers of a caller's are in
// device memory, and whose.
//
// CUDA is touched only in a process that uses it already, when it passes device memory for the first
// time; then the devices are opened for all clients, and never closed.
// Threads: any; a MemoryLookup by one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/moonpool/client.h"
#include "client/node_memory.h"
#include "gpu/device.h"

namespace moonpool::client {

// Whether a buffer may be device memory at all: when not, nobody need ask.
bool DeviceMemoryPossible();

// All that this process sees.  An error: it has none that the library can use; the message says why.
Status OpenGpuDevices(Options::GpuChoice choice, std::span<gpu::Device* const>* devices);

// Their UUIDs; empty when there are none.
std::vector<std::string> GpuNames(Options::GpuChoice choice);

// A PREFER with its word "gpu" told more exactly, for bytes that `near` has: that device itself, then
// those it reaches over NVLink, then over PCIe, then any.
std::string NearestFirst(Options::GpuChoice choice, std::string_view prefer, const gpu::Device& near);

// Memory of another process's, by the device that is named in `handle`.
Result<std::shared_ptr<Mapping>> ImportDeviceMemory(Options::GpuChoice choice,
                                                    const gpu::RegionHandle& handle, int fd);

// For tests: these instead of CUDA's, none for CUDA's again.  They must outlive every client that
// has used them.
void ReplaceGpuDevices(std::vector<gpu::Device*> devices);

// Memory that RegisterBuffer() was told of: what it is need not be asked again.
struct KnownMemory {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  gpu::Device* device = nullptr;  // null: host memory
};

// In the order of their begins; none overlap.
using KnownMemories = std::vector<KnownMemory>;

// Asks for one batch, and remembers the answers.
class MemoryLookup {
 public:
  // `registered` may be null.
  MemoryLookup(Options::GpuChoice choice, std::shared_ptr<const KnownMemories> registered)
      : choice_(choice), registered_(std::move(registered)) {}

  // Null for host memory.  kInvalidArgument for device memory that cannot be used: the message says
  // why and what to do.
  Status DeviceOf(const void* address, gpu::Device** device);

 private:
  const KnownMemory* Find(uintptr_t at) const;

  const Options::GpuChoice choice_;
  const std::shared_ptr<const KnownMemories> registered_;
  std::vector<KnownMemory> asked_;
  KnownMemory last_;
  uintptr_t host_window_ = UINTPTR_MAX;  // the last that has no device memory in it
};

}  // namespace moonpool::client
