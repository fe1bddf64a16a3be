#include "gpu/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "gpu/cuda.h"
#include "gpu/cuda_errors.h"

namespace moonpool::gpu {

namespace {

class CudaDevicesOfProcess : public CudaDevices {
 public:
  const std::vector<Device*>& all() const override { return all_; }

  CudaPins pins_;
  std::vector<std::unique_ptr<CudaDevice>> owned_;
  std::vector<Device*> all_;
};

class CudaPinned : public PinnedRegion {
 public:
  CudaPinned(CudaDevice* device, CudaPins* pins, char* data, uint64_t bytes, uintptr_t range)
      : context_(device->context()), pins_(pins), data_(data), bytes_(bytes), range_(range) {
    known_.emplace(device, data, bytes);
  }
  ~CudaPinned() override {
    known_.reset();
    const ContextScope scope(context_);
    pins_->Unpin(range_);
  }
  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }

 private:
  CudaContext* const context_;
  CudaPins* const pins_;
  char* const data_;
  const uint64_t bytes_;
  const uintptr_t range_;
  std::optional<CudaDevice::Known> known_;
};

class CudaCheckBlock : public CudaChecks {
 public:
  CudaCheckBlock(CudaPools* pools, const CudaPools::Block& block, uint32_t* blocks_done)
      : pools_(pools), block_(block), blocks_done_(blocks_done) {}
  ~CudaCheckBlock() override {
    pools_->GiveBack(CudaPools::Where::kHost, block_);
    pools_->GiveBack(blocks_done_);
  }
  CheckState* states() const override { return reinterpret_cast<CheckState*>(block_.data); }
  uint32_t* blocks_done() const override { return blocks_done_; }

 private:
  CudaPools* const pools_;
  const CudaPools::Block block_;
  uint32_t* const blocks_done_;
};

template <typename Interface, CudaPools::Where kWhere>
class CudaBlock : public Interface {
 public:
  CudaBlock(CudaPools* pools, const CudaPools::Block& block) : pools_(pools), block_(block) {}
  ~CudaBlock() override { pools_->GiveBack(kWhere, block_); }
  char* data() const override { return block_.data; }
  uint64_t bytes() const override { return block_.bytes; }

 private:
  CudaPools* const pools_;
  const CudaPools::Block block_;
};

}  // namespace

bool BuiltWithCuda() {
  return true;
}

Result<std::unique_ptr<CudaDevices>> CudaDevices::Open() {
  const Result<const CudaDriver*> driver = LoadCudaDriver();
  if (!driver) return tl::unexpected(driver.error());
  // The driver's own functions would work, and every one of the runtime library's would not.
  int version = 0;
  if (Status status = CudaStatus((*driver)->cuDriverGetVersion(&version), "cuDriverGetVersion");
      !status) {
    return tl::unexpected(std::move(status.error()));
  }
  if (Status serves = DriverServes(version, CUDART_VERSION); !serves) {
    return tl::unexpected(std::move(serves.error()));
  }
  int count = 0;
  if (Status status = CudaStatus((*driver)->cuDeviceGetCount(&count), "cuDeviceGetCount");
      !status) {
    return tl::unexpected(std::move(status.error()));
  }
  if (count == 0) {
    return Fail(ErrorCode::kUnavailable,
                "the NVIDIA driver shows no device (see nvidia-smi and CUDA_VISIBLE_DEVICES)");
  }
  auto devices = std::make_unique<CudaDevicesOfProcess>();
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    auto device = CudaDevice::Open(*driver, ordinal, &devices->all_, &devices->pins_);
    if (!device) return tl::unexpected(std::move(device.error()));
    devices->owned_.push_back(std::move(*device));
  }
  for (const auto& device : devices->owned_) devices->all_.push_back(device.get());
  return devices;
}

Result<std::unique_ptr<CudaDevice>> CudaDevice::Open(const CudaDriver* driver, int ordinal,
                                                     const std::vector<Device*>* all,
                                                     CudaPins* pins) {
  CUdevice device = 0;
  if (Status status = CudaStatus(driver->cuDeviceGet(&device, ordinal), "cuDeviceGet"); !status) {
    return tl::unexpected(std::move(status.error()));
  }
  std::unique_ptr<CudaDevice> opened(new CudaDevice(driver, device, all, pins));
  if (Status status = opened->ReadInfo(); !status) {
    return tl::unexpected(std::move(status.error()));
  }
  return opened;
}

int CudaDevice::Attribute(CUdevice_attribute attribute) const {
  int value = 0;
  // A driver that does not know the attribute does not offer what it is about.
  if (context_.driver().cuDeviceGetAttribute(&value, attribute, device()) != CUDA_SUCCESS) return 0;
  return value;
}

