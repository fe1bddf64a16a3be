// Sessions that are lost while a device writes for them into memory of the server's devices: until
// that is over, nobody else has the memory.  The client's process lives, so it is the library that
// tells.
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <moonpool/gpu.h>

#include "tests/client/gpu_rig.h"

namespace moonpool::client {
namespace {

constexpr size_t kBytes = 200'000;
constexpr uint64_t kOthers = 80;  // twice what the server's device holds

class GpuLateWrites : public GpuClientTest {
 protected:
  void SetUp() override {
    GpuClientTest::SetUp();
    client = nullptr;
    server = nullptr;
    theirs_ = gpu::MakeHostDevices({});
    server = std::make_unique<LiveServer>(
        LiveServer::Settings{{"gpu-memory", "8mb"}, {"lease-default", "0"}}, 0, nullptr,
        std::vector<gpu::Device*>{theirs_[0].get()});
    client = server->Connect("connections=1&transport=shm&timeout_ms=1000");
    observer = server->Connect("gpu=no");
    prefer.prefer = "gpu";
    value = Stamped(kBytes, 1);
    source = OnDevice(value);
    ASSERT_EQ(PutOnGpu("before").transport, Transport::kCuda);
    session = Run(*client, {"CLIENT", "ID"});
  }
  void TearDown() override {
    if (device != nullptr) Double().Resume();
    observer = nullptr;
    GpuClientTest::TearDown();
    theirs_.clear();
  }

  static std::string Run(Client& from, const std::vector<std::string_view>& words) {
    std::string reply;
    EXPECT_TRUE(from.Command(words, &reply).ok());
    return reply.substr(0, reply.find('\n'));
  }
  KeyResult PutOnGpu(std::string_view key) {
    const ConstBuffer buffer{source->data(), kBytes};
    return client->BatchPutFrom(std::span(&key, 1), std::span(&buffer, 1), prefer)[0];
  }
  uint64_t Launches() { return Double().counts().one + Double().counts().many; }
  uint64_t late_bytes() { return server->tenant().pool().late_bytes(); }
  void KillTheSession() {
    EXPECT_EQ(Run(*observer, {"CLIENT", "KILL", "ID", session}), "1");
    EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  }
  // Others' values, which the server moves to where there is room on its device.
  void FillTheDevice() {
    for (uint64_t i = 0; i < kOthers; ++i) {
      const std::string key = "other" + std::to_string(i);
      ASSERT_TRUE(observer->Set(key, Stamped(kBytes, 1000 + i)).ok());
      ASSERT_EQ(Run(*observer, {"KV.PREFETCH", "1", key, "PREFER", "gpu"}), "1");
    }
    const storage::MemoryBudget& budget = server->tenant().gpu_budget(0);
    EXPECT_TRUE(Eventually([&] {
      return server->tenant().gpu()->queued_bytes() == 0 &&
             budget.used_bytes() > budget.limit() * 3 / 4;
    }));
    EXPECT_EQ(late_bytes(), (kBytes + 4095) / 4096 * 4096);
  }
  void OthersAreWhole() {
    for (uint64_t i = 0; i < kOthers; ++i) {
      std::string got;
      ASSERT_TRUE(observer->Get("other" + std::to_string(i), &got).ok());
      EXPECT_TRUE(got == Stamped(kBytes, 1000 + i)) << i;
    }
  }
  // The device goes on, the client says so, and everything is as it was.
  void CheckTheEnd() {
    Double().Resume();
    EXPECT_TRUE(Eventually([&] { return late_bytes() == 0; }));
    EXPECT_TRUE(Double().still());
    OthersAreWhole();
    EXPECT_EQ(observer->Exists("late").code, Code::kMiss);
    EXPECT_TRUE(Eventually([&] { return PutOnGpu("late").transport == Transport::kCuda; }));
    std::string got;
    ASSERT_TRUE(observer->Get("late", &got).ok());
    EXPECT_TRUE(got == value);
  }

  PutOptions prefer;
  std::unique_ptr<Client> observer;
  std::string value, session;
  std::unique_ptr<gpu::DeviceBlock> source;

 private:
  std::vector<std::unique_ptr<gpu::HostDevice>> theirs_;
};

TEST_P(GpuLateWrites, OfTransfersOnAStream) {
  auto stream = device->NewStream();
  ASSERT_TRUE(stream);
  const std::string_view keys[] = {"late"};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), kBytes}}};
  Double().Pause();
  GpuTransfer put = PutOnStream(*client, (*stream)->ref().handle, keys, from, prefer);
  KillTheSession();
  FillTheDevice();
  EXPECT_FALSE(put.Done());
  CheckTheEnd();
  EXPECT_TRUE(Eventually([&] { return put.Done(); }));
  EXPECT_EQ(put.result(0).code, Code::kUnavailable) << put.result(0).message;
}

TEST_P(GpuLateWrites, OfWritesThatWereGivenUp) {
  Double().Pause();
  EXPECT_EQ(PutOnGpu("late").code, Code::kTimeout);
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  KillTheSession();
  FillTheDevice();
  CheckTheEnd();
}

// The call is in the midst of it, and finds that its session is gone when it wants to commit.
TEST_P(GpuLateWrites, OfWritesThatAreWaitedFor) {
  client = server->Connect("connections=1&transport=shm");
  ASSERT_EQ(PutOnGpu("before").transport, Transport::kCuda);
  session = Run(*client, {"CLIENT", "ID"});
  Double().Pause();
  const uint64_t before = Launches();
  std::thread writer([&] { (void)PutOnGpu("written"); });
  EXPECT_TRUE(Eventually([&] { return Launches() > before; }));
  KillTheSession();
  FillTheDevice();
  Double().Resume();
  writer.join();
  CheckTheEnd();
}

INSTANTIATE_TEST_SUITE_P(On, GpuLateWrites, testing::Values(gpu::Kind::kDouble), gpu::KindName);

}  // namespace
}  // namespace moonpool::client
