// Regions of device memory: the virtual-memory API (CUDA driver API, section 6.14), and the IPC
// handles of the runtime where a device cannot export through it.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "gpu/cuda_device.h"
#include "gpu/cuda_errors.h"

namespace moonpool::gpu {

namespace {

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(RegionHandle::opaque));
static_assert(sizeof(CUmemFabricHandle) == sizeof(RegionHandle::opaque));

CUmemAllocationHandleType DriverKind(HandleKind kind) {
  return kind == HandleKind::kFabric ? CU_MEM_HANDLE_TYPE_FABRIC
                                     : CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
}

// Memory under a handle of the driver's, mapped at an address of its own.  Each step undoes itself
// in the destructor, as far as it came.
class MappedRegion : public DeviceRegion {
 public:
  MappedRegion(CudaDevice* owner, const Uuid& uuid, HandleKind kind, bool imported)
      : owner_(owner), uuid_(uuid), kind_(kind), imported_(imported) {}

  ~MappedRegion() override {
    known_.reset();
    const ContextScope scope(owner_->context());
    if (mapped_) (void)Driver().cuMemUnmap(address_, bytes_);
    if (address_ != 0) (void)Driver().cuMemAddressFree(address_, bytes_);
    if (held_) (void)Driver().cuMemRelease(handle_);
  }

  char* data() const override { return reinterpret_cast<char*>(address_); }
  uint64_t bytes() const override { return bytes_; }
  const Uuid& device() const override { return uuid_; }

  Result<ExportedRegion> Export() const override {
    if (imported_) {
      return Fail(ErrorCode::kInvalidArgument,
                  "only the process that allocated a region exports it");
    }
    const ContextScope scope(owner_->context());
    if (!scope.status()) return tl::unexpected(scope.status().error());
    ExportedRegion exported;
    exported.handle = {kind_, uuid_, bytes_, {}};
    Status status;
    if (kind_ == HandleKind::kFabric) {
      status = CudaStatus(Driver().cuMemExportToShareableHandle(exported.handle.opaque.data(),
                                                                handle_, DriverKind(kind_), 0),
                          "cuMemExportToShareableHandle (fabric)");
    } else {
      int fd = -1;
      status = CudaStatus(Driver().cuMemExportToShareableHandle(&fd, handle_, DriverKind(kind_), 0),
                          "cuMemExportToShareableHandle (file descriptor)");
      exported.fd.Reset(fd);
    }
    if (!status) return tl::unexpected(std::move(status.error()));
    return exported;
  }

  Status Create(uint64_t bytes) {
    Status status = Obtain(bytes, owner_->maps_for_nics());
    // Where the attribute promises more than the system underneath (a virtual machine, a sandbox)
    // keeps, memory that no NIC reaches is better than none.
    if (!status && owner_->maps_for_nics() && status.error().code != ErrorCode::kOutOfMemory) {
      status = Obtain(bytes, false);
    }
    if (!status) return status;
    return Map();
  }

  Status Import(const RegionHandle& handle, int fd) {
    bytes_ = handle.bytes;
    void* shared = reinterpret_cast<void*>(static_cast<uintptr_t>(fd));
    RegionHandle copied = handle;
    if (kind_ == HandleKind::kFabric) shared = copied.opaque.data();
    Status status =
        CudaStatus(Driver().cuMemImportFromShareableHandle(&handle_, shared, DriverKind(kind_)),
                   "cuMemImportFromShareableHandle");
    held_ = status.has_value();
    if (!status) return status;
    return Map();
  }

 private:
  const CudaDriver& Driver() const { return owner_->context()->driver(); }

