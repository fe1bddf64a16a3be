// Batches on a stream of the caller's: order, layers, pages, and what becomes of each key.
#include <algorithm>
#include <atomic>
#include <thread>

#include <moonpool/gpu.h>

#include "tests/client/gpu_rig.h"
#include "tests/client/raw_session.h"

namespace moonpool::client {
namespace {

class GpuStreams : public GpuClientTest {
 protected:
  void SetUp() override {
    GpuClientTest::SetUp();
    if (IsSkipped()) return;
    auto made = device->NewStream();
    ASSERT_TRUE(made);
    stream_owner = std::move(*made);
    stream = stream_owner->ref().handle;
  }
  void Drain() { ASSERT_TRUE(device->Drain({stream})); }
  void CheckPages();
  void CheckPagesThatAreWrong();

  std::unique_ptr<gpu::Stream> stream_owner;
  void* stream = nullptr;
};

TEST_P(GpuStreams, ReadsAndWrites) {
  // Of every size, by every way, in one batch each.
  constexpr size_t kSizes[] = {24, 5000, 65528, 65536, 300'000, 3 << 20};
  for (const char* how : {"transport=shm", "transport=tcp", "transport=shm&checksum=yes"}) {
    SCOPED_TRACE(how);
    client = server->Connect(how);
    std::vector<std::string> names, values;
    std::vector<std::string_view> keys;
    std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
    std::vector<std::vector<ConstLayerBuffer>> from;
    std::vector<std::vector<LayerBuffer>> into;
    for (const size_t bytes : kSizes) {
      names.push_back(std::string(how) + std::to_string(bytes));
      values.push_back(Stamped(bytes, names.size()));
      blocks.push_back(OnDevice(values.back()));
      from.push_back({{blocks.back()->data(), bytes, 0}});
      into.push_back({{blocks.back()->data(), bytes, 0}});
    }
    for (const std::string& name : names) keys.push_back(name);
    // A GPU may be done with all of it before anybody looks.
    const bool held = GetParam() == gpu::Kind::kDouble;
    if (held) Double().Pause();
    GpuTransfer put = PutOnStream(*client, stream, keys, from);
    EXPECT_TRUE(put.in_flight(0) || !held);
    if (held) Double().Resume();
    for (const KeyResult& result : put.Wait()) EXPECT_TRUE(result.ok()) << result.message;
    EXPECT_FALSE(put.in_flight(0));
    for (size_t i = 0; i < names.size(); ++i) {
      std::string plain;
      ASSERT_TRUE(client->Get(names[i], &plain).ok());
      EXPECT_TRUE(plain == values[i]);
      Put(blocks[i]->data(), Poison(values[i].size()));
    }
    GpuTransfer get = GetOnStream(*client, stream, keys, into);
    EXPECT_TRUE(get.StreamWaits(stream, 0).ok());
    for (const KeyResult& result : get.Wait()) EXPECT_TRUE(result.ok()) << result.message;
    EXPECT_TRUE(get.Done());
    for (size_t i = 0; i < names.size(); ++i) {
      EXPECT_TRUE(Holds(*blocks[i], values[i], values[i].size())) << names[i];
    }
    EXPECT_EQ(get.result(4).bytes, values[4].size());
  }
}

TEST_P(GpuStreams, WhatIsKnownAtOnce) {
  const std::string value = Stamped(100'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size());
  const std::string_view keys[] = {"k", "nothing", "k"};
  const std::vector<LayerBuffer> into[] = {
      {{block->data(), value.size()}}, {{block->data(), 10}}, {{block->data(), 10}}};
  GpuTransfer transfer = GetOnStream(*client, stream, keys, into);
  EXPECT_TRUE(transfer.in_flight(0));
  EXPECT_FALSE(transfer.in_flight(1));
  EXPECT_EQ(transfer.result(1).code, Code::kMiss);
  EXPECT_FALSE(transfer.in_flight(2));
  EXPECT_EQ(transfer.result(2).code, Code::kBufferTooSmall);
  EXPECT_TRUE(transfer.Wait()[0].ok());
  EXPECT_TRUE(Holds(*block, value, value.size()));
  // A list that is short.
  GpuTransfer wrong = GetOnStream(*client, stream, keys, std::span(into).first(2));
  for (const KeyResult& result : wrong.Wait()) EXPECT_EQ(result.code, Code::kInvalidArgument);
  EXPECT_TRUE(wrong.Done());
  // Nothing at all.
  EXPECT_TRUE(GetOnStream(*client, stream, {}, {}).Wait().empty());
  GpuTransfer none;
  EXPECT_TRUE(none.Done());
  EXPECT_FALSE(none.in_flight(0));
  EXPECT_EQ(none.result(0).code, Code::kInvalidArgument);
  EXPECT_FALSE(transfer.in_flight(3));
  EXPECT_EQ(transfer.result(3).code, Code::kInvalidArgument);
}

TEST_P(GpuStreams, TheStreamsOrderIsKept) {
  // What the stream does before the call is seen by a write; what it does after comes after a read.
  const std::string first = Stamped(200'000, 1, 1), second = Stamped(200'000, 1, 2);
  const auto source = OnHost(first);
  const auto block = Room(first.size());
  const std::string_view keys[] = {"k"};
  const std::vector<ConstLayerBuffer> from[] = {{{block->data(), first.size()}}};
  const std::vector<LayerBuffer> into[] = {{{block->data(), first.size()}}};
  ASSERT_TRUE(device->CopyOne({stream}, {block->data(), source->data(), first.size()}));
  GpuTransfer put = PutOnStream(*client, stream, keys, from);
  const auto later = OnHost(second);
  ASSERT_TRUE(device->CopyOne({stream}, {block->data(), later->data(), second.size()}));
  ASSERT_TRUE(put.Wait()[0].ok()) << put.result(0).message;
  std::string plain;
  ASSERT_TRUE(client->Get("k", &plain).ok());
  EXPECT_TRUE(plain == first);
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  const auto out = OnHost(Poison(first.size()));
  ASSERT_TRUE(device->CopyOne({stream}, {out->data(), block->data(), first.size()}));
  Drain();
  EXPECT_TRUE(std::string(out->data(), first.size()) == first);
  EXPECT_TRUE(get.Wait()[0].ok());
}

TEST_P(GpuStreams, WritesAppearWithoutAnybodyWaiting) {
  const std::string value = Stamped(200'000, 1), small = Stamped(2000, 2);
  const auto block = OnDevice(value), little = OnDevice(small);
  const std::string_view keys[] = {"k", "small"};
  const std::vector<ConstLayerBuffer> from[] = {{{block->data(), value.size()}},
                                                {{little->data(), small.size()}}};
  (void)PutOnStream(*client, stream, keys, from);
  EXPECT_TRUE(Eventually([&] { return client->Exists("k").ok() && client->Exists("small").ok(); }));
  // And of a client that is closed at once.
  const std::string_view others[] = {"other", "little"};
  (void)PutOnStream(*client, stream, others, from);
  client = server->Connect();
  std::string plain;
  ASSERT_TRUE(client->Get("other", &plain).ok());
  EXPECT_TRUE(plain == value);
  ASSERT_TRUE(client->Get("little", &plain).ok());
  EXPECT_TRUE(plain == small);
}

TEST_P(GpuStreams, ConditionsOfWrites) {
  const std::string value = Stamped(200'000, 1);
  const auto block = OnDevice(value);
  const std::string_view keys[] = {"k"};
  const std::vector<ConstLayerBuffer> from[] = {{{block->data(), value.size()}}};
  PutOptions options;
  options.if_present = true;
  EXPECT_EQ(PutOnStream(*client, stream, keys, from, options).Wait()[0].code,
            Code::kConditionNotMet);
  options = {};
  options.if_absent = true;
  EXPECT_TRUE(PutOnStream(*client, stream, keys, from, options).Wait()[0].ok());
  EXPECT_EQ(PutOnStream(*client, stream, keys, from, options).Wait()[0].code,
            Code::kConditionNotMet);
  options.if_present = true;
  EXPECT_EQ(PutOnStream(*client, stream, keys, from, options).Wait()[0].code,
            Code::kInvalidArgument);
}

// Layers of a value: pieces that say whose they are.
TEST_P(GpuStreams, LayersOfPieces) {
  constexpr size_t kLayers = 5, kKeys = 7;
  std::vector<std::string> names, values;
  std::vector<std::string_view> keys;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
  std::vector<std::vector<LayerBuffer>> into;
  std::vector<std::vector<ConstLayerBuffer>> from;
  for (size_t k = 0; k < kKeys; ++k) {
    names.push_back("layers:" + std::to_string(k));
    // Small ones among them, which come another way.
    const size_t part = k == 3 ? 800 : 30'000 + 8 * k;
    values.push_back(Stamped(kLayers * part, k));
    blocks.push_back(Room(values[k].size()));
    into.emplace_back();
    from.emplace_back();
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      into[k].push_back({blocks[k]->data() + layer * part, part, layer});
      from[k].push_back({blocks[k]->data() + layer * part, part, layer});
    }
    ASSERT_TRUE(client->Set(names[k], values[k]).ok());
  }
  for (const std::string& name : names) keys.push_back(name);
  {
    GpuTransfer get = GetOnStream(*client, stream, keys, into);
    ASSERT_EQ(get.layers(), kLayers);
    for (size_t layer = 0; layer < kLayers; ++layer) {
      // A stream of its own, which goes on when the layer is there.
      auto compute = device->NewStream();
      ASSERT_TRUE(compute);
      ASSERT_TRUE(get.StreamWaits((*compute)->ref().handle, layer).ok());
      ASSERT_TRUE(device->Drain((*compute)->ref()));
      bool reached = false;
      ASSERT_TRUE(get.Reached(layer, &reached).ok());
      EXPECT_TRUE(reached);
      EXPECT_EQ(get.event(layer) != nullptr, GetParam() == gpu::Kind::kCuda);
      for (size_t k = 0; k < kKeys; ++k) {
        const size_t part = values[k].size() / kLayers;
        EXPECT_TRUE(Get(blocks[k]->data() + layer * part, part) == values[k].substr(layer * part, part))
            << "layer " << layer << " of key " << k;
      }
    }
    EXPECT_EQ(get.event(kLayers), nullptr);
    EXPECT_EQ(get.StreamWaits(stream, kLayers).code, Code::kInvalidArgument);
    for (const KeyResult& result : get.Wait()) EXPECT_TRUE(result.ok()) << result.message;
  }
  for (std::string_view& key : keys) key.remove_prefix(1);
  GpuTransfer put = PutOnStream(*client, stream, keys, from);
  for (const KeyResult& result : put.Wait()) EXPECT_TRUE(result.ok()) << result.message;
  for (size_t k = 0; k < kKeys; ++k) {
    std::string plain;
    ASSERT_TRUE(client->Get(keys[k], &plain).ok());
    EXPECT_TRUE(plain == values[k]);
  }
}

struct Layout {
  const char* name;
  uint32_t planes;
  size_t piece;
  bool page_first;
  uint32_t layers;
};

// Pages as engines have them, by way of page tables.
void GpuStreams::CheckPages() {
  constexpr Layout kLayouts[] = {{"K and V per layer", 8, 4096, false, 4},
                                 {"the same in one launch", 8, 4096, false, 1},
                                 {"page first", 6, 3000, true, 3},
                                 {"latent", 4, 1152, false, 1},
                                 {"whole pages", 1, 65536, true, 1}};
  constexpr size_t kPool = 300, kKeys = 20;
  for (const Layout& layout : kLayouts) {
    for (const size_t per_key : {size_t{1}, size_t{3}, size_t{40}}) {
      const size_t keys_here = per_key == 40 ? 3 : kKeys;
      SCOPED_TRACE(layout.name);
      SCOPED_TRACE(per_key);
      const size_t page = layout.planes * layout.piece;
      PagedCache cache;
      cache.plane_count = layout.planes;
      cache.piece_bytes = layout.piece;
      cache.page_limit = kPool;
      cache.layers = layout.layers;
      const auto memory = Room(kPool * page);
      if (layout.page_first) {
        cache.base = memory->data();
        cache.plane_stride = layout.piece;
        cache.page_stride = page;
      } else {
        for (size_t p = 0; p < layout.planes; ++p) {
          cache.planes.push_back(memory->data() + p * kPool * layout.piece);
        }
        cache.page_stride = layout.piece;
      }
      std::vector<int32_t> indexes(kPool);
      for (size_t i = 0; i < kPool; ++i) indexes[i] = static_cast<int32_t>(i);
      for (size_t i = kPool - 1; i > 0; --i) std::swap(indexes[i], indexes[random.Below(i + 1)]);
      indexes.resize(keys_here * per_key);
      std::vector<std::string> names, values;
      std::vector<std::string_view> keys, copies;
      std::string expected = Poison(kPool * page);
      for (size_t k = 0; k < keys_here; ++k) {
        names.push_back("page:" + std::to_string(k));
        values.push_back(Bytes(per_key * page));
        ASSERT_TRUE(client->Set(names[k], values[k]).ok());
        for (size_t i = 0; i < per_key; ++i) {
          const auto slot = static_cast<size_t>(indexes[k * per_key + i]);
          for (size_t p = 0; p < layout.planes; ++p) {
            const size_t at = layout.page_first ? slot * page + p * layout.piece
                                                : (p * kPool + slot) * layout.piece;
            expected.replace(at, layout.piece, values[k], i * page + p * layout.piece, layout.piece);
          }
        }
      }
      for (const std::string& name : names) keys.push_back(name);
      for (const std::string& name : names) copies.push_back(std::string_view(name).substr(1));
      GpuTransfer get = GetPagesOnStream(*client, stream, keys, cache, indexes);
      EXPECT_EQ(get.layers(), layout.layers);
      for (const KeyResult& result : get.Wait()) EXPECT_TRUE(result.ok()) << result.message;
      EXPECT_TRUE(Get(memory->data(), expected.size()) == expected);
      const std::vector<int64_t> wide(indexes.begin(), indexes.end());
      GpuTransfer put = PutPagesOnStream(*client, stream, copies, cache, wide);
      for (const KeyResult& result : put.Wait()) EXPECT_TRUE(result.ok()) << result.message;
      for (size_t k = 0; k < keys_here; ++k) {
        std::string plain;
        ASSERT_TRUE(client->Get(copies[k], &plain).ok());
        EXPECT_TRUE(plain == values[k]) << k;
      }
    }
  }
}

TEST_P(GpuStreams, Pages) { CheckPages(); }

void GpuStreams::CheckPagesThatAreWrong() {
  PagedCache cache;
  constexpr size_t kPage = 70'000, kPages = 4;
  // With memory of the caller's around the cache.
  const size_t bytes = (kPages + 4) * kPage;
  const auto memory = Room(bytes);
  char* const base = memory->data() + 2 * kPage;
  cache.base = base;
  cache.page_stride = kPage;
  cache.piece_bytes = kPage;
  cache.page_limit = kPages;
  const std::string value = Stamped(kPage, 1);
  ASSERT_TRUE(client->Set("good", value).ok());
  ASSERT_TRUE(client->Set("short", value.substr(0, kPage - 8)).ok());
  const std::string_view keys[] = {"good", "short", "good", "good"};
  GpuTransfer get = GetPagesOnStream(*client, stream, keys, cache, std::vector<int32_t>{2, 1, 4, -1});
  const auto results = get.Wait();
  EXPECT_TRUE(results[0].ok()) << results[0].message;
  EXPECT_EQ(results[1].code, Code::kBufferTooSmall);
  EXPECT_EQ(results[2].code, Code::kInvalidArgument);
  EXPECT_EQ(results[3].code, Code::kInvalidArgument);
  const std::string expected = Poison(4 * kPage) + value + Poison(3 * kPage);
  EXPECT_TRUE(Get(memory->data(), bytes) == expected);
  const std::vector<int32_t> all(kPages);
  const auto are_refused = [&](const std::vector<int32_t>& indexes) {
    GpuTransfer into = GetPagesOnStream(*client, stream, keys, cache, indexes);
    GpuTransfer from = PutPagesOnStream(*client, stream, keys, cache, indexes);
    for (const size_t key : {0, 3}) {
      EXPECT_EQ(into.Wait()[key].code, Code::kInvalidArgument);
      EXPECT_EQ(from.Wait()[key].code, Code::kInvalidArgument);
      EXPECT_FALSE(from.result(key).message.empty());
    }
  };
  are_refused({1, 2, 3});
  cache.layers = 2;
  are_refused(all);
  cache.layers = 0;
  are_refused(all);
  // Planes that are not as many as there should be: of one layer, and of two.
  cache.base = nullptr;
  cache.plane_count = 4;
  cache.piece_bytes = cache.page_stride = kPage / 4;
  for (const uint32_t layers : {1, 2}) {
    for (const size_t planes : {1, 2, 3, 5}) {
      SCOPED_TRACE(planes);
      cache.layers = layers;
      cache.planes.clear();
      for (size_t p = 0; p < planes; ++p) cache.planes.push_back(base + p * cache.piece_bytes);
      are_refused(all);
    }
  }
  EXPECT_TRUE(Get(memory->data(), bytes) == expected);
}

TEST_P(GpuStreams, PagesThatAreWrong) { CheckPagesThatAreWrong(); }

TEST_P(GpuStreams, HostMemoryAlone) {
  // Without device memory it is an ordinary batch, whatever the stream.
  constexpr size_t kPage = 3000;
  std::string memory = Poison(40 * kPage);
  PagedCache cache;
  cache.base = memory.data();
  cache.page_stride = 2 * kPage;
  cache.plane_count = 2;
  cache.plane_stride = kPage;
  cache.piece_bytes = kPage;
  cache.page_limit = 20;
  const std::string value = Bytes(4 * 2 * kPage), old = memory;
  ASSERT_TRUE(client->Set("k", value).ok());
  const std::string_view keys[] = {"k"};
  const std::vector<int32_t> indexes = {7, 0, 19, 3};
  GpuTransfer get = GetPagesOnStream(*client, stream, keys, cache, indexes);
  EXPECT_TRUE(get.Done());
  EXPECT_FALSE(get.in_flight(0));
  EXPECT_TRUE(get.Wait()[0].ok()) << get.result(0).message;
  std::string expected = old;
  for (size_t i = 0; i < indexes.size(); ++i) {
    expected.replace(static_cast<size_t>(indexes[i]) * 2 * kPage, 2 * kPage, value, i * 2 * kPage,
                     2 * kPage);
  }
  EXPECT_TRUE(memory == expected);
  const std::string_view copies[] = {"copy"};
  EXPECT_TRUE(PutPagesOnStream(*client, stream, copies, cache, indexes).Wait()[0].ok());
  std::string plain;
  ASSERT_TRUE(client->Get("copy", &plain).ok());
  EXPECT_TRUE(plain == value);
  const std::vector<LayerBuffer> into[] = {{{memory.data(), value.size(), 3}}};
  EXPECT_TRUE(GetOnStream(*client, stream, keys, into).Wait()[0].ok());
  EXPECT_EQ(memory.compare(0, value.size(), value), 0);
  cache.page_limit = 5;
  EXPECT_EQ(GetPagesOnStream(*client, stream, keys, cache, indexes).Wait()[0].code,
            Code::kInvalidArgument);
}

INSTANTIATE_DEVICES(GpuStreams);

// Where mappings without write access cannot be pinned.
class UnpinnedStreams : public GpuStreams {
 protected:
  UnpinnedStreams() { pins_read_only = false; }
};

TEST_P(UnpinnedStreams, Pages) { CheckPages(); }
TEST_P(UnpinnedStreams, PagesThatAreWrong) { CheckPagesThatAreWrong(); }
TEST_P(UnpinnedStreams, AreCounted) {
  const std::string value = Stamped(200'000, 1);
  const auto block = OnDevice(value);
  ASSERT_TRUE(PutOne(*client, "k", block->data(), value.size()).ok());
  EXPECT_EQ(client->stats().gpu_unpinned_values, 0u);  // a write arena is mapped writable
  ASSERT_TRUE(GetOne(*server->Connect(), "k", block->data(), value.size()).ok());
  const auto other = server->Connect();
  ASSERT_TRUE(GetOne(*other, "k", block->data(), value.size()).ok());
  EXPECT_EQ(other->stats().gpu_unpinned_values, 1u);
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

INSTANTIATE_TEST_SUITE_P(On, UnpinnedStreams, testing::Values(gpu::Kind::kDouble), gpu::KindName);

// --- what only the double can be told ------------------------------------------------------------

class GpuStreamFailures : public GpuStreams {
 protected:
  GpuStreamFailures() { hidden = false; }
};

TEST_P(GpuStreamFailures, NothingIsWaitedFor) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size()), source = OnDevice(value);
  const std::string_view keys[] = {"k"}, others[] = {"new"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), 100'000, 0},
                                            {block->data() + 100'000, 100'000, 1}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  GpuTransfer put = PutOnStream(*client, stream, others, from);
  EXPECT_FALSE(get.Done());
  EXPECT_FALSE(put.Done());
  EXPECT_EQ(client->Exists("new").code, Code::kMiss);
  Double().Resume();
  EXPECT_TRUE(get.Wait()[0].ok());
  EXPECT_TRUE(put.Wait()[0].ok());
  EXPECT_TRUE(client->Exists("new").ok());
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

// A graph would move the same bytes again whenever it is launched, long after their leases.
TEST_P(GpuStreamFailures, AStreamThatIsCapturedIsRefused) {
  const std::string value = Stamped(200'000, 1), small = Stamped(3000, 2);
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Set("small", small).ok());
  const auto block = Room(value.size()), little = Room(small.size());
  const std::string_view keys[] = {"k", "small"}, others[] = {"new", "less"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}},
                                           {{little->data(), small.size()}}};
  const std::vector<ConstLayerBuffer> from[] = {{{block->data(), value.size()}},
                                                {{little->data(), small.size()}}};
  Double().SetCaptured({stream}, true);
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  GpuTransfer put = PutOnStream(*client, stream, others, from);
  for (GpuTransfer* transfer : {&get, &put}) {
    for (const KeyResult& result : transfer->Wait()) {
      EXPECT_EQ(result.code, Code::kInvalidArgument) << result.message;
      EXPECT_NE(result.message.find("captured"), std::string::npos) << result.message;
    }
  }
  EXPECT_TRUE(Holds(*block, "", value.size()));
  EXPECT_EQ(client->Exists("new").code, Code::kMiss);
  // Calls that use streams of the library's are none of the capture's business.
  EXPECT_TRUE(GetOne(*client, "k", block->data(), value.size()).ok());
  Double().SetCaptured({stream}, false);
  EXPECT_TRUE(GetOnStream(*client, stream, keys, into).Wait()[1].ok());
  EXPECT_TRUE(PutOnStream(*client, stream, others, from).Wait()[0].ok());
}

TEST_P(GpuStreamFailures, AWriteIsCommittedWhenTheStreamHasCopied) {
  const std::string value = Stamped(200'000, 1), small = Stamped(3000, 2);
  const auto source = OnDevice(value), little = OnDevice(small);
  const std::string_view keys[] = {"k", "small"};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}},
                                                {{little->data(), small.size()}}};
  Double().Pause();
  GpuTransfer put = PutOnStream(*client, stream, keys, from);
  std::thread waiter([&] {
    for (const KeyResult& result : put.Wait()) EXPECT_TRUE(result.ok()) << result.message;
  });
  for (int look = 0; look < 100; ++look) {
    EXPECT_EQ(client->Exists("k").code, Code::kMiss);
    EXPECT_EQ(client->Exists("small").code, Code::kMiss);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Double().Resume();
  waiter.join();
  std::string plain;
  ASSERT_TRUE(client->Get("k", &plain).ok());
  EXPECT_TRUE(plain == value);
  ASSERT_TRUE(client->Get("small", &plain).ok());
  EXPECT_TRUE(plain == small);
}

TEST_P(GpuStreamFailures, ALayerIsThereBeforeTheNext) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size());
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), 100'000, 0},
                                            {block->data() + 100'000, 100'000, 1}}};
  // How many steps of the device the first layer takes is not ours to know: one more at a time.
  bool seen = false;
  for (uint64_t steps = 1; steps < 10 && !seen; ++steps) {
    Put(block->data(), Poison(value.size()));
    Double().Pause(steps);
    GpuTransfer get = GetOnStream(*client, stream, keys, into);
    EXPECT_TRUE(Eventually([&] { return Double().still(); }));
    bool first = false, second = false;
    ASSERT_TRUE(get.Reached(0, &first).ok());
    ASSERT_TRUE(get.Reached(1, &second).ok());
    if (first && !second) {
      seen = true;
      EXPECT_EQ(std::string(block->data(), 100'000), value.substr(0, 100'000));
      EXPECT_EQ(std::string(block->data() + 100'000, 100'000), Poison(100'000));
    }
    Double().Resume();
    EXPECT_TRUE(get.Wait()[0].ok());
    EXPECT_TRUE(Holds(*block, value, value.size()));
  }
  EXPECT_TRUE(seen);
}

TEST_P(GpuStreamFailures, AValueThatChangesIsToldAndReadAgain) {
  StartServer({{"lease-default", "0"}});
  const auto other = server->Connect("transport=shm&gpu=no");
  const std::string first = Stamped(200'000, 1, 1), second = Stamped(150'000, 1, 2);
  const std::string same = Stamped(100'000, 2);
  ASSERT_TRUE(other->Set("k", first).ok());
  ASSERT_TRUE(other->Set("gone", first).ok());
  ASSERT_TRUE(other->Set("same", same).ok());
  const auto block = Room(first.size()), third = Room(first.size()), rest = Room(same.size());
  const std::string_view keys[] = {"k", "gone", "same"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), first.size(), 1}},
                                           {{third->data(), first.size(), 0}},
                                           {{rest->data(), same.size(), 0}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  RawSession session(*server);
  ASSERT_TRUE(other->Set("k", second).ok());
  ASSERT_TRUE(other->Del("gone").ok());
  // Their extents are given to others, and overwritten.
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(other->Set("filler" + std::to_string(i), Stamped(200'000, 9)).ok());
  }
  Double().Resume();
  const auto results = get.Wait();
  EXPECT_EQ(results[0].code, Code::kChanged);
  EXPECT_FALSE(results[0].message.empty());
  EXPECT_EQ(results[1].code, Code::kChanged);
  EXPECT_TRUE(results[2].ok());
  EXPECT_TRUE(Holds(*rest, same, same.size()));
  EXPECT_EQ(client->stats().generation_retries, 2u);
  const auto again = get.Retry();
  EXPECT_TRUE(again[0].ok()) << again[0].message;
  EXPECT_EQ(again[0].bytes, second.size());
  EXPECT_TRUE(Get(block->data(), second.size()) == second);
  EXPECT_EQ(again[1].code, Code::kMiss);
  EXPECT_TRUE(again[2].ok());
}

// Many values in one launch: each has a generation of its own.
TEST_P(GpuStreamFailures, PagesOfAValueThatChanges) {
  StartServer({{"lease-default", "0"}});
  const auto other = server->Connect("transport=shm&gpu=no");
  constexpr size_t kPage = 70'000, kKeys = 6;
  const auto memory = Room(kKeys * kPage);
  PagedCache cache;
  cache.base = memory->data();
  cache.page_stride = kPage;
  cache.piece_bytes = kPage;
  std::vector<std::string> names, values;
  std::vector<std::string_view> keys;
  std::vector<int32_t> indexes;
  for (size_t k = 0; k < kKeys; ++k) {
    names.push_back("k" + std::to_string(k));
    values.push_back(Stamped(kPage, k));
    indexes.push_back(static_cast<int32_t>(kKeys - 1 - k));
    ASSERT_TRUE(other->Set(names[k], values[k]).ok());
  }
  for (const std::string& name : names) keys.push_back(name);
  Double().Pause();
  GpuTransfer get = GetPagesOnStream(*client, stream, keys, cache, indexes);
  const std::string changed = Stamped(kPage, 4, 2);
  ASSERT_TRUE(other->Set("k4", changed).ok());
  Double().Resume();
  const auto results = get.Wait();
  for (size_t k = 0; k < kKeys; ++k) {
    EXPECT_EQ(results[k].code, k == 4 ? Code::kChanged : Code::kOk) << k;
    if (k == 4) continue;
    EXPECT_TRUE(Get(memory->data() + (kKeys - 1 - k) * kPage, kPage) == values[k]);
  }
  EXPECT_EQ(Double().counts().pages, 1u) << "launches";
  EXPECT_TRUE(get.Retry()[4].ok());
  EXPECT_TRUE(Get(memory->data() + kPage, kPage) == changed);
}

TEST_P(GpuStreamFailures, EveryCallThatMayFail) {
  const std::string value = Stamped(200'000, 1), small = Stamped(3000, 2);
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Set("small", small).ok());
  const auto block = Room(value.size()), little = Room(small.size());
  const auto source = OnDevice(value), source_small = OnDevice(small);
  const std::string_view keys[] = {"k", "small"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size(), 1}},
                                           {{little->data(), small.size(), 0}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size(), 1}},
                                                {{source_small->data(), small.size(), 0}}};
  bool whole = false;
  for (uint64_t calls = 0; !whole && calls < 100; ++calls) {
    SCOPED_TRACE(calls);
    Double().FailCallAfter(calls);
    GpuTransfer get = GetOnStream(*client, stream, keys, into);
    const auto got = get.Wait();
    Double().FailCallAfter(UINT32_MAX);
    whole = true;
    for (const KeyResult& result : got) {
      whole &= result.ok();
      EXPECT_TRUE(result.ok() || result.code == Code::kDeviceError) << result.message;
    }
    EXPECT_TRUE(!got[0].ok() || Holds(*block, value, value.size()));
    EXPECT_TRUE(!got[1].ok() || Holds(*little, small, small.size()));
    const std::string a = "a" + std::to_string(calls), b = "b" + std::to_string(calls);
    const std::string_view names[] = {a, b};
    Double().FailCallAfter(calls);
    GpuTransfer put = PutOnStream(*client, stream, names, from);
    const auto done = put.Wait();
    Double().FailCallAfter(UINT32_MAX);
    for (size_t i = 0; i < 2; ++i) {
      whole &= done[i].ok();
      EXPECT_TRUE(done[i].ok() || done[i].code == Code::kDeviceError) << done[i].message;
      std::string plain;
      const Status read = client->Get(names[i], &plain);
      EXPECT_EQ(read.ok(), done[i].ok());
      EXPECT_TRUE(!read.ok() || plain == (i == 0 ? value : small));
    }
  }
  EXPECT_TRUE(whole);
  // No reservation is left behind.
  client = nullptr;
  server->tenant().keyspace().Clear();
  EXPECT_TRUE(Eventually([&] { return server->tenant().budget().extent_bytes() == 0; }));
}

