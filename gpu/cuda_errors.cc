#include "gpu/cuda_errors.h"

namespace moonpool::gpu {

namespace {

struct Row {
  int code;
  std::string_view name;
  ErrorCode error;
  std::string_view cure;
};

using enum ErrorCode;
constexpr std::string_view kReset =
    "the device's state in this process is lost: restart the process";
constexpr std::string_view kBug = "this is a bug in Moonpool or in an address it was given";
constexpr std::string_view kHardware =
    "see nvidia-smi -q and the kernel's log for Xid messages; the GPU may need a reset";

// Numbers: driver_types.h of CUDA 13.0, unchanged since 10.2.
constexpr Row kRows[] = {
    {1, "cudaErrorInvalidValue", kInvalidArgument, "check addresses, sizes and alignment"},
    {2, "cudaErrorMemoryAllocation", kOutOfMemory,
     "free memory of the device, or lower gpu-memory"},
    {3, "cudaErrorInitializationError", kUnavailable,
     "CUDA does not survive fork(): open devices in the process that uses them"},
    {4, "cudaErrorCudartUnloading", kUnavailable, "the process is ending"},
    {34, "cudaErrorStubLibrary", kUnavailable,
     "take the CUDA stub libraries out of LD_LIBRARY_PATH"},
    {35, "cudaErrorInsufficientDriver", kUnavailable, "install a newer NVIDIA driver"},
    {36, "cudaErrorCallRequiresNewerDriver", kUnavailable, "install a newer NVIDIA driver"},
    {46, "cudaErrorDevicesUnavailable", kUnavailable,
     "another process has the GPU to itself (compute mode), or it is in a bad state"},
    {100, "cudaErrorNoDevice", kUnavailable, "see nvidia-smi and CUDA_VISIBLE_DEVICES"},
    {101, "cudaErrorInvalidDevice", kInvalidArgument, "see nvidia-smi -L for the devices"},
    {201, "cudaErrorDeviceUninitialized", kInvalidArgument,
     "the stream or address belongs to no context of this process"},
    {209, "cudaErrorNoKernelImageForDevice", kUnavailable,
     "build with the device's architecture in MOONPOOL_CUDA_ARCHITECTURES"},
    {214, "cudaErrorECCUncorrectable", kUnavailable, kHardware},
    {217, "cudaErrorPeerAccessUnsupported", kUnavailable,
     "the devices have no link; copies between them go through host memory"},
    {220, "cudaErrorNvlinkUncorrectable", kUnavailable, kHardware},
    {222, "cudaErrorUnsupportedPtxVersion", kUnavailable, "install a newer NVIDIA driver"},
    {226, "cudaErrorContained", kUnavailable, kHardware},
    {304, "cudaErrorOperatingSystem", kSystem,
     "a system call of the driver failed: look at RLIMIT_MEMLOCK, file descriptors, /dev/nvidia*"},
    {400, "cudaErrorInvalidResourceHandle", kInvalidArgument,
     "the stream or event belongs to another device or is destroyed"},
    {600, "cudaErrorNotReady", kTimeout, "wait for it"},
    {700, "cudaErrorIllegalAddress", kUnavailable, kReset},
    {702, "cudaErrorLaunchTimeout", kUnavailable, kReset},
    {704, "cudaErrorPeerAccessAlreadyEnabled", kSystem, kBug},
    {709, "cudaErrorContextIsDestroyed", kUnavailable,
     "somebody reset the device in this process: open it anew"},
    {711, "cudaErrorTooManyPeers", kUnavailable, "use fewer devices in one process"},
    {712, "cudaErrorHostMemoryAlreadyRegistered", kInvalidArgument,
     "the memory is pinned already, by somebody else"},
    {713, "cudaErrorHostMemoryNotRegistered", kInvalidArgument, kBug},
    {714, "cudaErrorHardwareStackError", kUnavailable, kReset},
    {715, "cudaErrorIllegalInstruction", kUnavailable, kReset},
    {716, "cudaErrorMisalignedAddress", kUnavailable, kReset},
    {717, "cudaErrorInvalidAddressSpace", kUnavailable, kReset},
    {718, "cudaErrorInvalidPc", kUnavailable, kReset},
    {719, "cudaErrorLaunchFailure", kUnavailable, kReset},
    {800, "cudaErrorNotPermitted", kPermissionDenied,
     "run in a container or as a user that may use the device"},
    {801, "cudaErrorNotSupported", kUnavailable,
     "this device or driver does not offer it; another way is taken where there is one"},
    {802, "cudaErrorSystemNotReady", kUnavailable,
     "start nvidia-fabricmanager; NVSwitch machines need it"},
    {803, "cudaErrorSystemDriverMismatch", kUnavailable,
     "the driver's parts have different versions: reboot or reinstall it"},
    {900, "cudaErrorStreamCaptureUnsupported", kInvalidArgument,
     "give a stream that is not being captured into a graph"},
    {901, "cudaErrorStreamCaptureInvalidated", kInvalidArgument,
     "give a stream that is not being captured into a graph"},
    {906, "cudaErrorStreamCaptureImplicit", kInvalidArgument,
     "give a stream of your own instead of the default one while another is being captured"},
    {907, "cudaErrorCapturedEvent", kInvalidArgument,
     "give a stream that is not being captured into a graph"},
    {999, "cudaErrorUnknown", kSystem, kHardware},
};

const Row* Find(int code) {
  for (const Row& row : kRows) {
    if (row.code == code) return &row;
  }
  return nullptr;
}

}  // namespace

ErrorCode CodeOfCuda(int code) {
  const Row* row = Find(code);
  return row != nullptr ? row->error : kSystem;
}

Status DriverServes(int driver_version, int runtime_version) {
  constexpr int kMajor = 1000;
  if (driver_version / kMajor >= runtime_version / kMajor) return {};
  const auto text = [](int version) {
    return std::to_string(version / kMajor) + "." + std::to_string(version % kMajor / 10);
  };
  return Fail(ErrorCode::kUnavailable,
              "the NVIDIA driver is too old: it is one for CUDA " + text(driver_version) +
                  ", and this program was built with CUDA " + text(runtime_version) +
                  " (install a newer driver, or build with an older toolkit)");
}

std::string_view CureOfCuda(int code) {
  const Row* row = Find(code);
  return row != nullptr ? row->cure : "look the number up in CUDA's driver_types.h";
}

tl::unexpected<Error> FailCuda(int code, std::string_view what) {
  const Row* row = Find(code);
  std::string text(what);
  text += ": ";
  text += row != nullptr ? row->name : std::string_view("CUDA error");
  text += " (" + std::to_string(code) + "); ";
  text += CureOfCuda(code);
  return Fail(CodeOfCuda(code), std::move(text));
}

}  // namespace moonpool::gpu
