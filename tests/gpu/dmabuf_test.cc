// Device memory for NICs: the double, and what of it a GPU shows without a NIC.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/device_under_test.h"

namespace moonpool::gpu {
namespace {

class DmabufTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    if (device->info().dmabuf) {
      if (GetParam() == Kind::kDouble) return;
      // What the driver offers, the system it runs in (a sandbox) may still refuse.
      const auto block = OnDevice(Bytes(4096));
      const auto exported = device->ExportDmabuf(block->data(), 4096);
      if (exported) return;
      ASSERT_EQ(exported.error().code, ErrorCode::kUnavailable) << exported.error().message;
      GTEST_SKIP() << exported.error().message;
    }
    EXPECT_EQ(GetParam(), Kind::kCuda);
    char byte = 0;
    EXPECT_EQ(device->ExportDmabuf(&byte, 1).error().code, ErrorCode::kUnavailable);
    EXPECT_EQ(device->FlushRemoteWrites().error().code, ErrorCode::kUnavailable);
    GTEST_SKIP() << device->info().name << " or its driver has no dma-buf";
  }
  // The file reaches to the end of that memory at least, and begins as far into a page as it.
  void ExpectExported(const char* data, uint64_t bytes) {
    const Result<Dmabuf> file = device->ExportDmabuf(data, bytes);
    ASSERT_TRUE(file) << file.error().message;
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    EXPECT_EQ(file->offset % page, reinterpret_cast<uintptr_t>(data) % page);
    // Kernels before 3.12 cannot tell.
    const off_t end = lseek(file->fd.get(), 0, SEEK_END);
    EXPECT_TRUE(end < 0 || end >= static_cast<off_t>(file->offset + bytes)) << end;
    if (GetParam() != Kind::kDouble) return;
    std::string there(bytes, '\0');
    EXPECT_EQ(pread(file->fd.get(), there.data(), bytes, static_cast<off_t>(file->offset)),
              static_cast<ssize_t>(bytes));
    EXPECT_EQ(there, Get(data, bytes));
  }
};

TEST_P(DmabufTest, MemoryIsExportedWholeAndInPart) {
  const auto block = OnDevice(Bytes(3 << 20));
  ExpectExported(block->data(), 3 << 20);
  ExpectExported(block->data(), 1);
  ExpectExported(block->data() + 8192 + 24, 100'000);
  const auto region = device->Allocate(4 << 20, device->BestHandle());
  ASSERT_TRUE(region) << region.error().message;
  Put((*region)->data(), Bytes(4 << 20));
  ExpectExported((*region)->data(), (*region)->bytes());
  ExpectExported((*region)->data() + (3 << 20) + 1, 1000);
}

TEST_P(DmabufTest, AFileKeepsNothingFromBeingFreed) {
  Result<Dmabuf> file;
  {
    const auto region = device->Allocate(2 << 20, device->BestHandle());
    ASSERT_TRUE(region) << region.error().message;
    file = device->ExportDmabuf((*region)->data(), (*region)->bytes());
    ASSERT_TRUE(file) << file.error().message;
  }
  EXPECT_TRUE(device->Allocate(2 << 20, device->BestHandle()));
}

TEST_P(DmabufTest, HostMemoryIsNot) {
  std::vector<char> memory(1 << 20);
  EXPECT_EQ(device->ExportDmabuf(memory.data(), memory.size()).error().code,
            ErrorCode::kUnavailable);
}

TEST_P(DmabufTest, WhatIsThereStaysWhenItIsFlushed) {
  const std::string bytes = Bytes(1 << 20);
  const auto block = OnDevice(bytes);
  const Status flushed = device->FlushRemoteWrites();
  EXPECT_TRUE(flushed) << flushed.error().message;
  EXPECT_EQ(Get(block->data(), bytes.size()), bytes);
}

INSTANTIATE_DEVICES(DmabufTest);

TEST(DmabufOfTheDouble, WhatANicWritesIsThereWhenItIsFlushed) {
  const auto devices = MakeHostDevices({.devices = 2});
  const auto block = std::move(*devices[0]->NewDeviceBlock(100));
  std::memset(block->data(), 'a', 100);
  devices[0]->HoldUntilFlush([&] { std::memset(block->data(), 'b', 100); });
  ASSERT_TRUE(devices[1]->FlushRemoteWrites());
  EXPECT_EQ(block->data()[0], 'a');
  ASSERT_TRUE(devices[0]->FlushRemoteWrites());
  EXPECT_EQ(block->data()[0], 'b');
  EXPECT_EQ(devices[0]->counts().flushes, 1u);
  // Of another device, it is not this one's.
  EXPECT_FALSE(devices[1]->ExportDmabuf(block->data(), 100));
  // Beyond its end.
  EXPECT_FALSE(devices[0]->ExportDmabuf(block->data(), 101));
}

TEST(DmabufOfTheDouble, WithoutTheCapabilityThereIsNone) {
  const auto devices = MakeHostDevices({.dmabuf = false});
  EXPECT_FALSE(devices[0]->info().dmabuf);
  const auto block = std::move(*devices[0]->NewDeviceBlock(100));
  EXPECT_EQ(devices[0]->ExportDmabuf(block->data(), 100).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(devices[0]->FlushRemoteWrites().error().code, ErrorCode::kUnavailable);
}

TEST(DmabufOfTheDouble, ALostDeviceFails) {
  const auto devices = MakeHostDevices();
  const auto block = std::move(*devices[0]->NewDeviceBlock(100));
  std::memset(block->data(), 'a', 100);
  devices[0]->HoldUntilFlush([&] { std::memset(block->data(), 'b', 100); });
  devices[0]->LoseAfter(0);
  EXPECT_FALSE(devices[0]->ExportDmabuf(block->data(), 100));
  EXPECT_FALSE(devices[0]->FlushRemoteWrites());
  EXPECT_EQ(block->data()[0], 'a');
}

}  // namespace
}  // namespace moonpool::gpu