TEST_P(GpuStreamFailures, WhatCouldNotBePinnedIsTriedAgain) {
  const std::string value = Stamped(200'000, 1);
  const auto block = Room(value.size());
  const auto other = server->Connect("gpu=no");  // in whose arena the value stays
  ASSERT_TRUE(other->Set("k", value).ok());
  uint64_t unpinned = 0;
  const auto get = [&] {
    const uint64_t before = unpinned;
    (void)GetOne(*client, "k", block->data(), value.size());
    unpinned = client->stats().gpu_unpinned_values;
    return unpinned > before;
  };
  Double().FailCallAfter(0);
  EXPECT_TRUE(get());
  Double().FailCallAfter(UINT32_MAX);
  EXPECT_TRUE(Eventually([&] { return !get(); }));
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

TEST_P(GpuStreamFailures, ADeviceThatIsLost) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size()), source = OnDevice(value);
  const std::string_view keys[] = {"k"}, names[] = {"new"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  GpuTransfer put = PutOnStream(*client, stream, names, from);
  Double().LoseAfter(0);
  Double().Resume();
  EXPECT_EQ(get.Wait()[0].code, Code::kDeviceError);
  bool reached = false;
  EXPECT_EQ(get.Reached(0, &reached).code, Code::kDeviceError);
  EXPECT_EQ(put.Wait()[0].code, Code::kDeviceError);
  EXPECT_EQ(client->Exists("new").code, Code::kMiss);
  GpuTransfer after = GetOnStream(*client, stream, keys, into);
  EXPECT_EQ(after.Wait()[0].code, Code::kDeviceError);
}

TEST_P(GpuStreamFailures, ASessionThatIsLostBeforeTheCommit) {
  const std::string value = Stamped(200'000, 1);
  const auto source = OnDevice(value);
  const std::string_view keys[] = {"k"};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  client = server->Connect("connections=1");
  Double().Pause();
  GpuTransfer put = PutOnStream(*client, stream, keys, from);
  const std::string_view kill[] = {"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"};
  std::string reply;
  (void)server->Connect()->Command(kill, &reply);
  Double().Resume();
  const KeyResult& result = put.Wait()[0];
  EXPECT_EQ(result.code, Code::kUnavailable);
  EXPECT_NE(result.message.find("put it again"), std::string::npos) << result.message;
  EXPECT_EQ(client->Exists("k").code, Code::kMiss);
  GpuTransfer again = PutOnStream(*client, stream, keys, from);
  EXPECT_TRUE(again.Wait()[0].ok()) << again.result(0).message;
}

TEST_P(GpuStreamFailures, OutliveTheClient) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size());
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  client = nullptr;
  Double().Resume();
  EXPECT_TRUE(get.Wait()[0].ok());
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

INSTANTIATE_TEST_SUITE_P(On, GpuStreamFailures, testing::Values(gpu::Kind::kDouble), gpu::KindName);

// --- a write that is to be committed over a connection which somebody else uses --------------------

class BusySession : public testing::Test {
 protected:
  BusySession() {
    gpu::HostDeviceOptions options;
    options.devices = 2;
    devices = gpu::MakeHostDevices(options);
    ReplaceGpuDevices({devices[0].get(), devices[1].get()});
    server = std::make_unique<LiveServer>();
    // Longer than Eventually() looks: whoever is not woken is late.
    client = server->Connect("connections=2&timeout_ms=240000");
    for (const auto& device : devices) {
      auto block = device->NewDeviceBlock(kBytes);
      EXPECT_TRUE(block);
      FillStamped((*block)->data(), kBytes, {blocks.size(), 1});
      blocks.push_back(std::move(*block));
    }
    auto made = devices[0]->NewStream();
    EXPECT_TRUE(made);
    stream = std::move(*made);
    // Over the only connection there is.
    for (const auto& device : devices) device->Pause();
    const std::string_view keys[] = {"put"};
    const std::vector<ConstLayerBuffer> from[] = {{{blocks[0]->data(), kBytes}}};
    put = PutOnStream(*client, stream->ref().handle, keys, from);
    const uint64_t before = Launches();
    // It stays with this call until the second device has copied.
    other = std::thread([this] {
      const std::string_view key = "other";
      const ConstBuffer buffer{blocks[1]->data(), kBytes};
      const KeyResult result =
          client->BatchPutFrom(std::span(&key, 1), std::span(&buffer, 1))[0];
      EXPECT_TRUE(result.ok()) << result.message;
    });
    EXPECT_TRUE(Eventually([&] { return Launches() > before; }));
    devices[0]->Resume();
  }
  ~BusySession() override {
    devices[1]->Resume();
    other.join();
    EXPECT_TRUE(put.Wait()[0].ok()) << put.result(0).message;
    EXPECT_TRUE(client->Exists("put").ok());
    put = GpuTransfer();
    client = nullptr;
    server = nullptr;
    ReplaceGpuDevices({});
  }
  uint64_t Launches() { return devices[1]->counts().one + devices[1]->counts().many; }

  static constexpr size_t kBytes = 200'000;
  std::vector<std::unique_ptr<gpu::HostDevice>> devices;
  std::unique_ptr<LiveServer> server;
  std::unique_ptr<Client> client;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
  std::unique_ptr<gpu::Stream> stream;
  GpuTransfer put;
  std::thread other;
};

TEST_F(BusySession, WhoLooksDoesNotWait) {
  for (bool reached = false; !reached;) {
    EXPECT_FALSE(put.Done());
    ASSERT_TRUE(put.Reached(0, &reached).ok());
  }
  for (int look = 0; look < 100; ++look) {
    EXPECT_FALSE(put.Done());
    EXPECT_TRUE(put.in_flight(0));
    EXPECT_FALSE(put.result(0).ok());
    EXPECT_EQ(put.event(0), nullptr);  // as the double has it
    EXPECT_TRUE(put.StreamWaits(stream->ref().handle, 0).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(client->Exists("put").code, Code::kMiss);
  devices[1]->Resume();
  EXPECT_TRUE(Eventually([&] { return put.Done(); }));
  EXPECT_FALSE(put.in_flight(0));
  EXPECT_TRUE(put.result(0).ok());
}

// Who waits for that connection must not be woken instead of those that take any.
TEST_F(BusySession, OthersGetTheOther) {
  // Without a lease, whose release would wake somebody.
  const std::string value(50'000, 'v');
  ASSERT_TRUE(client->Set("k", value).ok());
  for (int round = 0; round < 200 && !HasFailure(); ++round) {
    std::atomic<size_t> served{0};
    std::thread all[4];
    for (std::thread& one : all) {
      one = std::thread([&] {
        std::string got;
        const Status status = client->Get("k", &got);
        EXPECT_TRUE(status.ok()) << status.message;
        ++served;
      });
    }
    EXPECT_TRUE(Eventually([&] { return served == std::size(all); }));
    for (std::thread& one : all) one.join();
  }
}

}  // namespace
}  // namespace moonpool::client
