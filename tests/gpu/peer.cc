// moonpool-gpu-peer: another process that imports regions, for processes_test.
//
//   moonpool-gpu-peer double|cuda      commands come over file descriptor 3
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/cuda.h"
#include "gpu/host_device.h"
#include "tests/gpu/peer_messages.h"

namespace moonpool::gpu {
namespace {

// Through device memory of its own, as an engine pulls; `rounds` times.
Result<std::string> Pull(Device* device, const DeviceRegion& region, int rounds) {
  const uint64_t bytes = region.bytes();
  auto copy = device->NewDeviceBlock(bytes);
  if (!copy) return tl::unexpected(copy.error());
  auto host = device->NewHostBlock(bytes);
  if (!host) return tl::unexpected(host.error());
  for (int i = 0; i < rounds; ++i) {
    CopyBatch pull(device);
    const size_t key = pull.AddKey(nullptr, 0);
    constexpr uint64_t kPiece = 64 << 10;
    for (uint64_t at = 0; at < bytes; at += kPiece) {
      pull.Copy(key, {(*copy)->data() + at, region.data() + at, std::min(kPiece, bytes - at)});
    }
    pull.EndLayer();
    pull.Copy(key, {(*host)->data(), (*copy)->data(), bytes});
    auto done = std::move(pull).Submit();
    if (!done) return tl::unexpected(done.error());
    if (Status status = done->Wait(); !status) return tl::unexpected(status.error());
  }
  return std::string((*host)->data(), bytes);
}

Status Fill(Device* device, const DeviceRegion& region, uint64_t seed) {
  const std::string bytes = PeerBytes(seed, region.bytes());
  CopyBatch fill(device);
  fill.Copy(fill.AddKey(nullptr, 0), {region.data(), bytes.data(), bytes.size()});
  auto done = std::move(fill).Submit();
  if (!done) return tl::unexpected(done.error());
  return done->Wait();
}

class Peer {
 public:
  explicit Peer(bool cuda) : cuda_(cuda) {}

  Status Open() {
    if (!cuda_) {
      doubles_ = MakeHostDevices();
      for (const auto& device : doubles_) devices_.push_back(device.get());
      return {};
    }
    auto gpus = CudaDevices::Open();
    if (!gpus) return tl::unexpected(gpus.error());
    gpus_ = std::move(*gpus);
    devices_ = gpus_->all();
    return {};
  }

  Status Do(PeerMessage* message, UniqueFd* fd) {
    switch (message->command) {
      case PeerMessage::kImport: {
        region_.reset();
        device_ = devices_[0];
        for (Device* device : devices_) {
          if (device->info().uuid == message->handle.device) device_ = device;
        }
        auto region = device_->Import(message->handle, fd->get());
        if (!region) return tl::unexpected(region.error());
        region_ = std::move(*region);
        return {};
      }
      case PeerMessage::kAllocate: {
        device_ = devices_[0];
        const HandleKind kind = message->handle.kind;
        auto region = device_->Allocate(message->handle.bytes, kind);
        if (!region) return tl::unexpected(region.error());
        region_ = std::move(*region);
        if (Status status = Fill(device_, *region_, message->seed); !status) return status;
        auto exported = region_->Export();
        if (!exported) return tl::unexpected(exported.error());
        message->handle = exported->handle;
        *fd = std::move(exported->fd);
        return {};
      }
      case PeerMessage::kFill:
        return Fill(device_, *region_, message->seed);
      case PeerMessage::kSum:
      case PeerMessage::kSpin: {
        auto bytes = Pull(device_, *region_, 1);
        if (!bytes) return tl::unexpected(bytes.error());
        message->value = SumOf(*bytes);
        return {};
      }
      default:
        return Fail(ErrorCode::kProtocol, "no such command");
    }
  }

  void Spin() {
    while (Pull(device_, *region_, 1000)) {
    }
  }

 private:
  const bool cuda_;
  std::vector<std::unique_ptr<HostDevice>> doubles_;
  std::unique_ptr<CudaDevices> gpus_;
  std::vector<Device*> devices_;
  Device* device_ = nullptr;
  std::unique_ptr<DeviceRegion> region_;
};

void Answer(PeerMessage* message, const Status& status) {
  message->ok = status ? 1 : 0;
  if (!status)
    std::snprintf(message->text, sizeof(message->text), "%s", status.error().message.c_str());
}

int Main(const std::string& kind) {
  Peer peer(kind == "cuda");
  PeerMessage message;
  message.command = PeerMessage::kReady;
  Answer(&message, peer.Open());
  if (!SendPeer(kPeerSocket, message) || message.ok == 0) return 1;
  UniqueFd fd;
  while (ReceivePeer(kPeerSocket, &message, &fd) && message.command != PeerMessage::kEnd) {
    Answer(&message, peer.Do(&message, &fd));
    const bool with_fd = message.command == PeerMessage::kAllocate;
    if (!SendPeer(kPeerSocket, message, with_fd ? fd.get() : -1)) return 1;
    fd.Reset();
    if (message.ok != 0 && message.command == PeerMessage::kSpin) peer.Spin();
  }
  return 0;
}

}  // namespace
}  // namespace moonpool::gpu

int main(int argc, char** argv) {
  return moonpool::gpu::Main(argc > 1 ? argv[1] : "double");
}
