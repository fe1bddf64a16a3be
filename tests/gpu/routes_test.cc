// Which way bytes go, what happens when something fails on the way, and that the double is strict:
// on the host double alone, which can be made to do all of this.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/host_device.h"
#include "tests/protocol/random.h"

namespace moonpool::gpu {
namespace {

class RoutesTest : public testing::Test {
 protected:
  void Make(HostDeviceOptions options) {
    options.seed = random.Next();
    options.pinned_offset = 1l << 45;
    devices = MakeHostDevices(options);
  }
  HostDevice& device(size_t index = 0) { return *devices[index]; }

  std::unique_ptr<DeviceBlock> On(size_t index, const std::string& bytes) {
    auto block = device(index).NewDeviceBlock(bytes.size());
    EXPECT_TRUE(block);
    std::memcpy((*block)->data(), bytes.data(), bytes.size());
    return std::move(*block);
  }
  std::unique_ptr<HostBlock> Pinned(const std::string& bytes) {
    auto block = device().NewHostBlock(bytes.size());
    EXPECT_TRUE(block);
    std::memcpy((*block)->data(), bytes.data(), bytes.size());
    return std::move(*block);
  }
  static std::string Poison(size_t size) { return std::string(size, '\xa5'); }

  // One key with these pieces.
  Result<Completion> Submit(const std::vector<Piece>& pieces, size_t on = 0) {
    CopyBatch batch(&device(on));
    const size_t key = batch.AddKey(nullptr, 0);
    for (const Piece& piece : pieces) batch.Copy(key, piece);
    return std::move(batch).Submit();
  }

