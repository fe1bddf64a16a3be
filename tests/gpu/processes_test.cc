// Regions across processes: exported here and pulled there, and the other way round; peers that are
// killed in the middle of a copy.  On the double and on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/gpu/device_under_test.h"
#include "tests/gpu/peer_process.h"

namespace moonpool::gpu {
namespace {

constexpr uint64_t kRegion = 6 << 20;

class ProcessesTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    auto allocated = device->Allocate(kRegion, device->BestHandle());
    ASSERT_TRUE(allocated) << allocated.error().message;
    region = std::move(*allocated);
    ASSERT_GE(region->bytes(), kRegion);
    seed = random.Next();
    Put(region->data(), PeerBytes(seed, region->bytes()));
  }

  bool cuda() const { return GetParam() == Kind::kCuda; }

  void Give(PeerProcess& peer) {
    ASSERT_TRUE(peer.ready()) << peer.why();
    auto exported = region->Export();
    ASSERT_TRUE(exported) << exported.error().message;
    PeerMessage import;
    import.command = PeerMessage::kImport;
    import.handle = exported->handle;
    const PeerMessage answer = peer.Ask(import, exported->fd.get());
    ASSERT_TRUE(answer.ok) << answer.text;
  }

  void ExpectSum(PeerProcess& peer, uint64_t of_seed) {
    const PeerMessage answer = peer.Ask(PeerMessage::kSum);
    ASSERT_TRUE(answer.ok) << answer.text;
    EXPECT_EQ(answer.value, SumOf(PeerBytes(of_seed, region->bytes())));
  }

  std::unique_ptr<DeviceRegion> region;
  uint64_t seed = 0;
};
INSTANTIATE_DEVICES(ProcessesTest);

// What the double does not have.
class CudaProcessesTest : public ProcessesTest {};
INSTANTIATE_TEST_SUITE_P(On, CudaProcessesTest, testing::Values(Kind::kCuda), KindName);

TEST_P(ProcessesTest, SeveralPullTheSameRegion) {
  std::vector<std::unique_ptr<PeerProcess>> peers;
  for (int i = 0; i < 3; ++i) {
    peers.push_back(std::make_unique<PeerProcess>(cuda()));
    Give(*peers.back());
  }
  for (const auto& peer : peers) ExpectSum(*peer, seed);
  // What one writes all see.
  const uint64_t other = random.Next();
  const PeerMessage filled = peers[1]->Ask(PeerMessage::kFill, other);
  ASSERT_TRUE(filled.ok) << filled.text;
  for (const auto& peer : peers) ExpectSum(*peer, other);
  EXPECT_TRUE(Get(region->data(), region->bytes()) == PeerBytes(other, region->bytes()));
}

TEST_P(ProcessesTest, PulledFromAnotherProcess) {
  PeerProcess peer(cuda());
  ASSERT_TRUE(peer.ready()) << peer.why();
  for (const HandleKind kind : {HandleKind::kPosixFd, HandleKind::kIpc}) {
    if (!cuda() && kind == HandleKind::kIpc) continue;
    if (kind == HandleKind::kPosixFd && !device->info().posix_handles) continue;
    SCOPED_TRACE(NameOf(kind));
    PeerMessage allocate;
    allocate.command = PeerMessage::kAllocate;
    allocate.handle.kind = kind;
    allocate.handle.bytes = 100;  // below any granularity
    allocate.seed = seed;
    UniqueFd fd;
    const PeerMessage answer = peer.Ask(allocate, -1, &fd);
    if (!answer.ok && kind == HandleKind::kIpc) {
      std::printf("not run: legacy IPC handles: %s\n", answer.text);
      continue;
    }
    ASSERT_TRUE(answer.ok) << answer.text;
    auto imported = device->Import(answer.handle, fd.get());
    if (!imported && kind == HandleKind::kIpc) {
      std::printf("not run: legacy IPC handles: %s\n", imported.error().message.c_str());
      continue;
    }
    ASSERT_TRUE(imported) << imported.error().message;
    EXPECT_EQ((*imported)->device(), answer.handle.device);
    EXPECT_FALSE((*imported)->Export());
    fd.Reset();
    const uint64_t bytes = (*imported)->bytes();
    EXPECT_TRUE(Get((*imported)->data(), bytes) == PeerBytes(seed, bytes));
  }
}

// The memory stays as long as somebody maps it.
TEST_P(ProcessesTest, AnImportOutlivesItsExporter) {
  PeerProcess peer(cuda());
  Give(peer);
  const uint64_t bytes = region->bytes();
  region.reset();
  const PeerMessage answer = peer.Ask(PeerMessage::kSum);
  ASSERT_TRUE(answer.ok) << answer.text;
  EXPECT_EQ(answer.value, SumOf(PeerBytes(seed, bytes)));
}

TEST_P(ProcessesTest, APeerKilledInTheMiddleOfACopyHarmsNobody) {
  PeerProcess survivor(cuda());
  Give(survivor);
  for (int i = 0; i < 3; ++i) {
    PeerProcess victim(cuda());
    Give(victim);
    const PeerMessage spinning = victim.Ask(PeerMessage::kSpin);
    ASSERT_TRUE(spinning.ok) << spinning.text;
    // It is copying from here on; when it dies is of no matter.
    std::this_thread::sleep_for(std::chrono::milliseconds(random.Below(20)));
    victim.Kill();
    ExpectSum(survivor, seed);
    EXPECT_TRUE(Get(region->data(), region->bytes()) == PeerBytes(seed, region->bytes()));
  }
}

// What a dead peer had mapped does not stay allocated.
TEST_P(ProcessesTest, MemoryOfADeadPeerComesBack) {
  {
    PeerProcess peer(cuda());
    Give(peer);
    const PeerMessage spinning = peer.Ask(PeerMessage::kSpin);
    ASSERT_TRUE(spinning.ok) << spinning.text;
    peer.Kill();
  }
  const auto before = device->Memory();
  ASSERT_TRUE(before);
  const uint64_t bytes = region->bytes();
  region.reset();
  // The driver frees what the dead process had on its own time.
  for (int i = 0; i < 100; ++i) {
    const auto after = device->Memory();
    ASSERT_TRUE(after);
    if (after->free_bytes >= before->free_bytes + bytes) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  FAIL() << "the region's memory is still taken";
}

// Devices have other ordinals there; what names them is the UUID.
TEST_P(CudaProcessesTest, VisibleDevicesDiffer) {
  std::string why;
  std::string reversed;
  const auto& all = Gpus(&why)->all();
  for (auto other = all.rbegin(); other != all.rend(); ++other) {
    reversed += (reversed.empty() ? "" : ",") + (*other)->info().uuid.ToString();
  }
  PeerProcess peer(true, reversed);
  Give(peer);
  ExpectSum(peer, seed);
}

}  // namespace
}  // namespace moonpool::gpu