Status CudaDevice::ReadInfo() {
  const CudaDriver& driver = context_.driver();
  CUuuid uuid;
  Status status = CudaStatus(driver.cuDeviceGetUuid_v2(&uuid, device()), "cuDeviceGetUuid_v2");
  if (!status) return status;
  static_assert(sizeof(uuid) == sizeof(info_.uuid.bytes));
  std::memcpy(info_.uuid.bytes.data(), &uuid, sizeof(uuid));
  char name[256] = {};
  status = CudaStatus(driver.cuDeviceGetName(name, sizeof(name) - 1, device()), "cuDeviceGetName");
  if (!status) return status;
  info_.name = name;
  status = CudaStatus(driver.cuDriverGetVersion(&info_.driver_version), "cuDriverGetVersion");
  if (!status) return status;
  info_.runtime_version = CUDART_VERSION;
  size_t total = 0;
  status = CudaStatus(driver.cuDeviceTotalMem(&total, device()), "cuDeviceTotalMem");
  if (!status) return status;
  info_.total_bytes = total;
  info_.compute_capability = 10 * Attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
                             Attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  info_.multiprocessors = Attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  const bool mapped = Attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) != 0;
  info_.posix_handles =
      mapped && Attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) != 0;
  info_.fabric_handles = mapped && Attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED) != 0;
  info_.ipc_handles = Attribute(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) != 0;
  info_.pins_read_only = Attribute(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED) != 0;
  maps_for_nics_ = Attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED) != 0;
  flushes_ = Attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING) <
             CU_GPU_DIRECT_RDMA_WRITES_ORDERING_ALL_DEVICES;
  const bool can_flush = (Attribute(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS) &
                          CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST) != 0;
  // Bytes that nobody can wait for are worse than a copy.
  info_.dmabuf = Attribute(CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED) != 0 && (can_flush || !flushes_);
  return {};
}

