// The rows of `moonpool-bench gpu-server` with a server and GPUs that are doubles: that every row
// moves the bytes its name says, and notices those that are wrong or came another way.
#include <gtest/gtest.h>

#include <ctime>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/gpu_devices.h"
#include "gpu/host_device.h"
#include "tests/client/live_server.h"
#include "tools/bench/gpu_server_rows.h"

namespace moonpool::bench {
namespace {

// Copies by the double; on demand it spoils the last byte of each that goes one way.
class RawDouble : public RawCopies {
 public:
  enum class Spoils { kNothing, kToHost, kToDevice };

  RawDouble(gpu::Device* device, Spoils spoils)
      : device_(*device), spoils_(spoils), stream_(*device->NewStream()) {}

  char* DeviceMemory(uint64_t bytes) override {
    device_blocks_.push_back(*device_.NewDeviceBlock(bytes));
    return device_blocks_.back()->data();
  }
  char* PinnedMemory(uint64_t bytes) override {
    host_blocks_.push_back(*device_.NewHostBlock(bytes));
    return host_blocks_.back()->data();
  }
  void Poison(char* to, uint64_t bytes) override {
    const std::string poison(bytes, '\xa5');
    Copy(to, poison.data(), bytes);
    Wait();
  }
  void Copy(void* to, const void* from, uint64_t bytes) override {
    const gpu::Piece piece{static_cast<char*>(to), static_cast<const char*>(from), bytes};
    const Status copied = device_.CopyOne(stream_->ref(), piece);
    ASSERT_TRUE(copied) << copied.error().message;
    const Spoils way = Pinned(to) ? Spoils::kToHost : Spoils::kToDevice;
    if (way != spoils_ || (way == Spoils::kToDevice && !Pinned(from))) return;
    Wait();
    static_cast<char*>(to)[bytes - 1] ^= 1;
  }
  void Wait() override {
    const Status drained = device_.Drain(stream_->ref());
    ASSERT_TRUE(drained) << drained.error().message;
  }
  void* stream() override { return stream_->ref().handle; }

 private:
  bool Pinned(const void* address) const {
    const auto* const at = static_cast<const char*>(address);
    return std::any_of(host_blocks_.begin(), host_blocks_.end(), [at](const auto& block) {
      return at >= block->data() && at < block->data() + block->bytes();
    });
  }

  gpu::Device& device_;
  const Spoils spoils_;
  const std::unique_ptr<gpu::Stream> stream_;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> device_blocks_;
  std::vector<std::unique_ptr<gpu::HostBlock>> host_blocks_;
};

class GpuServerRowsTest : public testing::Test {
 protected:
  void SetUp() override {
    shape.small_bytes = 64 << 10;
    shape.medium_bytes = 256 << 10;
    shape.large_bytes = 1'000'000;
    shape.bytes_per_size = 8 << 20;
    shape.seconds = 0;
    shape.calls = 2;
    shape.reps = 2;
    ours_ = gpu::MakeHostDevices({});
    theirs_ = gpu::MakeHostDevices({.hidden = true});
    client::ReplaceGpuDevices({ours_[0].get()});
    Start({{"gpu-memory", "128mb"}});
  }
  void TearDown() override {
    server_ = nullptr;
    client::ReplaceGpuDevices({});
  }
  void Start(LiveServer::Settings settings) {
    server_ = nullptr;
    server_ = std::make_unique<LiveServer>(settings, 0, nullptr,
                                           std::vector<gpu::Device*>{theirs_[0].get()});
  }

  std::string Run(const std::string& wanted,
                  RawDouble::Spoils spoils = RawDouble::Spoils::kNothing) {
    RawDouble raw(ours_[0].get(), spoils);
    MeasuredRows rows(GpuServerRowTable(), wanted);
    const GpuServerSide side{"moonpool://127.0.0.1:" + std::to_string(server_->port()),
                             [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }};
    std::string failed = GpuServerRows(shape, side, raw, rows).Run();
    measured = rows.Ordered();
    return failed;
  }

