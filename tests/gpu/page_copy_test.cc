// Gather and scatter of pages in the layouts that engines have, on the double and on a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "gpu/copy_batch.h"
#include "gpu/pages.h"
#include "tests/gpu/device_under_test.h"

namespace moonpool::gpu {
namespace {

class PageCopyTest : public DeviceTest {
 protected:
  // `count` different numbers below `limit`.
  template <typename T>
  std::vector<T> Some(size_t count, size_t limit) {
    std::vector<T> all(limit);
    std::iota(all.begin(), all.end(), T{0});
    for (size_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.Below(limit - i)]);
    all.resize(count);
    return all;
  }

  void Copy(const PageCopy& pages, const CopyLimits& limits = {}) {
    CopyBatch batch(device, std::nullopt, limits);
    batch.CopyPages(batch.AddKey(nullptr, 0), pages);
    Run(std::move(batch));
  }

  // Host memory (true) or device memory.
  char* Memory(bool on_host, const std::string& bytes) {
    if (on_host) {
      host_.push_back(OnHost(bytes));
      return host_.back()->data();
    }
    device_.push_back(OnDevice(bytes));
    return device_.back()->data();
  }
  std::string Look(bool on_host, const char* from, size_t bytes) {
    return on_host ? std::string(from, bytes) : Get(from, bytes);
  }

