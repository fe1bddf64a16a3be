// What the tests that run on the host double and on a GPU share: the device, and bytes in and out.
//
// Threads: one at a time.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/cuda.h"
#include "gpu/host_device.h"
#include "tests/protocol/random.h"

namespace moonpool::gpu {

enum class Kind { kDouble, kCuda };

// The GPUs of this process; null, and why, without any.  Opened once and never closed: when the
// process ends the driver may be gone before.
inline CudaDevices* Gpus(std::string* why) {
  static const auto& devices = *new Result<std::unique_ptr<CudaDevices>>(CudaDevices::Open());
  if (devices) return devices->get();
  *why = devices.error().message;
  return nullptr;
}

// One test body on both: `INSTANTIATE_DEVICES(MyTest)`.
class DeviceTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam() == Kind::kDouble) {
      HostDeviceOptions options;
      options.seed = random.Next();
      options.pinned_offset = 1l << 46;
      options.pins_read_only = pins_read_only;
      options.hidden = hidden;
      doubles_ = MakeHostDevices(options);
      device = doubles_[0].get();
      return;
    }
    std::string why;
    CudaDevices* const gpus = Gpus(&why);
    if (gpus == nullptr) GTEST_SKIP() << why << "; the host double covers the logic";
    device = gpus->all()[0];
  }

  std::string Bytes(size_t size) { return random.Bytes(size); }

  // Device memory with these bytes in it.
  std::unique_ptr<DeviceBlock> OnDevice(const std::string& bytes) {
    auto block = device->NewDeviceBlock(bytes.size());
    EXPECT_TRUE(block) << block.error().message;
    Put((*block)->data(), bytes);
    return std::move(*block);
  }
  // Pinned host memory with these bytes in it.
  std::unique_ptr<HostBlock> OnHost(const std::string& bytes) {
    auto block = device->NewHostBlock(bytes.size());
    EXPECT_TRUE(block) << block.error().message;
    std::memcpy((*block)->data(), bytes.data(), bytes.size());
    return std::move(*block);
  }
  // Bytes that a copy must overwrite.
  static std::string Poison(size_t size) { return std::string(size, '\xa5'); }

  void Put(char* to, const std::string& bytes) { Move(to, bytes.data(), bytes.size()); }
  std::string Get(const char* from, size_t size) {
    std::string bytes = Poison(size);
    Move(bytes.data(), from, size);
    return bytes;
  }

  // Submits and waits.
  Completion Run(CopyBatch batch) {
    auto completion = std::move(batch).Submit();
    EXPECT_TRUE(completion) << completion.error().message;
    const Status done = completion->Wait();
    EXPECT_TRUE(done) << done.error().message;
    return std::move(*completion);
  }

  test::Random random;
  Device* device = nullptr;
  // Of the double: before SetUp().
  bool pins_read_only = true;
  bool hidden = true;  // what runs on a GPU too must not look into device memory by itself

 private:
  void Move(char* to, const char* from, size_t bytes) {
    auto stream = device->NewStream();
    ASSERT_TRUE(stream) << stream.error().message;
    const Status copied = device->CopyOne((*stream)->ref(), {to, from, bytes});
    ASSERT_TRUE(copied) << copied.error().message;
    const Status drained = device->Drain((*stream)->ref());
    ASSERT_TRUE(drained) << drained.error().message;
  }

  std::vector<std::unique_ptr<HostDevice>> doubles_;
};

inline std::string KindName(const testing::TestParamInfo<Kind>& info) {
  return info.param == Kind::kDouble ? "HostDouble" : "Cuda";
}

#define INSTANTIATE_DEVICES(suite)                                                        \
  INSTANTIATE_TEST_SUITE_P(                                                               \
      On, suite,                                                                          \
      testing::Values(::moonpool::gpu::Kind::kDouble, ::moonpool::gpu::Kind::kCuda),      \
      ::moonpool::gpu::KindName)

}  // namespace moonpool::gpu
