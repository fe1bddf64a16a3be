#include "server/gpus.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "gpu/copy_batch.h"
#include "gpu/cuda.h"
#include "server/log.h"
#include "storage/clock.h"

namespace moonpool::server {

namespace {

using protocol::DeviceHandleKind;

// Between two lines about copies that fail.
constexpr int64_t kQuietMs = 10'000;

DeviceHandleKind KindOf(gpu::HandleKind kind) {
  switch (kind) {
    case gpu::HandleKind::kPosixFd:
      return DeviceHandleKind::kPosixFd;
    case gpu::HandleKind::kFabric:
      return DeviceHandleKind::kFabric;
    case gpu::HandleKind::kIpc:
      return DeviceHandleKind::kIpc;
  }
  __builtin_unreachable();
}

class GpuRange : public storage::DeviceMemory::Range {
 public:
  GpuRange(gpu::Device* device, std::unique_ptr<gpu::DeviceRegion> region)
      : device_(*device), region_(std::move(region)) {}

  char* data() const override { return region_->data(); }
  uint64_t bytes() const override { return region_->bytes(); }
  Result<storage::DeviceMemory::Handle> Export() const override {
    auto exported = region_->Export();
    if (!exported) return tl::unexpected<Error>(std::move(exported.error()));
    storage::DeviceMemory::Handle handle;
    handle.kind = KindOf(exported->handle.kind);
    handle.opaque = exported->handle.opaque;
    handle.fd = std::move(exported->fd);
    return handle;
  }
  Result<storage::DeviceMemory::Dmabuf> ExportDmabuf() const override {
    if (!device_.info().dmabuf) {
      return Fail(ErrorCode::kUnavailable, "the GPU, or its driver, has no dma-buf");
    }
    auto exported = device_.ExportDmabuf(region_->data(), region_->bytes());
    if (!exported) return tl::unexpected<Error>(std::move(exported.error()));
    return storage::DeviceMemory::Dmabuf{std::move(exported->fd), exported->offset};
  }

 private:
  gpu::Device& device_;
  const std::unique_ptr<gpu::DeviceRegion> region_;
};

class GpuMemory : public storage::DeviceMemory {
 public:
  explicit GpuMemory(gpu::Device* device)
      : device_(*device),
        uuid_(device->info().uuid.bytes),
        name_(device->info().uuid.ToString()) {}

  const Uuid& uuid() const override { return uuid_; }
  const std::string& name() const override { return name_; }

  Result<std::unique_ptr<Range>> Allocate(uint64_t bytes) override {
    auto region = device_.Allocate(bytes, device_.BestHandle());
    if (!region) {
      Log(LogLevel::kWarning, "GPU {} gives no memory for a region of {} bytes: {}", name_, bytes,
          region.error().message);
      return tl::unexpected<Error>(std::move(region.error()));
    }
    return std::make_unique<GpuRange>(&device_, std::move(*region));
  }

  Status Copy(char* to, const char* from, uint64_t bytes) override {
    if (lost()) return Fail(ErrorCode::kUnavailable, "the device is lost");
    Status copied = CopyNow(to, from, bytes);
    if (!copied) Failed(copied.error());
    return copied;
  }

  bool lost() const override { return lost_.load(std::memory_order_relaxed); }
  void Probe() override {
    if (lost()) return;
    if (const auto memory = device_.Memory(); !memory) Failed(memory.error());
  }

 private:
  Status CopyNow(char* to, const char* from, uint64_t bytes) {
    gpu::CopyBatch batch(&device_);
    batch.Copy(batch.AddKey(nullptr, 0), {to, from, bytes});
    auto completion = std::move(batch).Submit();
    if (!completion) return tl::unexpected<Error>(std::move(completion.error()));
    return completion->Wait();
  }