 private:
  std::vector<std::unique_ptr<HostBlock>> host_;
  std::vector<std::unique_ptr<DeviceBlock>> device_;
};
INSTANTIATE_DEVICES(PageCopyTest);

// There and back through a cache of per-layer K and V planes; every byte of the cache is looked at.
TEST_P(PageCopyTest, PerLayerPlanes) {
  for (const bool on_host : {false, true}) {
    for (const uint64_t piece : {uint64_t{4096}, uint64_t{16384}, uint64_t{1152}, uint64_t{100},
                                 uint64_t{77}, uint64_t{65536 + 16}}) {
      SCOPED_TRACE(std::to_string(piece) + (on_host ? " host " : " device ") + random.Replay());
      constexpr uint32_t kBlocks = 40;
      constexpr uint32_t kPages = 23;
      constexpr uint32_t kPlanes = 6;
      const std::string value = Bytes(kPages * kPlanes * piece);
      char* const run = Memory(on_host, value);
      std::vector<char*> planes;
      std::vector<std::string> expected(kPlanes, Poison(kBlocks * piece));
      for (uint32_t p = 0; p < kPlanes; ++p) planes.push_back(Memory(false, expected[p]));
      const auto table = Some<int32_t>(kPages, kBlocks);

      PageCopy scatter;
      scatter.page_count = kPages;
      scatter.plane_count = kPlanes;
      scatter.piece_bytes = piece;
      scatter.from.base = run;
      scatter.from.plane_stride = piece;
      scatter.from.page_stride = kPlanes * piece;
      scatter.to.planes = planes;
      scatter.to.page_stride = piece;
      scatter.to.table = PageTable::Of(table);
      scatter.to.page_limit = kBlocks;
      CopyLimits limits;
      limits.staged_pages = 512 << 10;  // the largest sizes here are staged
      limits.staging_chunk = 256 << 10;
      Copy(scatter, limits);
      for (uint32_t k = 0; k < kPages; ++k) {
        for (uint32_t p = 0; p < kPlanes; ++p) {
          std::copy_n(value.data() + (k * kPlanes + p) * piece, piece,
                      expected[p].data() + static_cast<size_t>(table[k]) * piece);
        }
      }
      for (uint32_t p = 0; p < kPlanes; ++p) {
        EXPECT_TRUE(Get(planes[p], kBlocks * piece) == expected[p]) << "plane " << p;
      }

      char* const back = Memory(on_host, Poison(value.size()));
      PageCopy gather = scatter;
      gather.from = scatter.to;
      gather.to = scatter.from;
      gather.to.base = back;
      Copy(gather, limits);
      EXPECT_TRUE(Look(on_host, back, value.size()) == value);
    }
  }
}

// Page first: a page is one piece, in a table of 64-bit indexes that is on the device.
TEST_P(PageCopyTest, PageFirstWithATableOnTheDevice) {
  constexpr uint64_t kPage = 96 << 10;
  constexpr uint32_t kBlocks = 60;
  constexpr uint32_t kPages = 50;
  const std::string cache = Bytes(kBlocks * kPage);
  char* const blocks = Memory(false, cache);
  const auto indexes = Some<int64_t>(kPages, kBlocks);
  const std::string table(reinterpret_cast<const char*>(indexes.data()), kPages * 8);
  char* const run = Memory(false, Poison(kPages * kPage));
  PageCopy gather;
  gather.page_count = kPages;
  gather.piece_bytes = kPage;
  gather.from.base = blocks;
  gather.from.page_stride = kPage;
  gather.from.table = {PageTable::Kind::kIndex64, Memory(false, table)};
  gather.to.base = run;
  gather.to.page_stride = kPage;
  Copy(gather);
  std::string expected;
  for (const int64_t index : indexes)
    expected += cache.substr(static_cast<size_t>(index) * kPage, kPage);
  EXPECT_TRUE(Get(run, expected.size()) == expected);
}

// Values of the pool, one key per page, wherever they are; thousands of them.
TEST_P(PageCopyTest, PagesByPointer) {
  for (const bool on_host : {false, true}) {
    constexpr uint64_t kPiece = 512;
    constexpr uint32_t kPlanes = 2;
    constexpr uint32_t kPages = 3000;
    const std::string pool = Bytes(kPages * kPlanes * kPiece);
    char* const values = Memory(on_host, pool);
    const auto order = Some<int32_t>(kPages, kPages);
    std::vector<char*> pointers;
    std::string k_plane(kPages * kPiece, '\0'), v_plane(kPages * kPiece, '\0');
    for (uint32_t k = 0; k < kPages; ++k) {
      const size_t at = static_cast<size_t>(order[k]) * kPlanes * kPiece;
      pointers.push_back(values + at);
      std::copy_n(pool.data() + at, kPiece, k_plane.data() + k * kPiece);
      std::copy_n(pool.data() + at + kPiece, kPiece, v_plane.data() + k * kPiece);
    }
    char* const planes[] = {Memory(false, Poison(kPages * kPiece)),
                            Memory(false, Poison(kPages * kPiece))};
    PageCopy scatter;
    scatter.page_count = kPages;
    scatter.plane_count = kPlanes;
    scatter.piece_bytes = kPiece;
    scatter.from.table = PageTable::Of(std::span<char* const>(pointers));
    scatter.from.plane_stride = kPiece;
    scatter.to.planes = planes;
    scatter.to.page_stride = kPiece;
    Copy(scatter);
    EXPECT_TRUE(Get(planes[0], k_plane.size()) == k_plane);
    EXPECT_TRUE(Get(planes[1], v_plane.size()) == v_plane);
  }
}

// Several MiB between one run of host memory and pages, in many chunks.
TEST_P(PageCopyTest, StagedThroughChunks) {
  constexpr uint64_t kPiece = 16 << 10;
  constexpr uint32_t kPages = 700;
  const std::string value = Bytes(kPages * kPiece);
  char* const run = Memory(true, value);
  char* const cache = Memory(false, Poison(value.size()));
  const auto table = Some<int32_t>(kPages, kPages);
  PageCopy scatter;
  scatter.page_count = kPages;
  scatter.piece_bytes = kPiece;
  scatter.from.base = run;
  scatter.from.page_stride = kPiece;
  scatter.to.base = cache;
  scatter.to.page_stride = kPiece;
  scatter.to.table = PageTable::Of(table);
  CopyLimits limits;
  limits.staging_chunk = 1 << 20;
  Copy(scatter, limits);
  std::string expected(value.size(), '\0');
  for (uint32_t k = 0; k < kPages; ++k) {
    std::copy_n(value.data() + k * kPiece, kPiece,
                expected.data() + static_cast<size_t>(table[k]) * kPiece);
  }
  EXPECT_TRUE(Get(cache, value.size()) == expected);
  char* const back = Memory(true, Poison(value.size()));
  PageCopy gather = scatter;
  gather.from = scatter.to;
  gather.to = scatter.from;
  gather.to.base = back;
  Copy(gather, limits);
  EXPECT_TRUE(std::string(back, value.size()) == value);
}

TEST_P(PageCopyTest, WrongArgumentsAreRefusedBeforeAnythingMoves) {
  char* const run = Memory(false, Poison(4 * 4096));
  const std::vector<int32_t> table = {0, 9};
  PageCopy good;
  good.page_count = 2;
  good.piece_bytes = 4096;
  good.from = {{}, run, 0, 4096, {}, 0};
  good.to = {{}, run + 8192, 0, 4096, PageTable::Of(table), 2};
  const auto refused = [&](const PageCopy& pages, const std::string& why) {
    CopyBatch batch(device);
    batch.CopyPages(batch.AddKey(nullptr, 0), pages);
    const auto completion = std::move(batch).Submit();
    ASSERT_FALSE(completion) << why;
    EXPECT_EQ(completion.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(completion.error().message.find(why), std::string::npos)
        << completion.error().message;
  };
  refused(good, "entry 1 of the table is 9, of 2 pages");
  PageCopy bad = good;
  bad.piece_bytes = 0;
  refused(bad, "must not be zero");
  bad = good;
  bad.from.page_stride = 0;
  refused(bad, "source pages: page_stride");
  std::string pageable(8192, '\0');
  bad = good;
  bad.to.page_limit = 0;
  bad.from.base = pageable.data();
  refused(bad, "not pinned");
  EXPECT_EQ(Get(run, 4 * 4096), Poison(4 * 4096));
}

}  // namespace
}  // namespace moonpool::gpu