  Status Obtain(uint64_t bytes, bool for_nics) {
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = DriverKind(kind_);
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = owner_->device();
    properties.allocFlags.gpuDirectRDMACapable = for_nics ? 1 : 0;
    size_t granularity = 0;
    if (Status status =
            CudaStatus(Driver().cuMemGetAllocationGranularity(&granularity, &properties,
                                                              CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                       "cuMemGetAllocationGranularity");
        !status) {
      return status;
    }
    bytes_ = (bytes + granularity - 1) / granularity * granularity;
    Status status = CudaStatus(Driver().cuMemCreate(&handle_, bytes_, &properties, 0),
                               "cuMemCreate of " + std::to_string(bytes_) + " bytes");
    held_ = status.has_value();
    return status;
  }

  Status Map() {
    Status status =
        CudaStatus(Driver().cuMemAddressReserve(&address_, bytes_, 0, 0, 0), "cuMemAddressReserve");
    if (!status) return status;
    status = CudaStatus(Driver().cuMemMap(address_, bytes_, 0, handle_, 0), "cuMemMap");
    mapped_ = status.has_value();
    if (!status) return status;
    std::vector<CUmemAccessDesc> access;
    for (const CUdevice device : owner_->Reachers()) {
      CUmemAccessDesc one{};
      one.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
      one.location.id = device;
      one.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      access.push_back(one);
    }
    status = CudaStatus(Driver().cuMemSetAccess(address_, bytes_, access.data(), access.size()),
                        "cuMemSetAccess");
    if (status) known_.emplace(owner_, data(), bytes_);
    return status;
  }

  CudaDevice* const owner_;
  const Uuid uuid_;
  const HandleKind kind_;
  const bool imported_;
  uint64_t bytes_ = 0;
  CUmemGenericAllocationHandle handle_ = 0;
  CUdeviceptr address_ = 0;
  bool held_ = false;
  bool mapped_ = false;
  std::optional<CudaDevice::Known> known_;
};

// Memory of cudaMalloc, or of another process's cudaMalloc.
class IpcRegion : public DeviceRegion {
 public:
  IpcRegion(CudaDevice* owner, const Uuid& uuid, char* data, uint64_t bytes, bool imported)
      : owner_(owner), uuid_(uuid), data_(data), bytes_(bytes), imported_(imported) {
    known_.emplace(owner, data, bytes);
  }

  ~IpcRegion() override {
    known_.reset();
    const ContextScope scope(owner_->context());
    if (!scope.status()) return;
    (void)CudaStatus(imported_ ? cudaIpcCloseMemHandle(data_) : cudaFree(data_),
                     "freeing a region");
  }

  char* data() const override { return data_; }
  uint64_t bytes() const override { return bytes_; }
  const Uuid& device() const override { return uuid_; }

  Result<ExportedRegion> Export() const override {
    if (imported_) {
      return Fail(ErrorCode::kInvalidArgument,
                  "only the process that allocated a region exports it");
    }
    const ContextScope scope(owner_->context());
    if (!scope.status()) return tl::unexpected(scope.status().error());
    cudaIpcMemHandle_t handle;
    Status status = CudaStatus(cudaIpcGetMemHandle(&handle, data_), "cudaIpcGetMemHandle");
    if (!status) return tl::unexpected(std::move(status.error()));
    ExportedRegion exported;
    exported.handle = {HandleKind::kIpc, uuid_, bytes_, {}};
    std::memcpy(exported.handle.opaque.data(), &handle, sizeof(handle));
    return exported;
  }

