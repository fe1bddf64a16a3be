// The GPUs whose memory the server keeps values in: what storage needs of them, over gpu::Device.
//
// Threads: any; Open() the main thread.  The devices that it was given must outlive it, and it the
// tenants.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gpu/device.h"
#include "protocol/status.h"
#include "storage/device_memory.h"

namespace moonpool::gpu {
class CudaDevices;
}

namespace moonpool::server {

class Gpus {
 public:
  struct Options {
    std::string devices;        // UUIDs, with commas or spaces between them; empty or "all": all
    uint64_t memory_bytes = 0;  // that will be wanted of each
    // In place of the GPUs of this machine, for tests.
    std::vector<gpu::Device*> given;
  };
  // The error says why there is none.
  static Result<std::unique_ptr<Gpus>> Open(const Options& options);
  ~Gpus();

  // Those that are used, at most storage::kMaxDevices, and the same as storage sees them.
  const std::vector<gpu::Device*>& devices() const { return devices_; }
  std::vector<storage::DeviceMemory*> memories() const;
  // Devices that are not used, and ones that are not there, each with the reason.
  const std::vector<std::string>& left_out() const { return left_out_; }

 private:
  Gpus();

  std::unique_ptr<gpu::CudaDevices> cuda_;
  std::vector<gpu::Device*> devices_;
  std::vector<std::unique_ptr<storage::DeviceMemory>> memories_;
  std::vector<std::string> left_out_;
};

}  // namespace moonpool::server
