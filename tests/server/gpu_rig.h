// A server with devices, the doubles or GPUs, and a raw client that has a device, too.
//
// Threads: one at a time.
#pragma once

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gpu/copy_batch.h"
#include "tests/client/raw_session.h"
#include "tests/client/stamped_block.h"
#include "tests/gpu/device_under_test.h"

namespace moonpool::client {

inline constexpr size_t kLength = 200'000;

inline std::string Stamped(uint64_t key, uint64_t version = 1, size_t length = kLength) {
  std::string bytes(length, '\0');
  FillStamped(bytes.data(), bytes.size(), {key, version});
  return bytes;
}

inline std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

// Two doubles.  Those of another call have the same UUIDs, and know nothing of these.
inline std::vector<std::unique_ptr<gpu::HostDevice>> Doubles() {
  gpu::HostDeviceOptions options;
  options.devices = 2;
  options.hidden = true;
  return gpu::MakeHostDevices(options);
}

// A client of the raw sort that has a device: what libmoonpool does with one, by hand.
class GpuSession : public RawSession {
 public:
  GpuSession(LiveServer& server, gpu::Kind kind,
             std::vector<std::string_view> hello = {"TRANSPORTS", "2", "shm", "cuda"})
      : RawSession(server, std::move(hello)) {
    if (kind == gpu::Kind::kDouble) {
      doubles_ = Doubles();  // its own, as another process has
      for (const auto& device : doubles_) devices_.push_back(device.get());
      return;
    }
    std::string why;
    devices_ = gpu::Gpus(&why)->all();
  }

  gpu::DeviceRegion* Import(uint32_t id) {
    auto& region = regions_[id];
    if (region != nullptr) return region.get();
    Region wanted = Want(id);
    message_ = wanted.message;
    if (wanted.message.tier != protocol::Tier::kGpu) return nullptr;
    gpu::RegionHandle handle;
    handle.kind = static_cast<gpu::HandleKind>(wanted.message.handle);
    handle.device.bytes = wanted.message.device;
    handle.bytes = wanted.message.bytes;
    handle.opaque = wanted.message.opaque;
    for (gpu::Device* const device : devices_) {
      if (device->info().uuid != handle.device) continue;
      auto imported = device->Import(handle, wanted.fd.get());
      EXPECT_TRUE(imported) << imported.error().message;
      if (imported) region = std::move(*imported);
    }
    return region.get();
  }
  const AttachMessage& message() const { return message_; }

  void Copy(void* to, const void* from, size_t bytes) {
    gpu::CopyBatch batch(devices_[0]);
    batch.Copy(batch.AddKey(nullptr, 0), {to, from, bytes});
    auto completion = std::move(batch).Submit();
    ASSERT_TRUE(completion) << completion.error().message;
    ASSERT_TRUE(completion->Wait());
  }
  // KV.ALLOC ... PREFER, a copy to the device, KV.COMMIT.  The device's UUID; empty: it was in
  // DRAM.
  std::string Put(std::string_view key, const std::string& bytes, std::string_view prefer = "gpu") {
    const Allocation allocation = Alloc(key, bytes.size(), prefer);
    gpu::DeviceRegion* const region = Import(allocation.region);
    EXPECT_NE(region, nullptr);
    if (region == nullptr) return "";
    Copy(region->data() + allocation.offset, bytes.data(), bytes.size());
    EXPECT_EQ(Run({"KV.COMMIT", "1", key, allocation.token, "-"}), "OK");
    return region->device().ToString();
  }

  struct Located {
    uint32_t region = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint32_t slot = 0;
    uint64_t generation = 0;
    std::string tier;
  };
  Located Locate(std::string_view key) {
    const auto lines = Lines(Run({"KV.LOCATE", "1", key}));
    if (lines.size() != 9) return {};
    return {
        static_cast<uint32_t>(std::stoul(lines[0])), std::stoull(lines[1]), std::stoull(lines[2]),
        static_cast<uint32_t>(std::stoul(lines[3])), std::stoull(lines[4]), lines[6]};
  }
  // Its bytes, copied out of the device.
  std::string Pull(const Located& located) {
    gpu::DeviceRegion* const region = Import(located.region);
    EXPECT_NE(region, nullptr);
    if (region == nullptr) return "";
    std::string bytes(located.length, '\0');
    Copy(bytes.data(), region->data() + located.offset, bytes.size());
    return bytes;
  }
  uint64_t Generation(uint32_t slot) {
    uint64_t generation = 0;
    EXPECT_EQ(pread(generations(), &generation, sizeof(generation),
                    static_cast<off_t>(slot * sizeof(generation))),
              static_cast<ssize_t>(sizeof(generation)));
    return generation;
  }

 private:
  std::vector<std::unique_ptr<gpu::HostDevice>> doubles_;
  std::vector<gpu::Device*> devices_;
  std::map<uint32_t, std::unique_ptr<gpu::DeviceRegion>> regions_;
  AttachMessage message_;
};

class GpuServerTest : public testing::TestWithParam<gpu::Kind> {
 protected:
  GpuServerTest() {
    // The thread sanitizer does not see into its library: no thread is to be the first that logs.
    spdlog::default_logger();
  }
  // False: there are not so many devices here.
  bool HasDevices(size_t count) {
    if (GetParam() == gpu::Kind::kDouble) {
      if (doubles_.empty()) doubles_ = Doubles();
      for (size_t i = devices_.size(); i < count; ++i) devices_.push_back(doubles_[i].get());
      return true;
    }
    std::string why;
    gpu::CudaDevices* const gpus = gpu::Gpus(&why);
    if (gpus == nullptr || gpus->all().size() < count) return false;
    devices_.assign(gpus->all().begin(), gpus->all().begin() + static_cast<ptrdiff_t>(count));
    return true;
  }
  void Start(LiveServer::Settings settings = {{"gpu-memory", "64mb"}},
             std::function<Result<UniqueFd>(int)> peer_process = nullptr) {
    server_ = std::make_unique<LiveServer>(settings, 0, nullptr, devices_, std::move(peer_process));
  }
  gpu::Kind kind() const { return GetParam(); }
  uint64_t used() { return server_->tenant().gpu_budget(0).used_bytes(); }
  uint64_t late_bytes() { return server_->tenant().pool().late_bytes(); }
  std::string Uuid(size_t i = 0) { return devices_[i]->info().uuid.ToString(); }
  std::string TierOf(RawSession& session, std::string_view key) {
    const auto lines = Lines(session.Run({"KV.INFO", key}));
    const auto at = std::find(lines.begin(), lines.end(), "tier");
    return at == lines.end() ? "" : *(at + 1);
  }
  std::string Info(RawSession& session, const std::string& row, const char* section = "tiers") {
    const std::string info = session.Run({"INFO", section});
    const size_t at = info.find(row + ":");
    EXPECT_NE(at, std::string::npos) << row << " in " << info;
    if (at == std::string::npos) return "";
    const size_t start = at + row.size() + 1;
    return info.substr(start, info.find('\r', start) - start);
  }

  std::vector<std::unique_ptr<gpu::HostDevice>> doubles_;
  std::vector<gpu::Device*> devices_;
  std::unique_ptr<LiveServer> server_;
};

#define NEED_DEVICES(count) \
  if (!HasDevices(count)) GTEST_SKIP() << "there are not " << (count) << " GPUs here"

}  // namespace moonpool::client
