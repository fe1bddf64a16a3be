// Chunks that the disk puts straight where they are wanted, and those that it cannot.
#include "storage/ssd_blob_file.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "storage/ssd_chunk_layout.h"
#include "tests/storage/ssd_directory.h"

namespace moonpool::storage {
namespace {

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// Memory that begins with a page.
class Pages {
 public:
  explicit Pages(uint64_t bytes)
      : bytes_(SsdPages(bytes)),
        memory_(static_cast<char*>(std::aligned_alloc(kSsdPageBytes, bytes_))) {
    std::memset(memory_.get(), 'p', bytes_);
  }
  std::span<char> all() const { return {memory_.get(), bytes_}; }
  std::string_view first(uint64_t bytes) const { return {memory_.get(), bytes}; }

 private:
  const uint64_t bytes_;
  const std::unique_ptr<char, Free> memory_;
};

// With and without direct I/O.
class SsdBlobFileTest : public testing::TestWithParam<bool> {
 protected:
  SsdBlobFileTest() {
    options_.chunk_bytes = kChunk;
    options_.direct_io = GetParam();
    store_ = std::make_unique<OpenSsd>(options_);
  }
  SsdStore& store() { return *store_->store; }
  SsdRecord Put(uint64_t length, SsdCompression compression = SsdCompression::kNone) {
    const SsdRecord record{store().NextId(), "", length, 0, kChunk};
    EXPECT_TRUE(store().WritePayload(record.id, SsdValue(record.id, length), compression));
    return record;
  }
  // How many chunks of the version came in place; all of them must be right.
  uint64_t InPlace(const SsdRecord& record) {
    const std::string value = SsdValue(record.id, record.length);
    const uint64_t before = store().stats().chunks_in_place;
    for (uint64_t at = 0; at < record.length; at += kChunk) {
      const uint64_t length = std::min<uint64_t>(kChunk, record.length - at);
      const Pages pages(length);
      const Status read =
          store().ReadChunk(record, static_cast<uint32_t>(at / kChunk), pages.all());
      EXPECT_TRUE(read) << read.error().message;
      EXPECT_TRUE(Same(pages.first(length), std::string_view(value).substr(at, length)));
    }
    return store().stats().chunks_in_place - before;
  }

  static constexpr uint32_t kChunk = 64 << 10;
  const SsdDirectory directory_;
  SsdOptions options_ = SmallSsd(directory_);
  std::unique_ptr<OpenSsd> store_;
};

TEST_P(SsdBlobFileTest, ChunksOfManyLengthsComeInPlace) {
  std::vector<SsdRecord> records;
  for (const uint64_t length :
       std::initializer_list<uint64_t>{
        kChunk * 1, kChunk + 1, kChunk - 1, kChunk * 2 + 4096, kChunk * 3 - 4095, kChunk * 5 - 30,
        kChunk * 2 + 29, 32 << 10, (32 << 10) + 513}) {
    records.push_back(Put(length));
  }
  ASSERT_TRUE(store().FlushPayload());
  for (const SsdRecord& record : records) {
    EXPECT_EQ(InPlace(record), (record.length + kChunk - 1) / kChunk) << record.length;
  }
}

TEST_P(SsdBlobFileTest, WhatIsStillInRocksDbsMemoryIsCopied) {
  const SsdRecord record = Put(kChunk * 3 - 100);
  EXPECT_EQ(InPlace(record), 0u);
  ASSERT_TRUE(store().FlushPayload());
  EXPECT_EQ(InPlace(record), 3u);
}

TEST_P(SsdBlobFileTest, SmallAndCompressedOnesAreCopiedAndThoseBehindThemAsDirectIoMust) {
  std::vector<SsdRecord> records;
  for (const uint64_t length : {1, 63, 64, 2047, 2048, 4096, (32 << 10) - 1}) {
    records.push_back(Put(length));
  }
  const SsdRecord behind = Put(kChunk * 2);
  ASSERT_TRUE(store().FlushPayload());
  for (const SsdRecord& record : records) EXPECT_EQ(InPlace(record), 0u) << record.length;
  EXPECT_EQ(InPlace(behind), GetParam() ? 0u : 2u);
}

TEST_P(SsdBlobFileTest, MemoryThatIsNotInPagesGetsItsBytesAndNoMore) {
  const SsdRecord record = Put(kChunk + 100);
  ASSERT_TRUE(store().FlushPayload());
  const std::string value = SsdValue(record.id, record.length);
  const uint64_t before = store().stats().chunks_in_place;
  std::string odd(kChunk + 200, 'p');
  ASSERT_TRUE(store().ReadChunk(record, 0, std::span(odd).subspan(1, kChunk)));
  EXPECT_TRUE(Same(std::string_view(odd).substr(1, kChunk),
                   std::string_view(value).substr(0, kChunk)));
  EXPECT_EQ(odd[0], 'p');
  EXPECT_EQ(odd[kChunk + 1], 'p');
  // The last chunk has 100 bytes; where its page ends is not ours to write.
  const Pages page(4096);
  ASSERT_TRUE(store().ReadChunk(record, 1, page.all().first(101)));
  EXPECT_TRUE(Same(page.first(100), std::string_view(value).substr(kChunk)));
  EXPECT_EQ(page.all()[100], 'p');
  if (GetParam()) {
    EXPECT_EQ(store().stats().chunks_in_place, before);
  }
}

TEST_P(SsdBlobFileTest, MoreChunksThanOneEntryOfChecksums) {
  options_.chunk_bytes = 4096;
  store_.reset();
  store_ = std::make_unique<OpenSsd>(options_);
  const uint64_t length = 4096 * 600 + 7;
  const SsdRecord record{store().NextId(), "", length, 0, 4096};
  ASSERT_TRUE(store().WritePayload(record.id, SsdValue(record.id, length)));
  ASSERT_TRUE(store().FlushPayload());
  EXPECT_TRUE(IsThere(store(), record));
  // All of it goes.
  store().DropPayload(record.id, length, 4096);
  while (store().CollectGarbage()) {
  }
  for (const uint32_t chunk : {0u, 255u, 256u, 600u}) {
    const Pages page(4096);
    const Status read = store().ReadChunk(record, chunk, page.all());
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, ErrorCode::kNotFound);
  }
}

INSTANTIATE_TEST_SUITE_P(WithAndWithout, SsdBlobFileTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "Direct" : "Buffered"; });

}  // namespace
}  // namespace moonpool::storage