Result<MemoryUse> CudaDevice::Memory() const {
  const ContextScope scope(&context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  size_t free_bytes = 0, total_bytes = 0;
  Status status =
      CudaStatus(context_.driver().cuMemGetInfo(&free_bytes, &total_bytes), "cuMemGetInfo");
  if (!status) return tl::unexpected(std::move(status.error()));
  return MemoryUse{free_bytes, total_bytes};
}

Link CudaDevice::LinkTo(const Device& other) const {
  if (&other == this) return Link::kSame;
  const CUdevice peer = static_cast<const CudaDevice&>(other).device();
  const auto ask = [&](CUdevice_P2PAttribute attribute) {
    int value = 0;
    const CUresult result =
        context_.driver().cuDeviceGetP2PAttribute(&value, attribute, device(), peer);
    return result == CUDA_SUCCESS ? value : 0;
  };
  if (ask(CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED) == 0) return Link::kNone;
  // NVLink does atomics of the other device's memory, PCIe does not.
  return ask(CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED) != 0 ? Link::kNvlink : Link::kPcie;
}

std::vector<CUdevice> CudaDevice::Reachers() const {
  std::vector<CUdevice> reachers;
  for (const Device* other : all_) {
    if (other->LinkTo(*this) != Link::kNone) {
      reachers.push_back(static_cast<const CudaDevice*>(other)->device());
    }
  }
  return reachers;
}

Status CudaDevice::EnablePeer(CudaDevice* other) {
  {
    MutexLock lock(mu_);
    if (peers_.contains(other)) return {};
  }
  if (LinkTo(*other) == Link::kNone) return {};
  const Result<CUcontext> theirs = other->context_.Get();
  if (!theirs) return tl::unexpected(theirs.error());
  const CUresult result = context_.driver().cuCtxEnablePeerAccess(*theirs, 0);
  if (result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) {
    if (Status status = CudaStatus(result, "cuCtxEnablePeerAccess"); !status) return status;
  }
  MutexLock lock(mu_);
  peers_.insert(other);
  return {};
}

Result<std::unique_ptr<DeviceRegion>> CudaDevice::Allocate(uint64_t bytes, HandleKind kind) {
  return AllocateCudaRegion(this, bytes, kind);
}

Result<std::unique_ptr<DeviceRegion>> CudaDevice::Import(const RegionHandle& handle, int fd) {
  return ImportCudaRegion(this, handle, fd);
}

Result<std::unique_ptr<PinnedRegion>> CudaDevice::Pin(void* data, uint64_t bytes, Access access) {
  if (data == nullptr || bytes == 0) return Fail(ErrorCode::kInvalidArgument, "nothing to pin");
  if (access == Access::kReadOnly && !info_.pins_read_only) {
    return Fail(ErrorCode::kUnavailable, info_.name +
                                             " or its driver pins no read-only memory; "
                                             "copies of it go at the driver's pace");
  }
  const ContextScope scope(&context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  const Result<uintptr_t> range = pins_.Pin(data, bytes, access);
  if (!range) return tl::unexpected(range.error());
  return std::make_unique<CudaPinned>(this, &pins_, static_cast<char*>(data), bytes, *range);
}

Result<std::unique_ptr<HostBlock>> CudaDevice::NewHostBlock(uint64_t bytes) {
  Result<CudaPools::Block> block = pools_.TakeBlock(CudaPools::Where::kHost, bytes);
  if (!block) return tl::unexpected(std::move(block.error()));
  return std::make_unique<CudaBlock<HostBlock, CudaPools::Where::kHost>>(&pools_, *block);
}

Result<std::unique_ptr<DeviceBlock>> CudaDevice::NewDeviceBlock(uint64_t bytes) {
  Result<CudaPools::Block> block = pools_.TakeBlock(CudaPools::Where::kDevice, bytes);
  if (!block) return tl::unexpected(std::move(block.error()));
  return std::make_unique<CudaBlock<DeviceBlock, CudaPools::Where::kDevice>>(&pools_, *block);
}

Result<std::unique_ptr<CheckBlock>> CudaDevice::NewCheckBlock(size_t states) {
  Result<CudaPools::Block> block =
      pools_.TakeBlock(CudaPools::Where::kHost, states * sizeof(CheckState));
  if (!block) return tl::unexpected(std::move(block.error()));
  Result<uint32_t*> zero = pools_.TakeZero();
  if (!zero) {
    pools_.GiveBack(CudaPools::Where::kHost, *block);
    return tl::unexpected(std::move(zero.error()));
  }
  auto made = std::make_unique<CudaCheckBlock>(&pools_, *block, *zero);
  std::fill_n(made->states(), states, CheckState::kPending);
  return made;
}

CudaDevice::Known::Known(CudaDevice* device, const void* data, uint64_t bytes) : device_(device) {
  const Result<Place> place = device->AskDriver(data);
  if (!place || place->kind == Place::Kind::kPageable) return;
  place_ = *place;
  place_.begin = reinterpret_cast<uintptr_t>(data);
  place_.end = place_.begin + bytes;
  MutexLock lock(device_->mu_);
  device_->known_.push_back(place_);
}

CudaDevice::Known::~Known() {
  MutexLock lock(device_->mu_);
  auto& known = device_->known_;
  const auto found = std::find_if(known.begin(), known.end(), [&](const Place& place) {
    return place.begin == place_.begin && place.end == place_.end;
  });
  if (found != known.end()) known.erase(found);
}

Result<Place> CudaDevice::WhereIs(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  {
    MutexLock lock(mu_);
    for (const Place& place : known_) {
      if (at >= place.begin && at < place.end) return place;
    }
  }
  return AskDriver(address);
}

Result<Place> CudaDevice::AskDriver(const void* address) {
  const ContextScope scope(&context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  unsigned type = 0;
  int ordinal = -1;
  CUdeviceptr for_device = 0, begin = 0;
  size_t bytes = 0;
  CUpointer_attribute wanted[] = {
      CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
      CU_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
      CU_POINTER_ATTRIBUTE_RANGE_SIZE};
  void* values[] = {&type, &ordinal, &for_device, &begin, &bytes};
  Status status = CudaStatus(context_.driver().cuPointerGetAttributes(
                                 5, wanted, values, reinterpret_cast<CUdeviceptr>(address)),
                             "cuPointerGetAttributes");
  if (!status) return tl::unexpected(std::move(status.error()));
  Place place;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (type == CU_MEMORYTYPE_DEVICE) {
    place.kind = Place::Kind::kDevice;
    for (Device* device : all_) {
      auto* candidate = static_cast<CudaDevice*>(device);
      if (candidate->device() == ordinal) place.device = candidate;
    }
    if (place.device != nullptr && place.device != this) {
      status = EnablePeer(static_cast<CudaDevice*>(place.device));
      if (!status) return tl::unexpected(std::move(status.error()));
    }
  } else if (type == CU_MEMORYTYPE_HOST) {
    place.kind = Place::Kind::kPinned;
    if (for_device != 0) place.device_offset = static_cast<intptr_t>(for_device - at);
  } else {
    return place;
  }
  // The range is told in addresses of the device.
  const uintptr_t first = begin - static_cast<uintptr_t>(place.device_offset);
  if (bytes != 0 && at >= first && at - first < bytes) {
    place.begin = first;
    place.end = first + bytes;
  }
  return place;
}

}  // namespace moonpool::gpu