  test::Random random;
  std::vector<std::unique_ptr<HostDevice>> devices;
};

std::vector<Piece> Cut(char* to, const char* from, uint64_t bytes, uint64_t piece) {
  std::vector<Piece> pieces;
  for (uint64_t at = 0; at < bytes; at += piece) {
    pieces.push_back({to + at, from + at, std::min(piece, bytes - at)});
  }
  return pieces;
}

TEST_F(RoutesTest, SmallPiecesShareALaunchAndLargeOnesTakeTheEngine) {
  Make({});
  const std::string bytes = random.Bytes(2 << 20);
  const auto from = On(0, bytes);
  const auto host = Pinned(bytes);
  const auto to = On(0, Poison(bytes.size()));

  auto done = Submit(Cut(to->data(), from->data(), bytes.size(), 64 << 10));
  ASSERT_TRUE(done && done->Wait());
  EXPECT_EQ(device().counts().many, 1u);
  EXPECT_EQ(device().counts().many_pieces, 32u);
  EXPECT_EQ(device().counts().host_launches, 0u);
  EXPECT_EQ(device().counts().one, 0u);

  done = Submit(Cut(to->data(), host->data(), bytes.size(), 64 << 10));
  ASSERT_TRUE(done && done->Wait());
  EXPECT_EQ(device().counts().many, 2u);
  EXPECT_EQ(device().counts().host_launches, 1u);

  // From host memory, half a MiB is large.
  done = Submit(Cut(to->data(), host->data(), bytes.size(), 512 << 10));
  ASSERT_TRUE(done && done->Wait());
  EXPECT_EQ(device().counts().many, 2u);
  EXPECT_EQ(device().counts().one, 4u);
  EXPECT_EQ(device().counts().checks, 0u);
}

TEST_F(RoutesTest, PageableMemoryNeverMeetsAKernel) {
  Make({});
  const std::string bytes = random.Bytes(64 << 10);
  const auto from = On(0, bytes);
  std::string to = Poison(bytes.size());
  const auto done = Submit(Cut(to.data(), from->data(), bytes.size(), 4 << 10));
  ASSERT_TRUE(done && done->Wait());
  EXPECT_EQ(device().counts().many, 0u);
  EXPECT_EQ(device().counts().one, 16u);
  EXPECT_TRUE(to == bytes);
}

TEST_F(RoutesTest, OverALinkDevicesReachEachOther) {
  HostDeviceOptions options;
  options.devices = 2;
  options.link = Link::kNvlink;
  Make(options);
  const std::string bytes = random.Bytes(3 << 20);
  const auto from = On(1, bytes);
  const auto to = On(0, Poison(bytes.size()));
  const uint64_t blocks = device().counts().staged_blocks;
  const auto done = Submit(Cut(to->data(), from->data(), bytes.size(), 256 << 10));
  ASSERT_TRUE(done && done->Wait());
  EXPECT_EQ(device().counts().staged_blocks, blocks);
  EXPECT_EQ(std::string(to->data(), bytes.size()) == bytes, true);
}

// Both directions, pieces and pages, in several chunks, whatever order the streams go on in.
TEST_F(RoutesTest, WithoutALinkBytesAreStagedThroughHostMemory) {
  for (int round = 0; round < 20; ++round) {
    SCOPED_TRACE(random.Replay());
    HostDeviceOptions options;
    options.devices = 2;
    options.link = Link::kNone;
    Make(options);
    const std::string bytes = random.Bytes((5 << 20) + 77);
    const auto far = On(1, bytes);
    const auto near = On(0, Poison(bytes.size()));
    const auto back = On(1, Poison(bytes.size()));
    auto stream = device().NewStream();
    ASSERT_TRUE(stream);
    CopyLimits limits;
    limits.staging_chunk = 512 << 10;
    CopyBatch batch(&device(), (*stream)->ref(), limits);
    const size_t key = batch.AddKey(nullptr, 0);
    batch.Copy(key, {near->data(), far->data(), bytes.size()});
    batch.EndLayer();
    batch.Copy(key, {back->data(), near->data(), bytes.size()});
    const auto done = std::move(batch).Submit();
    ASSERT_TRUE(done) << done.error().message;
    const Status waited = done->Wait();
    ASSERT_TRUE(waited) << waited.error().message;
    EXPECT_TRUE(std::string(near->data(), bytes.size()) == bytes);
    EXPECT_TRUE(std::string(back->data(), bytes.size()) == bytes);
  }
}

TEST_F(RoutesTest, PagesOfADeviceWithoutALink) {
  HostDeviceOptions options;
  options.devices = 2;
  options.link = Link::kNone;
  Make(options);
  constexpr uint64_t kPage = 64 << 10;
  constexpr uint32_t kPages = 48;
  const std::string bytes = random.Bytes(kPages * kPage);
  const auto far = On(1, bytes);
  const auto near = On(0, Poison(bytes.size()));
  std::vector<int32_t> table;
  for (uint32_t i = 0; i < kPages; ++i) table.push_back(static_cast<int32_t>(i * 7 % kPages));
  PageCopy copy;
  copy.page_count = kPages;
  copy.piece_bytes = kPage;
  copy.from = {{}, far->data(), 0, kPage, PageTable::Of(table), kPages};
  copy.to = {{}, near->data(), 0, kPage, {}, 0};
  CopyLimits limits;
  limits.staging_chunk = 512 << 10;
  CopyBatch batch(&device(), std::nullopt, limits);
  batch.CopyPages(batch.AddKey(nullptr, 0), copy);
  const auto done = std::move(batch).Submit();
  ASSERT_TRUE(done) << done.error().message;
  ASSERT_TRUE(done->Wait());
  for (uint32_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(std::memcmp(near->data() + i * kPage,
                          bytes.data() + static_cast<size_t>(table[i]) * kPage, kPage),
              0)
        << i;
  }
}

// Runs of host memory go through the copy engine in chunks and are scattered on the device.
TEST_F(RoutesTest, LongRunsOfHostMemoryAreStaged) {
  Make({});
  constexpr uint64_t kPage = 16 << 10;
  constexpr uint32_t kPages = 256;
  const std::string bytes = random.Bytes(kPages * kPage);
  const auto run = Pinned(bytes);
  const auto cache = On(0, Poison(bytes.size()));
  std::vector<int32_t> table;
  for (uint32_t i = 0; i < kPages; ++i) table.push_back(static_cast<int32_t>(kPages - 1 - i));
  PageCopy copy;
  copy.page_count = kPages;
  copy.piece_bytes = kPage;
  copy.from = {{}, run->data(), 0, kPage, {}, 0};
  copy.to = {{}, cache->data(), 0, kPage, PageTable::Of(table), kPages};
  const auto submit = [&](const CopyLimits& limits) {
    CopyBatch batch(&device(), std::nullopt, limits);
    batch.CopyPages(batch.AddKey(nullptr, 0), copy);
    const auto done = std::move(batch).Submit();
    ASSERT_TRUE(done) << done.error().message;
    ASSERT_TRUE(done->Wait());
  };
  submit({});
  EXPECT_EQ(device().counts().one, 8u);  // an eighth each
  EXPECT_EQ(device().counts().pages, 8u);
  EXPECT_EQ(device().counts().host_launches, 0u);
  CopyLimits direct;
  direct.staged_pages = ~0ull;
  submit(direct);
  EXPECT_EQ(device().counts().one, 8u);
  EXPECT_EQ(device().counts().pages, 9u);
  EXPECT_EQ(device().counts().host_launches, 1u);
}

// A layer's event is reached although the next layer's copy is not done, and not before its own.
TEST_F(RoutesTest, LayersAreReachedOneByOne) {
  Make({});
  const std::string bytes = random.Bytes(8192);
  const auto from = On(0, bytes);
  const auto to = On(0, Poison(bytes.size()));
  device().Pause();
  CopyBatch batch(&device());
  const size_t key = batch.AddKey(nullptr, 0);
  batch.Copy(key, {to->data(), from->data(), 4096});
  batch.EndLayer();
  batch.Copy(key, {to->data() + 4096, from->data() + 4096, 4096});
  batch.EndLayer();
  const auto submitted = std::move(batch).Submit();
  ASSERT_TRUE(submitted);
  ASSERT_EQ(submitted->layers(), 2u);
  auto reached = submitted->layer(0).Reached();
  ASSERT_TRUE(reached);
  EXPECT_FALSE(*reached);
  device().Pause(1);
  ASSERT_TRUE(submitted->layer(0).Wait());
  reached = submitted->layer(1).Reached();
  ASSERT_TRUE(reached);
  EXPECT_FALSE(*reached);
  EXPECT_EQ(std::string(to->data() + 4096, 4096), Poison(4096));
  device().Resume();
  ASSERT_TRUE(submitted->Wait());
  EXPECT_TRUE(std::string(to->data(), bytes.size()) == bytes);
}

// As tests that run on a GPU too want it: who forgets that device memory is not the processor's
// faults here as well.
TEST_F(RoutesTest, HiddenMemoryIsTheDevicesAlone) {
  HostDeviceOptions options;
  options.hidden = true;
  Make(options);
  const auto block = std::move(*device().NewDeviceBlock(8192));
  const auto region = std::move(*device().Allocate(8192, HandleKind::kPosixFd));
  const auto exported = region->Export();
  ASSERT_TRUE(exported);
  const auto imported = std::move(*device().Import(exported->handle, exported->fd.get()));
  const UniqueFd file(memfd_create("anything", MFD_CLOEXEC));
  for (const char* data : {block->data(), region->data(), imported->data()}) {
    EXPECT_EQ(write(file.get(), data, 1), -1);
    EXPECT_EQ(errno, EFAULT);
  }
  // A device reaches all of it.
  const auto from = Pinned(random.Bytes(8192)), to = Pinned(Poison(8192));
  ASSERT_TRUE(Submit({{region->data(), from->data(), 8192}})->Wait());
  ASSERT_TRUE(Submit(Cut(block->data(), imported->data(), 8192, 1000))->Wait());
  ASSERT_TRUE(Submit({{to->data(), block->data(), 8192}})->Wait());
  EXPECT_EQ(std::memcmp(to->data(), from->data(), 8192), 0);
}

TEST_F(RoutesTest, AStreamThatIsCapturedGetsNothing) {
  Make({});
  const auto from = On(0, random.Bytes(1000));
  const auto to = On(0, Poison(1000));
  const auto stream = std::move(*device().NewStream());
  const auto submit = [&] {
    CopyBatch batch(&device(), stream->ref());
    batch.Copy(batch.AddKey(nullptr, 0), {to->data(), from->data(), 1000});
    return std::move(batch).Submit();
  };
  device().SetCaptured(stream->ref(), true);
  const auto refused = submit();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(device().counts().one + device().counts().many, 0u);
  EXPECT_TRUE(Submit({{to->data(), from->data(), 1000}})) << "another stream";
  device().SetCaptured(stream->ref(), false);
  EXPECT_TRUE(submit());
}

TEST_F(RoutesTest, AWaitWithADeadlineEnds) {
  Make({});
  const std::string bytes = random.Bytes(8192);
  const auto from = On(0, bytes);
  const auto to = On(0, Poison(bytes.size()));
  device().Pause();
  const auto submitted = Submit({{to->data(), from->data(), bytes.size()}});
  ASSERT_TRUE(submitted);
  const auto soon = [](int ms) {
    return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
  };
  for (const int ms : {20, 0, -1000}) {
    const Result<bool> done = submitted->WaitUntil(soon(ms));
    ASSERT_TRUE(done);
    EXPECT_FALSE(*done);
  }
  device().Resume();
  const Result<bool> done = submitted->WaitUntil(soon(180'000));
  EXPECT_TRUE(done && *done);
  EXPECT_TRUE(std::string(to->data(), bytes.size()) == bytes);
  device().Pause();
  const auto lost = Submit({{to->data(), from->data(), bytes.size()}});
  ASSERT_TRUE(lost);
  device().LoseAfter(0);
  EXPECT_FALSE(lost->WaitUntil(soon(180'000)));
}

// A writer takes the extent over while the copy is under way; wherever generations are compared.
TEST_F(RoutesTest, AChangeDuringTheCopyIsSeen) {
  Make({});
  CopyLimits apart, beside;
  apart.engine_same_device = 0;
  beside.engine_same_device = 0;
  beside.checks_beside = 0;
  for (const CopyLimits& limits : {CopyLimits(), apart, beside}) {
    SCOPED_TRACE(random.Replay());
    const auto table = Pinned(std::string(16, '\0'));
    auto* counters = reinterpret_cast<protocol::GenerationCounter*>(table->data());
    counters[0] = 3;
    counters[1] = 3;
    const std::string bytes = random.Bytes(8192);
    const auto from = On(0, bytes);
    const auto to = On(0, Poison(bytes.size()));
    device().Pause();
    CopyBatch batch(&device(), std::nullopt, limits);
    const size_t kept = batch.AddKey(&counters[0], 3);
    const size_t lost = batch.AddKey(&counters[1], 3);
    batch.Copy(kept, {to->data(), from->data(), 4096});
    batch.Copy(lost, {to->data() + 4096, from->data() + 4096, 4096});
    const auto submitted = std::move(batch).Submit();
    ASSERT_TRUE(submitted);
    protocol::BumpGeneration(counters[1]);
    device().Resume();
    ASSERT_TRUE(submitted->Wait());
    EXPECT_TRUE(submitted->Unchanged(kept));
    EXPECT_FALSE(submitted->Unchanged(lost));
  }
  EXPECT_EQ(device().counts().checks_behind, 1u);
  EXPECT_EQ(device().counts().checks, 2u);
}

// Layers' events come after their comparisons although these are beside the copies, with whatever
// kinds of layers in between.
// Looked at after every step of the device's.
TEST_F(RoutesTest, ChecksBesideTheStreamComeBeforeTheirEvents) {
  constexpr uint64_t kMoreStepsThanThereAre = 40;
  for (uint64_t steps = 0; steps < kMoreStepsThanThereAre; ++steps) {
    SCOPED_TRACE(random.Replay());
    Make({});
    const auto table = Pinned(std::string(8, '\0'));
    auto* counter = reinterpret_cast<protocol::GenerationCounter*>(table->data());
    const std::string bytes = random.Bytes(4 * 8192);
    const auto from = On(0, bytes);
    const auto to = On(0, Poison(bytes.size()));
    CopyLimits limits;
    limits.engine_same_device = 8192;
    limits.checks_beside = 8192;
    CopyBatch batch(&device(), std::nullopt, limits);
    const size_t checked = batch.AddKey(counter, 0);
    const size_t free = batch.AddKey(nullptr, 0);
    batch.Copy(checked, {to->data(), from->data(), 8192});  // by the engine
    batch.EndLayer();
    batch.Copy(free, {to->data() + 8192, from->data() + 8192, 4096});
    batch.Copy(free, {to->data() + 8192 + 4096, from->data() + 8192 + 4096, 4096});
    batch.EndLayer();
    batch.Copy(checked, {to->data() + 2 * 8192, from->data() + 2 * 8192, 4096});  // by a launch
    batch.Copy(checked, {to->data() + 2 * 8192 + 4096, from->data() + 2 * 8192 + 4096, 4096});
    batch.EndLayer();
    batch.Copy(free, {to->data() + 3 * 8192, from->data() + 3 * 8192, 8192});
    device().Pause();
    const auto done = std::move(batch).Submit();
    ASSERT_TRUE(done);
    device().Pause(steps);
    while (!device().still()) std::this_thread::yield();
    size_t reached = 0;
    for (size_t layer = 0; layer < done->layers(); ++layer) {
      if (!*done->layer(layer).Reached()) continue;
      ++reached;
      EXPECT_TRUE(std::memcmp(to->data() + layer * 8192, bytes.data() + layer * 8192, 8192) == 0);
      EXPECT_TRUE(done->Unchanged(checked, layer)) << layer << " after " << steps << " steps";
    }
    const bool last = steps + 1 == kMoreStepsThanThereAre;
    EXPECT_TRUE(last ? reached == done->layers() : steps > 0 || reached == 0) << reached;
    device().Resume();
    ASSERT_TRUE(done->Wait());
    EXPECT_TRUE(done->Unchanged(checked));
  }
}

// Who does not wait for what the driver had taken when it refused the rest is told of it: on every
// stream that a batch is in.
TEST_F(RoutesTest, AFailedSubmitSaysWhatIsUnderWay) {
  HostDeviceOptions options;
  options.devices = 2;
  options.link = Link::kNone;
  Make(options);
  const std::string bytes = random.Bytes(1 << 20);
  const auto far = On(1, bytes);
  const auto host = Pinned(bytes);
  int left_under_way = 0;
  for (uint64_t call = 0;; ++call) {
    auto to = On(0, Poison(2 * bytes.size()));
    CopyBatch batch(&device());
    const size_t key = batch.AddKey(nullptr, 0);
    batch.Copy(key, {to->data(), far->data(), bytes.size()});
    batch.Copy(key, {to->data() + bytes.size(), host->data(), bytes.size()});
    for (const auto& each : devices) each->Pause();
    device().FailCallAfter(call);
    std::optional<Completion> left;
    const auto done = std::move(batch).Submit(&left);
    device().FailCallAfter(1'000'000);
    const auto now = std::chrono::steady_clock::now();
    for (size_t paused = 0; left && paused < devices.size(); ++paused) {
      const Result<bool> all = left->WaitUntil(now);
      ASSERT_TRUE(all);
      if (!*all) {
        ++left_under_way;
        EXPECT_EQ(left->layers(), 0u);
      }
      devices[paused]->Resume();
    }
    for (const auto& each : devices) each->Resume();
    if (done) {
      EXPECT_FALSE(left);
      ASSERT_TRUE(done->Wait());
      break;
    }
    if (left) {
      const Result<bool> all = left->WaitUntil(now + std::chrono::minutes(3));
      EXPECT_TRUE(all && *all);
      const std::string held(to->data(), 2 * bytes.size());
      EXPECT_TRUE(device(0).still() && device(1).still());
      EXPECT_TRUE(held == std::string(to->data(), 2 * bytes.size()));
    }
    to.reset();  // nobody writes there any more: the address sanitizer would tell
  }
  EXPECT_GT(left_under_way, 3);
}

// Every call that can fail does so once; nothing is under way afterwards, and the device goes on.
TEST_F(RoutesTest, AFailedSubmitLeavesNothingUnderWay) {
  HostDeviceOptions options;
  options.devices = 2;
  options.link = Link::kNone;
  Make(options);
  const std::string bytes = random.Bytes(1 << 20);
  const auto far = On(1, bytes);
  const auto host = Pinned(bytes);
  const auto counters = Pinned(std::string(8, '\0'));
  int failed = 0;
  for (uint64_t call = 0;; ++call) {
    auto to = On(0, Poison(2 * bytes.size()));
    device().FailCallAfter(call);
    CopyBatch batch(&device());
    const size_t key =
        batch.AddKey(reinterpret_cast<protocol::GenerationCounter*>(counters->data()), 0);
    batch.Copy(key, {to->data(), far->data(), bytes.size()});
    batch.EndLayer();
    batch.Copy(key, {to->data() + bytes.size(), host->data(), bytes.size()});
    auto done = std::move(batch).Submit();
    device().FailCallAfter(1'000'000);
    if (done) {
      ASSERT_TRUE(done->Wait());
      EXPECT_TRUE(done->Unchanged(key));
      EXPECT_TRUE(std::string(to->data(), bytes.size()) == bytes);
      EXPECT_TRUE(std::string(to->data() + bytes.size(), bytes.size()) == bytes);
      break;
    }
    ++failed;
    EXPECT_EQ(done.error().message, "the test wants this call to fail");
    to.reset();  // nobody writes there any more: the address sanitizer would tell
  }
  EXPECT_GT(failed, 10);
}

TEST_F(RoutesTest, ALostDeviceIsAnErrorForEverybodyWhoWaits) {
  Make({});
  const std::string bytes = random.Bytes(1 << 20);
  const auto from = On(0, bytes);
  const auto to = On(0, Poison(bytes.size()));
  device().LoseAfter(1);
  CopyBatch batch(&device());
  const size_t key = batch.AddKey(nullptr, 0);
  for (int i = 0; i < 4; ++i) {
    batch.Copy(key, {to->data(), from->data(), bytes.size()});
    batch.EndLayer();
  }
  const auto submitted = std::move(batch).Submit();
  // Lost before or after it was all submitted: an error either way, and no hang.
  if (submitted) {
    const Status waited = submitted->Wait();
    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error().code, ErrorCode::kUnavailable);
    EXPECT_FALSE(submitted->Done());
  } else {
    EXPECT_EQ(submitted.error().code, ErrorCode::kUnavailable);
  }
  EXPECT_FALSE(device().Memory());
  EXPECT_FALSE(device().Allocate(4096, HandleKind::kPosixFd));
}

TEST_F(RoutesTest, RegionsAreRoundedUpAndCounted) {
  HostDeviceOptions options;
  options.memory_bytes = 8 << 20;
  Make(options);
  auto small = device().Allocate(1, device().BestHandle());
  ASSERT_TRUE(small);
  EXPECT_EQ((*small)->bytes(), 2u << 20);
  EXPECT_EQ(device().Memory()->free_bytes, 6u << 20);
  const auto large = device().Allocate(7 << 20, device().BestHandle());
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, ErrorCode::kOutOfMemory);
  small->reset();
  EXPECT_EQ(device().Memory()->free_bytes, 8u << 20);
}

}  // namespace
}  // namespace moonpool::gpu