  GpuServerShape shape;
  std::vector<Row> measured;

 private:
  std::vector<std::unique_ptr<gpu::HostDevice>> ours_;
  std::vector<std::unique_ptr<gpu::HostDevice>> theirs_;
  std::unique_ptr<LiveServer> server_;
};

TEST_F(GpuServerRowsTest, EveryRow) {
  EXPECT_EQ(Run(""), "");
  ASSERT_EQ(measured.size(), GpuServerRowTable().size());
  for (const Row& row : measured) {
    SCOPED_TRACE(row.id);
    ASSERT_TRUE(row.ours);
    // Of latencies the difference is told, which may be anything here.
    if (row.id.starts_with("added-")) {
      EXPECT_GT(row.details["a call"]["ours us"].get<double>(), 0);
      EXPECT_GT(row.details["a call"]["raw us"].get<double>(), 0);
    } else {
      EXPECT_GT(*row.ours, 0);
      ASSERT_TRUE(row.theirs);
      EXPECT_GT(*row.theirs, 0);
    }
    for (const char* trouble : {"fallbacks", "values that could not be pinned", "GPU error"}) {
      EXPECT_FALSE(row.details.contains(trouble)) << row.details.dump();
    }
  }
  const std::string table = Table(measured);
  for (const Row& row : measured) EXPECT_NE(table.find(row.name), std::string::npos) << row.name;
}

TEST_F(GpuServerRowsTest, OnlyWhatIsWanted) {
  EXPECT_EQ(Run("^to-host"), "");
  ASSERT_EQ(measured.size(), 2u);
  EXPECT_EQ(measured[0].id, "to-host-1m");
}

TEST_F(GpuServerRowsTest, NoRowBeginsTooLate) {
  shape.most_seconds = 1e-9;
  EXPECT_EQ(Run("^put"), "NOT RUN: put-1m: out of time\nNOT RUN: put-100m: out of time\n");
  EXPECT_TRUE(measured.empty());
}

TEST_F(GpuServerRowsTest, WrongBytesAreNoticed) {
  for (const std::string id : {"pull-1m", "get-100m", "to-device-1m"}) {
    EXPECT_EQ(Run("^" + id + "$", RawDouble::Spoils::kToHost),
              "FAILED: " + id + ": wrong bytes after " + id + "\n");
    EXPECT_TRUE(measured.empty());
  }
  // Of one byte that is other than it should be when a value is put.
  for (const std::string id : {"put-1m", "to-host-100m"}) {
    EXPECT_EQ(Run("^" + id + "$", RawDouble::Spoils::kToDevice),
              "FAILED: " + id + ": wrong bytes after " + id + "\n");
    EXPECT_TRUE(measured.empty());
  }
}

TEST_F(GpuServerRowsTest, AnotherWayIsNoticed) {
  // There is no room for all of them: some are in host memory.
  Start({{"gpu-memory", "2mb"}});
  for (const std::string id : {"get-1m", "put-1m"}) {
    const std::string failed = Run("^" + id + "$");
    EXPECT_NE(failed.find("a value went another way"), std::string::npos) << failed;
    EXPECT_TRUE(measured.empty());
  }
}

TEST_F(GpuServerRowsTest, WhatFailsCostsItsOwnRow) {
  Start({{"gpu-memory", "0"}});
  const std::string failed = Run("^(get|put|to-device)-1m$");
  EXPECT_NE(failed.find("FAILED: get-1m: "), std::string::npos) << failed;
  EXPECT_NE(failed.find("FAILED: put-1m: "), std::string::npos) << failed;
  ASSERT_EQ(measured.size(), 1u);
  EXPECT_EQ(measured[0].id, "to-device-1m");
}

}  // namespace
}  // namespace moonpool::bench
