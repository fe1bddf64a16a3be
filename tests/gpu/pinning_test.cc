// The server's pool and its clients' mappings of it, pinned: on the double and on a GPU.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>

#include "tests/gpu/device_under_test.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace moonpool::gpu {
namespace {

constexpr size_t kPool = 4 << 20;

// A memory file as storage::Region makes it: mapped for writing here, sealed against other writers,
// and mapped for reading as a client does.
class PinningTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    file.Reset(memfd_create("pool", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_TRUE(file);
    ASSERT_EQ(ftruncate(file.get(), kPool), 0);
    server = Map(file.get(), PROT_READ | PROT_WRITE);
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
    if (fcntl(file.get(), F_ADD_SEALS, seals) != 0) {
      // gVisor knows no F_SEAL_FUTURE_WRITE.
      ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    }
    const std::string self = "/proc/self/fd/" + std::to_string(file.get());
    read_only.Reset(open(self.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(read_only);
    client = Map(read_only.get(), PROT_READ);
    bytes = Bytes(kPool);
    std::memcpy(server, bytes.data(), kPool);
  }
  void TearDown() override {
    if (server != nullptr) munmap(server, kPool);
    if (client != nullptr) munmap(client, kPool);
  }

  static char* Map(int fd, int protection) {
    void* data = mmap(nullptr, kPool, protection, MAP_SHARED, fd, 0);
    EXPECT_NE(data, MAP_FAILED);
    return static_cast<char*>(data);
  }

  // In small pieces, by a kernel, and in one, by the copy engine.
  void ExpectPulled(const char* from) {
    for (const uint64_t piece : {uint64_t{4096}, uint64_t{kPool}}) {
      const auto to = OnDevice(Poison(kPool));
      CopyBatch batch(device);
      const size_t key = batch.AddKey(nullptr, 0);
      for (uint64_t at = 0; at < kPool; at += piece) {
        batch.Copy(key, {to->data() + at, from + at, piece});
      }
      Run(std::move(batch));
      EXPECT_TRUE(Get(to->data(), kPool) == bytes);
    }
  }

  UniqueFd file, read_only;
  char* server = nullptr;
  char* client = nullptr;
  std::string bytes;
};
INSTANTIATE_DEVICES(PinningTest);

TEST_P(PinningTest, TheServersPool) {
  const auto pinned = device->Pin(server, kPool, Access::kReadWrite);
  ASSERT_TRUE(pinned) << pinned.error().message;
  auto place = device->WhereIs(server + 12345);
  ASSERT_TRUE(place);
  EXPECT_EQ(place->kind, Place::Kind::kPinned);
  ExpectPulled(server);
  // Back into it.
  const std::string other = Bytes(kPool);
  const auto from = OnDevice(other);
  CopyBatch batch(device);
  const size_t key = batch.AddKey(nullptr, 0);
  for (uint64_t at = 0; at < kPool; at += 8192) {
    batch.Copy(key, {server + at, from->data() + at, 8192});
  }
  Run(std::move(batch));
  EXPECT_TRUE(std::string(server, kPool) == other);
  EXPECT_TRUE(std::string(client, kPool) == other);
}

TEST_P(PinningTest, AClientsReadOnlyMapping) {
  const auto pinned = device->Pin(client, kPool, Access::kReadOnly);
  if (!device->info().pins_read_only) {
    ASSERT_FALSE(pinned);
    EXPECT_EQ(pinned.error().code, ErrorCode::kUnavailable);
    std::printf("not run: pinning read-only mappings: the driver does not offer it\n");
  } else {
    ASSERT_TRUE(pinned) << pinned.error().message;
  }
  // Pinned or not, it can be read.
  ExpectPulled(client);
}

TEST_P(PinningTest, ARangeIsPinnedOnceAndAsLongAsAnybodyWantsIt) {
  auto whole = device->Pin(server, kPool, Access::kReadWrite);
  ASSERT_TRUE(whole) << whole.error().message;
  auto part = device->Pin(server + 8192, 4096, Access::kReadWrite);
  ASSERT_TRUE(part) << part.error().message;
  whole->reset();
  EXPECT_EQ(device->WhereIs(server)->kind, Place::Kind::kPinned);
  ExpectPulled(server);
  part->reset();
  EXPECT_EQ(device->WhereIs(server)->kind, Place::Kind::kPageable);
  ExpectPulled(server);

  part = device->Pin(server + 8192, 8192, Access::kReadWrite);
  ASSERT_TRUE(part) << part.error().message;
  const auto overlapping = device->Pin(server, 12288, Access::kReadWrite);
  ASSERT_FALSE(overlapping);
  EXPECT_EQ(overlapping.error().code, ErrorCode::kInvalidArgument);
}

// Two mappings, one piece that reaches from pinned memory into memory that is not.
TEST_P(PinningTest, APieceMustNotLeaveItsMemory) {
  const auto pinned = device->Pin(server, 8192, Access::kReadWrite);
  ASSERT_TRUE(pinned) << pinned.error().message;
  const auto to = OnDevice(Poison(8192));
  CopyBatch batch(device);
  batch.Copy(batch.AddKey(nullptr, 0), {to->data(), server + 4096, 8192});
  const auto submitted = std::move(batch).Submit();
  ASSERT_FALSE(submitted);
  EXPECT_EQ(submitted.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace moonpool::gpu
