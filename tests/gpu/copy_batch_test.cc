// Batches: every byte arrives, layers and generations say what they must, on the double and on a
// GPU.
#include "gpu/copy_batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/gpu/device_under_test.h"

namespace moonpool::gpu {
namespace {

class CopyBatchTest : public DeviceTest {};
INSTANTIATE_DEVICES(CopyBatchTest);

// Sources and destinations in any kind of memory, at any alignment, of any size, with gaps between
// them that must keep their bytes.
TEST_P(CopyBatchTest, MixedPiecesArriveAndNothingElseChanges) {
  constexpr size_t kArena = 3 << 20;
  for (int round = 0; round < 4; ++round) {
    SCOPED_TRACE(random.Replay());
    const std::string from = Bytes(kArena);
    const auto from_device = OnDevice(from);
    const auto from_host = OnHost(from);
    const std::string poison = Poison(kArena);
    const auto to_device = OnDevice(poison);
    const auto to_host = OnHost(poison);
    std::string pageable = poison;
    char* const targets[] = {to_device->data(), to_host->data(), pageable.data()};
    std::string expected[] = {poison, poison, poison};
    const char* const sources[] = {from_device->data(), from_host->data(), from.data()};

    CopyLimits limits;
    // Some of the pieces are large by these limits.
    limits.engine_same_device = 256 << 10;
    limits.engine_host = 64 << 10;
    CopyBatch batch(device, std::nullopt, limits);
    const size_t key = batch.AddKey(nullptr, 0);
    size_t at[3] = {0, 0, 0};
    for (int i = 0; i < 200; ++i) {
      const size_t kind = random.Below(3);
      const uint64_t align = random.Pick(std::vector<uint64_t>{1, 4, 16, 16, 4096});
      const size_t bytes = std::min<size_t>(
          random.Below(3) == 0 ? random.Below(400000) : random.Below(9000), 300000);
      size_t to = (at[kind] + random.Below(40) + align - 1) / align * align;
      const size_t start = random.Below(kArena - bytes) / align * align;
      if (to + bytes > kArena) continue;
      batch.Copy(key, {targets[kind] + to, sources[random.Below(3)] + start, bytes});
      std::copy_n(from.begin() + static_cast<ptrdiff_t>(start), bytes,
                  expected[kind].begin() + static_cast<ptrdiff_t>(to));
      at[kind] = to + bytes;
    }
    const Completion done = Run(std::move(batch));
    EXPECT_TRUE(done.Unchanged(key));
    EXPECT_TRUE(Get(to_device->data(), kArena) == expected[0]);
    EXPECT_TRUE(std::string(to_host->data(), kArena) == expected[1]);
    EXPECT_TRUE(pageable == expected[2]);
  }
}

TEST_P(CopyBatchTest, ThousandsOfPiecesInOneBatch) {
  constexpr size_t kPieces = 5000;
  constexpr size_t kBytes = 272;
  const std::string from = Bytes(kPieces * kBytes);
  const auto source = OnDevice(from);
  const auto target = OnDevice(Poison(from.size()));
  CopyBatch batch(device);
  const size_t key = batch.AddKey(nullptr, 0);
  std::string expected(from.size(), '\0');
  for (size_t i = 0; i < kPieces; ++i) {
    const size_t to = (i * 1237 % kPieces) * kBytes;
    batch.Copy(key, {target->data() + to, source->data() + i * kBytes, kBytes});
    std::copy_n(from.data() + i * kBytes, kBytes, expected.data() + to);
  }
  Run(std::move(batch));
  EXPECT_TRUE(Get(target->data(), from.size()) == expected);
}

// By the launch that copies (more than once: it leaves nothing behind), by one of its own, and by
// one on another stream.
TEST_P(CopyBatchTest, GenerationsAreComparedPerKeyAndLayer) {
  constexpr size_t kKeys = 700;  // more than a launch carries
  const auto counters_memory = OnHost(std::string(kKeys * 8, '\0'));
  auto* counters = reinterpret_cast<protocol::GenerationCounter*>(counters_memory->data());
  const std::string from = Bytes(kKeys * 64);
  const auto source = OnDevice(from);
  CopyLimits apart, beside;
  apart.engine_same_device = 0;
  beside.engine_same_device = 0;
  beside.checks_beside = 0;
  for (const CopyLimits& limits : {CopyLimits(), CopyLimits(), apart, beside}) {
    const auto target = OnDevice(Poison(from.size()));
    CopyBatch batch(device, std::nullopt, limits);
    std::vector<bool> same;
    for (size_t i = 0; i < kKeys; ++i) {
      const uint64_t generation = random.Next();
      counters[i].store(generation);
      same.push_back(random.Chance(0.5));
      const size_t key = batch.AddKey(&counters[i], same[i] ? generation : generation + 1);
      batch.Copy(key, {target->data() + i * 64, source->data() + i * 64, 64});
      if (i % 300 == 299) batch.EndLayer();
    }
    const size_t unchecked = batch.AddKey(nullptr, 5);
    batch.Copy(unchecked, {target->data(), source->data(), 64});
    const Completion done = Run(std::move(batch));
    ASSERT_EQ(done.layers(), 3u);
    for (size_t i = 0; i < kKeys; ++i) {
      EXPECT_EQ(done.Unchanged(i), same[i]) << i;
      EXPECT_EQ(done.Unchanged(i, i / 300), same[i]) << i;
    }
    EXPECT_TRUE(done.Unchanged(unchecked));
    EXPECT_TRUE(Get(target->data(), from.size()) == from);
  }
}

// A table of generations that no device can reach is looked at by the processor.
TEST_P(CopyBatchTest, GenerationsInMemoryThatIsNotPinned) {
  const std::string from = Bytes(8192);
  const auto source = OnDevice(from);
  std::string target = Poison(8192);
  const auto counters = std::make_unique<protocol::GenerationCounter[]>(2);
  counters[0] = 7;
  counters[1] = 8;
  CopyBatch batch(device);
  const size_t good = batch.AddKey(&counters[0], 7);
  const size_t bad = batch.AddKey(&counters[1], 7);
  batch.Copy(good, {target.data(), source->data(), 4096});
  batch.Copy(bad, {target.data() + 4096, source->data() + 4096, 4096});
  const Completion done = Run(std::move(batch));
  EXPECT_TRUE(done.Unchanged(good));
  EXPECT_FALSE(done.Unchanged(bad));
  EXPECT_TRUE(target == from);
}

// Work on another stream that waits for a layer's event sees the layer's bytes.
TEST_P(CopyBatchTest, AStreamGoesOnWhenItsLayerIsThere) {
  constexpr size_t kLayer = 1 << 20;
  constexpr size_t kLayers = 6;
  const std::string from = Bytes(kLayer * kLayers);
  const auto source = OnHost(from);
  const auto target = OnDevice(Poison(from.size()));
  const auto seen = OnHost(Poison(from.size()));
  auto own = device->NewStream();
  auto other = device->NewStream();
  ASSERT_TRUE(own && other);
  CopyBatch batch(device, (*own)->ref());
  const size_t key = batch.AddKey(nullptr, 0);
  for (size_t i = 0; i < kLayers; ++i) {
    for (size_t at = 0; at < kLayer; at += kLayer / 16) {
      batch.Copy(key,
                 {target->data() + i * kLayer + at, source->data() + i * kLayer + at, kLayer / 16});
    }
    batch.EndLayer();
  }
  auto completion = std::move(batch).Submit();
  ASSERT_TRUE(completion) << completion.error().message;
  ASSERT_EQ(completion->layers(), kLayers);
  for (size_t i = 0; i < kLayers; ++i) {
    ASSERT_TRUE(device->WaitFor((*other)->ref(), completion->layer(i)));
    ASSERT_TRUE(device->CopyOne((*other)->ref(),
                                {seen->data() + i * kLayer, target->data() + i * kLayer, kLayer}));
  }
  ASSERT_TRUE(device->Drain((*other)->ref()));
  EXPECT_TRUE(std::string(seen->data(), from.size()) == from);
  ASSERT_TRUE(completion->Wait());
  const auto done = completion->Done();
  EXPECT_TRUE(done && *done);
}

TEST_P(CopyBatchTest, AnEmptyBatchIsDone) {
  const Completion done = Run(CopyBatch(device));
  EXPECT_EQ(done.layers(), 1u);
  const auto reached = done.Done();
  EXPECT_TRUE(reached && *reached);
}

TEST_P(CopyBatchTest, NullAddressesAreRefused) {
  const auto target = OnDevice(Poison(64));
  CopyBatch batch(device);
  const size_t key = batch.AddKey(nullptr, 0);
  batch.Copy(key, {target->data(), nullptr, 64});
  const auto completion = std::move(batch).Submit();
  ASSERT_FALSE(completion);
  EXPECT_EQ(completion.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace moonpool::gpu
