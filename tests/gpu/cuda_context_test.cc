// What CUDA programs around the library notice of it: nothing.  In builds with CUDA.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu/device_under_test.h"

namespace moonpool::gpu {
namespace {

class CudaContextTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(On, CudaContextTest, testing::Values(Kind::kCuda), KindName);

TEST_P(CudaContextTest, TheCurrentDeviceAndTheLastErrorStayAsTheyWere) {
  int count = 0;
  ASSERT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
  for (int current = 0; current < count; ++current) {
    ASSERT_EQ(cudaSetDevice(current), cudaSuccess);
    std::string why;
    for (Device* each : Gpus(&why)->all()) {
      auto region = each->Allocate(1 << 20, each->BestHandle());
      ASSERT_TRUE(region) << region.error().message;
      EXPECT_TRUE(each->Memory());
      EXPECT_FALSE(each->Allocate(1ull << 50, each->BestHandle()));
      auto block = each->NewDeviceBlock(1 << 20);
      ASSERT_TRUE(block);
      CopyBatch batch(each);
      const size_t key = batch.AddKey(nullptr, 0);
      batch.Copy(key, {(*block)->data(), (*region)->data(), 1000});
      batch.Copy(key, {(*block)->data() + 1000, (*region)->data(), 1000});
      auto done = std::move(batch).Submit();
      ASSERT_TRUE(done) << done.error().message;
      (void)done->Done();
      ASSERT_TRUE(done->Wait());
      int now = -1;
      ASSERT_EQ(cudaGetDevice(&now), cudaSuccess);
      EXPECT_EQ(now, current);
      EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    }
  }
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
}

// A stream of the program's own; its work is ordered with the batch's.
TEST_P(CudaContextTest, TheCallersStream) {
  constexpr size_t kBytes = 8 << 20;
  const std::string bytes = Bytes(kBytes);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  for (const StreamRef ref : {StreamRef{stream}, StreamRef{nullptr}}) {
    const auto source = OnDevice(Poison(kBytes));
    const auto target = OnDevice(Poison(kBytes));
    const auto host = OnHost(bytes);
    const auto seen = OnHost(Poison(kBytes));
    const auto native = static_cast<cudaStream_t>(ref.handle);
    ASSERT_EQ(cudaMemcpyAsync(source->data(), host->data(), kBytes, cudaMemcpyDefault, native),
              cudaSuccess);
    CopyBatch batch(device, ref);
    const size_t key = batch.AddKey(nullptr, 0);
    for (size_t at = 0; at < kBytes; at += 65536) {
      batch.Copy(key, {target->data() + at, source->data() + at, 65536});
    }
    auto done = std::move(batch).Submit();
    ASSERT_TRUE(done) << done.error().message;
    ASSERT_EQ(cudaMemcpyAsync(seen->data(), target->data(), kBytes, cudaMemcpyDefault, native),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(native), cudaSuccess);
    EXPECT_TRUE(std::string(seen->data(), kBytes) == bytes);
    // A layer's event is one of CUDA's.
    EXPECT_EQ(cudaEventQuery(static_cast<cudaEvent_t>(done->layer(0).native())), cudaSuccess);
  }
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_P(CudaContextTest, ThreadsWithoutADevice) {
  std::vector<std::thread> threads;
  const std::string bytes = Bytes(1 << 20);
  const auto source = OnDevice(bytes);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        std::string copied(bytes.size(), '\xa5');
        CopyBatch batch(device);
        const size_t key = batch.AddKey(nullptr, 0);
        batch.Copy(key, {copied.data(), source->data(), bytes.size()});
        auto done = std::move(batch).Submit();
        ASSERT_TRUE(done) << done.error().message;
        ASSERT_TRUE(done->Wait());
        EXPECT_TRUE(copied == bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Nothing that the library does makes a capture fail, in this thread or another; nor is the stream
// itself used.
TEST_P(CudaContextTest, CapturesGoOn) {
  const std::string bytes = Bytes(1 << 20);
  const auto source = OnDevice(bytes);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  const auto use = [&] {
    // What is not in the pools yet: sizes that no other test takes.
    const auto target = device->NewDeviceBlock(48 << 20);
    ASSERT_TRUE(target) << target.error().message;
    const auto staged = device->NewHostBlock(48 << 20);
    ASSERT_TRUE(staged) << staged.error().message;
    std::vector<char> memory(1 << 20);
    const auto pinned = device->Pin(memory.data(), memory.size(), Access::kReadWrite);
    ASSERT_TRUE(pinned) << pinned.error().message;
    ASSERT_TRUE(device->Allocate(1 << 20, device->BestHandle()));
    CopyBatch batch(device);
    batch.Copy(batch.AddKey(nullptr, 0), {memory.data(), source->data(), memory.size()});
    auto done = std::move(batch).Submit();
    ASSERT_TRUE(done) << done.error().message;
    (void)done->Done();
    ASSERT_TRUE(done->Wait());
    EXPECT_EQ(std::memcmp(memory.data(), bytes.data(), memory.size()), 0);
  };
  use();
  std::thread(use).join();
  CopyBatch batch(device, StreamRef{stream});
  batch.Copy(batch.AddKey(nullptr, 0), {source->data(), source->data() + 4096, 4096});
  const auto refused = std::move(batch).Submit();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument) << refused.error().message;
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  size_t nodes = 1;
  EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
  EXPECT_EQ(nodes, 0u);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_P(CudaContextTest, DevicesHaveNamesAndLinks) {
  std::string why;
  const auto& all = Gpus(&why)->all();
  for (Device* one : all) {
    const DeviceInfo& info = one->info();
    EXPECT_NE(info.uuid, Uuid());
    EXPECT_FALSE(info.name.empty());
    EXPECT_GT(info.total_bytes, 0u);
    EXPECT_GE(info.driver_version, 12000);
    EXPECT_EQ(Gpus(&why)->Find(info.uuid), one);
    std::printf(
        "%s %s: sm_%d, %d multiprocessors, posix %d, fabric %d, ipc %d, read-only pins %d\n",
        info.name.c_str(), info.uuid.ToString().c_str(), info.compute_capability,
        info.multiprocessors, info.posix_handles, info.fabric_handles, info.ipc_handles,
        info.pins_read_only);
    for (Device* other : all) {
      std::printf("  link %s\n", std::string(NameOf(one->LinkTo(*other))).c_str());
      EXPECT_EQ(one->LinkTo(*other) == Link::kSame, one == other);
    }
  }
}

}  // namespace
}  // namespace moonpool::gpu