 private:
  CudaDevice* const owner_;
  const Uuid uuid_;
  char* const data_;
  const uint64_t bytes_;
  const bool imported_;
  std::optional<CudaDevice::Known> known_;
};

}  // namespace

Result<std::unique_ptr<DeviceRegion>> AllocateCudaRegion(CudaDevice* device, uint64_t bytes,
                                                         HandleKind kind) {
  if (bytes == 0) return Fail(ErrorCode::kInvalidArgument, "a region of no bytes");
  const DeviceInfo& info = device->info();
  if ((kind == HandleKind::kPosixFd && !info.posix_handles) ||
      (kind == HandleKind::kFabric && !info.fabric_handles) ||
      (kind == HandleKind::kIpc && !info.ipc_handles)) {
    return Fail(ErrorCode::kUnavailable,
                info.name + " exports no memory by " + std::string(NameOf(kind)) + " handles");
  }
  const ContextScope scope(device->context());
  if (!scope.status()) return tl::unexpected(scope.status().error());
  if (kind != HandleKind::kIpc) {
    auto region = std::make_unique<MappedRegion>(device, info.uuid, kind, false);
    if (Status status = region->Create(bytes); !status) {
      return tl::unexpected(std::move(status.error()));
    }
    return region;
  }
  // An importer sees the whole block of the driver's that an allocation is cut from: take all of
  // it.
  constexpr uint64_t kIpcGranularity = 2 << 20;
  bytes = (bytes + kIpcGranularity - 1) / kIpcGranularity * kIpcGranularity;
  void* data = nullptr;
  Status status = CudaStatus(cudaMalloc(&data, bytes), "cudaMalloc of " + std::to_string(bytes));
  if (!status) return tl::unexpected(std::move(status.error()));
  return std::make_unique<IpcRegion>(device, info.uuid, static_cast<char*>(data), bytes, false);
}

Result<std::unique_ptr<DeviceRegion>> ImportCudaRegion(CudaDevice* device,
                                                       const RegionHandle& handle, int fd) {
  if (handle.bytes == 0) return Fail(ErrorCode::kInvalidArgument, "a region of no bytes");
  if (handle.kind == HandleKind::kPosixFd && fd < 0) {
    return Fail(ErrorCode::kInvalidArgument, "no file descriptor came with the region");
  }
  const ContextScope scope(device->context());
  if (!scope.status()) return tl::unexpected(scope.status().error());
  if (handle.kind != HandleKind::kIpc) {
    auto region = std::make_unique<MappedRegion>(device, handle.device, handle.kind, true);
    if (Status status = region->Import(handle, fd); !status) {
      return tl::unexpected(std::move(status.error()));
    }
    return region;
  }
  cudaIpcMemHandle_t ipc;
  std::memcpy(&ipc, handle.opaque.data(), sizeof(ipc));
  void* data = nullptr;
  Status status = CudaStatus(cudaIpcOpenMemHandle(&data, ipc, cudaIpcMemLazyEnablePeerAccess),
                             "cudaIpcOpenMemHandle");
  if (!status) return tl::unexpected(std::move(status.error()));
  return std::make_unique<IpcRegion>(device, handle.device, static_cast<char*>(data), handle.bytes,
                                     true);
}

// Ranges that are exported begin and end at pages of the host's (CUDA driver API, section 6.13,
// cuMemGetHandleForAddressRange).
Result<Dmabuf> CudaDevice::ExportDmabuf(const void* data, uint64_t bytes) {
  if (!info_.dmabuf) {
    return Fail(ErrorCode::kUnavailable, info_.name + " has no memory that NICs can reach");
  }
  if (bytes == 0) return Fail(ErrorCode::kInvalidArgument, "no memory to export");
  const ContextScope scope(&context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  const CudaDriver& driver = context_.driver();
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<CUdeviceptr>(data);
  Status status;
  Dmabuf exported;
  const auto export_pages_of = [&](CUdeviceptr begin, CUdeviceptr end) {
    const CUdeviceptr first = begin / page * page;
    const CUdeviceptr last = (end + page - 1) / page * page;
    int fd = -1;
    status = CudaStatus(driver.cuMemGetHandleForAddressRange(
                            &fd, first, last - first, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0),
                        "cuMemGetHandleForAddressRange");
    if (!status) return false;
    exported.fd.Reset(fd);
    exported.offset = at - first;
    return true;
  };
  if (export_pages_of(at, at + bytes)) return exported;
  // A part of an allocation may be refused where the whole is not.
  CUdeviceptr base = 0;
  size_t size = 0;
  if (driver.cuMemGetAddressRange(&base, &size, at) == CUDA_SUCCESS && at >= base &&
      at + bytes <= base + size && export_pages_of(base, base + size)) {
    return exported;
  }
  return Fail(ErrorCode::kUnavailable, status.error().message);
}

Status CudaDevice::FlushRemoteWrites() {
  if (!info_.dmabuf) {
    return Fail(ErrorCode::kUnavailable, info_.name + " has no memory that NICs can reach");
  }
  if (!flushes_) return {};
  const ContextScope scope(&context_);
  if (!scope.status()) return tl::unexpected(scope.status().error());
  return CudaStatus(context_.driver().cuFlushGPUDirectRDMAWrites(
                        CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                        CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES),
                    "cuFlushGPUDirectRDMAWrites");
}

}  // namespace moonpool::gpu
