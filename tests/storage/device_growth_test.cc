#include "storage/device_growth.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "protocol/mutex.h"
#include "storage/clock.h"
#include "tests/protocol/random.h"
#include "tests/storage/fake_device.h"
#include "tests/storage/store.h"

namespace moonpool::storage {
namespace {

using State = DeviceGrowth::State;
using test::Random;

constexpr int64_t kNever = INT64_MAX / 4;

class DeviceGrowthTest : public testing::Test {
 protected:
  ~DeviceGrowthTest() override {
    for (size_t i = 0; i < kDevices; ++i) Hold(i, false);
  }
  void Hold(size_t device, bool hold) {
    MutexLock lock(mu_);
    held_[device] = hold;
    changed_.NotifyAll();
  }
  void Made(size_t device) {
    MutexLock lock(mu_);
    ++begun_[device];
    changed_.NotifyAll();
    while (held_[device]) changed_.Wait(mu_);
    ++made_[device];
  }
  int begun(size_t device) {
    MutexLock lock(mu_);
    return begun_[device];
  }
  void AwaitBegun(size_t device) {
    MutexLock lock(mu_);
    while (begun_[device] == 0) changed_.Wait(mu_);
  }
  void Wait(char name, DeviceSet devices, int64_t since_ms = 0, int64_t until_ms = kNever) {
    growth_.Wait(devices, since_ms, until_ms, [this, name] {
      MutexLock lock(mu_);
      called_ += name;
    });
  }
  std::string called() {
    MutexLock lock(mu_);
    return called_;
  }
  void AwaitCalled(const std::string& names) {
    EXPECT_TRUE(Eventually([&] { return called() == names; }));
  }