  void Failed(const Error& error) {
    const bool dead = error.code == ErrorCode::kUnavailable;
    if (dead && lost_.exchange(true, std::memory_order_relaxed)) return;
    // One that keeps failing says so now and then only.
    const int64_t now_ms = storage::MonotonicMs();
    int64_t quiet_until_ms = quiet_until_ms_.load(std::memory_order_relaxed);
    if (!dead && (now_ms < quiet_until_ms ||
                  !quiet_until_ms_.compare_exchange_strong(quiet_until_ms, now_ms + kQuietMs,
                                                           std::memory_order_relaxed))) {
      return;
    }
    Log(LogLevel::kWarning, "GPU {}: {}", name_, error.message);
  }

  gpu::Device& device_;
  const Uuid uuid_;
  const std::string name_;
  std::atomic<bool> lost_{false};
  std::atomic<int64_t> quiet_until_ms_{0};
};

// What the setting names; nullopt: all.
Result<std::optional<std::vector<gpu::Uuid>>> ParseDevices(std::string_view setting) {
  std::vector<gpu::Uuid> named;
  for (size_t at = 0; at < setting.size();) {
    const size_t end = std::min(setting.find_first_of(", ", at), setting.size());
    const std::string_view word = setting.substr(at, end - at);
    at = end + 1;
    if (word.empty()) continue;
    if (word == "all") return std::optional<std::vector<gpu::Uuid>>();
    const auto uuid = gpu::Uuid::Parse(word);
    if (!uuid) {
      return Fail(ErrorCode::kInvalidArgument,
                  "gpu-devices: '" + std::string(word) +
                      "' is no UUID of a GPU (nvidia-smi -L shows them)");
    }
    named.push_back(*uuid);
  }
  if (named.empty()) return std::optional<std::vector<gpu::Uuid>>();
  return std::optional(std::move(named));
}

}  // namespace

Gpus::Gpus() = default;
Gpus::~Gpus() = default;

Result<std::unique_ptr<Gpus>> Gpus::Open(const Options& options) {
  const auto named = ParseDevices(options.devices);
  if (!named) return tl::unexpected<Error>(named.error());
  std::unique_ptr<Gpus> gpus(new Gpus());
  std::vector<gpu::Device*> all = options.given;
  if (all.empty()) {
    auto cuda = gpu::CudaDevices::Open();
    if (!cuda) return tl::unexpected<Error>(std::move(cuda.error()));
    gpus->cuda_ = std::move(*cuda);
    all = gpus->cuda_->all();
  }
  const auto leave_out = [&](const std::string& name, const std::string& why) {
    gpus->left_out_.push_back(name + ": " + why);
  };
  for (gpu::Device* device : all) {
    const gpu::Uuid& uuid = device->info().uuid;
    if (*named && std::find((*named)->begin(), (*named)->end(), uuid) == (*named)->end()) {
      leave_out(uuid.ToString(), "not among gpu-devices");
      continue;
    }
    if (gpus->devices_.size() == storage::kMaxDevices) {
      leave_out(uuid.ToString(), "more devices than a server uses");
      continue;
    }
    // Makes its context as well, which takes a while.
    const auto memory = device->Memory();
    if (!memory) {
      leave_out(uuid.ToString(), memory.error().message);
      continue;
    }
    if (memory->free_bytes < options.memory_bytes) {
      Log(LogLevel::kWarning, "GPU {} has {} bytes free, fewer than gpu-memory", uuid.ToString(),
          memory->free_bytes);
    }
    gpus->devices_.push_back(device);
    gpus->memories_.push_back(std::make_unique<GpuMemory>(device));
  }
  if (*named) {
    for (const gpu::Uuid& uuid : **named) {
      const bool here = std::any_of(all.begin(), all.end(), [&](const gpu::Device* device) {
        return device->info().uuid == uuid;
      });
      if (!here) leave_out(uuid.ToString(), "there is no such device here");
    }
  }
  if (gpus->devices_.empty()) {
    std::string why = "no GPU can be used";
    for (const std::string& left_out : gpus->left_out_) why += "; " + left_out;
    return Fail(ErrorCode::kUnavailable, std::move(why));
  }
  return gpus;
}

std::vector<storage::DeviceMemory*> Gpus::memories() const {
  std::vector<storage::DeviceMemory*> memories;
  for (const auto& memory : memories_) memories.push_back(memory.get());
  return memories;
}

}  // namespace moonpool::server
