// gpu::Device over CUDA.
//
// Every call makes the device's primary context current for its duration and then puts back what
// was. Threads: any.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <set>
#include <vector>

#include "gpu/cuda_context.h"
#include "gpu/cuda_pins.h"
#include "gpu/cuda_pools.h"
#include "gpu/cuda_tables.h"
#include "gpu/device.h"
#include "gpu/kernels.h"
#include "protocol/mutex.h"

namespace moonpool::gpu {

class CudaChecks : public CheckBlock {
 public:
  virtual uint32_t* blocks_done() const = 0;  // kernels::Behind
};

class CudaDevice : public Device {
 public:
  // `all`: the devices of this process by their ordinal, complete before the first call.
  static Result<std::unique_ptr<CudaDevice>> Open(const CudaDriver* driver, int ordinal,
                                                  const std::vector<Device*>* all, CudaPins* pins);

  const DeviceInfo& info() const override { return info_; }
  Result<MemoryUse> Memory() const override;
  Link LinkTo(const Device& other) const override;

  Result<std::unique_ptr<DeviceRegion>> Allocate(uint64_t bytes, HandleKind kind) override;
  Result<std::unique_ptr<DeviceRegion>> Import(const RegionHandle& handle, int fd) override;
  Result<std::unique_ptr<PinnedRegion>> Pin(void* data, uint64_t bytes, Access access) override;
  Result<std::unique_ptr<HostBlock>> NewHostBlock(uint64_t bytes) override;
  Result<std::unique_ptr<DeviceBlock>> NewDeviceBlock(uint64_t bytes) override;
  Result<std::unique_ptr<CheckBlock>> NewCheckBlock(size_t states) override;
  Result<Place> WhereIs(const void* address) override;
  Result<Dmabuf> ExportDmabuf(const void* data, uint64_t bytes) override;
  Status FlushRemoteWrites() override;

  Result<std::unique_ptr<Stream>> NewStream() override;
  Result<std::unique_ptr<Event>> NewEvent() override;
  Status Accepts(StreamRef stream) override;
  Status Record(Event& event, StreamRef stream) override;
  Status WaitFor(StreamRef stream, const Event& event) override;
  Status Drain(StreamRef stream) override;

  Status CopyOne(StreamRef stream, const Piece& piece) override;
  Status CopyMany(StreamRef stream, std::span<const Piece> pieces, bool host,
                  const Checks& behind) override;
  Status CopyPages(StreamRef stream, const PageCopy& copy, bool host) override;
  Status CheckGenerations(StreamRef stream, const Checks& checks) override;

  CudaContext* context() { return &context_; }
  CUdevice device() const { return context_.device(); }
  // Memory of cuMemCreate() can be made for NICs to reach.
  bool maps_for_nics() const { return maps_for_nics_; }
  // Spares WhereIs() the driver for as long as this exists: [data, data + bytes) is of one kind.
  class Known {
   public:
    Known(CudaDevice* device, const void* data, uint64_t bytes);
    ~Known();
    Known(const Known&) = delete;

   private:
    CudaDevice* const device_;
    Place place_;
  };
  // Devices of this process that reach this one's memory, itself among them.
  std::vector<CUdevice> Reachers() const;

 private:
  CudaDevice(const CudaDriver* driver, CUdevice device, const std::vector<Device*>* all,
             CudaPins* pins)
      : context_(driver, device), all_(*all), pins_(*pins) {}

  Status ReadInfo();
  int Attribute(CUdevice_attribute attribute) const;
  Status EnablePeer(CudaDevice* other);
  Result<Place> AskDriver(const void* address);

  mutable CudaContext context_;
  const std::vector<Device*>& all_;
  CudaPins& pins_;
  CudaPools pools_{&context_};
  CudaTables tables_{&context_, &pools_};
  DeviceInfo info_;
  bool maps_for_nics_ = false;
  bool flushes_ = false;  // what NICs write is not seen in order by itself
  Mutex mu_;
  std::set<CudaDevice*> peers_ GUARDED_BY(mu_);  // that this device's context may access
  std::vector<Place> known_ GUARDED_BY(mu_);
};

// --- memory, in cuda_memory.cc -------------------------------------------------------------------
Result<std::unique_ptr<DeviceRegion>> AllocateCudaRegion(CudaDevice* device, uint64_t bytes,
                                                         HandleKind kind);
Result<std::unique_ptr<DeviceRegion>> ImportCudaRegion(CudaDevice* device,
                                                       const RegionHandle& handle, int fd);

}  // namespace moonpool::gpu