  static constexpr size_t kDevices = 2;
  Mutex mu_;
  CondVar changed_;
  std::array<bool, kDevices> held_ GUARDED_BY(mu_) = {};
  std::array<int, kDevices> begun_ GUARDED_BY(mu_) = {};
  std::array<int, kDevices> made_ GUARDED_BY(mu_) = {};
  std::atomic<int> probes_{0};
  std::string called_ GUARDED_BY(mu_);
  DeviceGrowth growth_{
      kDevices, {[this](size_t device, uint64_t) { Made(device); }, [this](size_t) { ++probes_; }}};
};

TEST_F(DeviceGrowthTest, WhoWaitsIsCalledWhenItIsDoneAndNotBefore) {
  Hold(0, true);
  EXPECT_EQ(growth_.state(0), State::kIdle);
  EXPECT_TRUE(growth_.Start(0, 1));
  EXPECT_FALSE(growth_.Start(0, 1)) << "one at a time";
  EXPECT_EQ(growth_.state(0), State::kGrowing);
  AwaitBegun(0);
  Wait('b', 1, 20);
  Wait('a', 1, 10);
  Wait('c', 1, 20);
  growth_.Tick(1000);
  EXPECT_EQ(growth_.waiting(), 3u);
  EXPECT_EQ(called(), "");
  Hold(0, false);
  AwaitCalled("abc");
  EXPECT_EQ(growth_.waiting(), 0u);
  EXPECT_EQ(growth_.state(0), State::kIdle);
}

// It was done between the look and the wait.
TEST_F(DeviceGrowthTest, AWakeUpIsNotLost) {
  Wait('a', 1);
  EXPECT_EQ(called(), "a");
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  Wait('b', 3);  // the second is not growing
  EXPECT_EQ(called(), "ab");
  EXPECT_EQ(growth_.waiting(), 0u);
}

TEST_F(DeviceGrowthTest, DevicesDoNotWaitForEachOther) {
  Hold(0, true);
  Hold(1, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  EXPECT_TRUE(growth_.Start(1, 1));
  AwaitBegun(0);
  Wait('0', 1);
  Wait('1', 2);
  Wait('x', 3);
  Hold(1, false);
  AwaitCalled("1x");
  EXPECT_EQ(growth_.state(0), State::kGrowing);
  EXPECT_EQ(growth_.state(1), State::kIdle);
  EXPECT_EQ(growth_.waiting(), 1u);
  Hold(0, false);
  AwaitCalled("1x0");
}

TEST_F(DeviceGrowthTest, WhoWaitedInVainIsCalledAndTheDeviceIsSilent) {
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  AwaitBegun(0);
  const int64_t now_ms = UnixMs();
  // Others had their turn for most of that time.
  Wait('a', 1, now_ms - 1'000'000, now_ms);
  growth_.Tick(now_ms - 1);
  EXPECT_EQ(called(), "");
  growth_.Tick(now_ms);
  EXPECT_EQ(called(), "a");
  EXPECT_EQ(growth_.state(0), State::kGrowing);
  Wait('b', 1, now_ms, now_ms + 1000);
  Wait('c', 1, now_ms, now_ms + 2000);
  growth_.Tick(now_ms + 1000);
  EXPECT_EQ(called(), "ab");
  EXPECT_EQ(growth_.state(0), State::kSilent);
  EXPECT_FALSE(growth_.Start(0, 1));
  // Until it answers.
  Hold(0, false);
  AwaitCalled("abc");
  EXPECT_EQ(growth_.state(0), State::kIdle);
  EXPECT_TRUE(growth_.Start(0, 1));
}

TEST_F(DeviceGrowthTest, AStopCallsAllOnceAndWaitsForNoDevice) {
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  AwaitBegun(0);
  Wait('a', 1);
  EXPECT_FALSE(growth_.AwaitIdle(std::chrono::milliseconds(0)));
  growth_.Stop();
  EXPECT_EQ(called(), "a");
  EXPECT_FALSE(growth_.Start(1, 1));
  Wait('b', 1);
  EXPECT_EQ(called(), "ab");
  growth_.Stop();
  Hold(0, false);
  EXPECT_TRUE(growth_.AwaitIdle(kPatience));
  EXPECT_EQ(called(), "ab");
}

TEST_F(DeviceGrowthTest, ADeviceIsProbedByItsOwnThread) {
  growth_.Probe(0);
  EXPECT_TRUE(Eventually([&] { return probes_ == 1; }));
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  AwaitBegun(0);
  growth_.Probe(0);  // it is busy
  growth_.Probe(1);
  EXPECT_TRUE(Eventually([&] { return probes_ == 2; }));
  Hold(0, false);
  EXPECT_TRUE(growth_.AwaitIdle(kPatience));
  growth_.Probe(0);
  EXPECT_TRUE(Eventually([&] { return probes_ == 3; }));
}

TEST_F(DeviceGrowthTest, RegionsGoOnTheDevicesThread) {
  FakeDevice device(0);
  auto region = Region::CreateOnDevice(1, device, 0, 2 << 20);
  ASSERT_TRUE(region);
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  AwaitBegun(0);
  growth_.Discard(0, std::shared_ptr<Region>(std::move(*region)));
  EXPECT_GT(device.allocated(), 0u);
  Hold(0, false);
  EXPECT_TRUE(Eventually([&] { return device.allocated() == 0; }));
}

TEST_F(DeviceGrowthTest, TasksAreTheDevicesThreadsAfterRegionsThatAreWaitedFor) {
  std::atomic<int> done{0};
  std::thread::id by;
  growth_.Do(0, [&] {
    by = std::this_thread::get_id();
    ++done;
  });
  EXPECT_TRUE(Eventually([&] { return done == 1; }));
  EXPECT_NE(by, std::this_thread::get_id());
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  AwaitBegun(0);
  for (int i = 0; i < 3; ++i) growth_.Do(0, [&] { ++done; });
  growth_.Do(1, [&] { ++done; });
  EXPECT_TRUE(Eventually([&] { return done == 2; })) << "the other device's";
  EXPECT_EQ(growth_.state(0), State::kGrowing);
  Hold(0, false);
  EXPECT_TRUE(Eventually([&] { return done == 5; }));
  // One that is not begun when all stops is not begun at all.
  Hold(0, true);
  EXPECT_TRUE(growth_.Start(0, 1));
  EXPECT_TRUE(Eventually([&] { return begun(0) == 2; }));
  growth_.Do(0, [&] { ++done; });
  growth_.Stop();
  Hold(0, false);
  EXPECT_TRUE(growth_.AwaitIdle(kPatience));
  EXPECT_EQ(done, 5);
}

// Each who waits is called, and once.
TEST_F(DeviceGrowthTest, ManyWaitAndNobodyIsForgotten) {
  Random random;
  SCOPED_TRACE(random.Replay());
  constexpr int kThreads = 4, kSteps = 2000;
  std::vector<std::atomic<int>> calls(kThreads * kSteps);
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number, seed = random.Next()] {
      Random mine(seed);
      for (int step = 0; step < kSteps; ++step) {
        if (mine.Chance(0.5)) growth_.Start(mine.Below(2), 1);
        growth_.Wait(1 + static_cast<DeviceSet>(mine.Below(3)), step, kNever,
                     [&, which = number * kSteps + step] {
                       ++calls[static_cast<size_t>(which)];
                       ++done;
                     });
        if (mine.Chance(0.1)) growth_.Tick(step);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(Eventually([&] { return done == kThreads * kSteps; }));
  growth_.Stop();
  for (const auto& called : calls) EXPECT_EQ(called, 1);
}

}  // namespace
}  // namespace moonpool::storage
