#include "gpu/device.h"

namespace moonpool::gpu {

std::string_view NameOf(HandleKind kind) {
  switch (kind) {
    case HandleKind::kPosixFd:
      return "posix-fd";
    case HandleKind::kFabric:
      return "fabric";
    case HandleKind::kIpc:
      return "ipc";
  }
  return "unknown";
}

std::string_view NameOf(Link link) {
  switch (link) {
    case Link::kNone:
      return "none";
    case Link::kPcie:
      return "pcie";
    case Link::kNvlink:
      return "nvlink";
    case Link::kSame:
      return "same";
  }
  return "unknown";
}

HandleKind Device::BestHandle() const {
  return info().posix_handles ? HandleKind::kPosixFd : HandleKind::kIpc;
}

}  // namespace moonpool::gpu
