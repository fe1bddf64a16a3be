// Chunks that are compressed on the SSD: every byte comes back or none does, whatever wrote them.
#include "storage/ssd_compression.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>

#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "protocol/crc32c.h"
#include "tests/storage/ssd_directory.h"

namespace moonpool::storage {
namespace {

constexpr SsdCompression kCodecs[] = {SsdCompression::kLz4, SsdCompression::kZstd};

// Half of it is noise, so that it shrinks to about a half.
std::string Shrinking(uint64_t seed, size_t bytes) {
  std::string text = SsdValue(seed, bytes);
  for (size_t at = 0; at < bytes; ++at) {
    if (at % 512 < 256) text[at] = static_cast<char>('a' + seed % 20);
  }
  return text;
}

uint64_t WriteAlone(const SsdOptions& options, std::string_view bytes, SsdCompression codec) {
  OpenSsd store(options);
  const uint64_t before = store->stats().disk_bytes;
  const uint64_t id = store->NextId();
  EXPECT_TRUE(store->WritePayload(id, bytes, codec));
  EXPECT_TRUE(store->FlushPayload());
  const auto read = ReadVersion(*store.store, {id, "", bytes.size(), 0, options.chunk_bytes});
  EXPECT_TRUE(read && Same(*read, bytes));
  const uint64_t grown = store->stats().disk_bytes - before;
  store->DropPayload(id, bytes.size(), options.chunk_bytes);
  return grown;
}

TEST(SsdCompressionTest, EveryLengthComesBack) {
  for (const SsdCompression codec : kCodecs) {
    for (size_t bytes : {1, 63, 64, 65, 127, 128, 1000, 1023, 1024, 4096, 65'536, 1'048'576}) {
      const std::string text(bytes, 'x');
      std::string packed = "left over";
      const bool smaller = SsdCompress(codec, text, &packed);
      EXPECT_EQ(smaller, bytes >= 127) << bytes;  // by 64 bytes at least
      if (!smaller) continue;
      EXPECT_LE(packed.size() + 64, bytes);
      std::string back(bytes, '\0');
      EXPECT_TRUE(SsdDecompress(codec, packed, back.data(), bytes));
      EXPECT_TRUE(Same(back, text));
      // Another length is an error, not a shorter value or a write past the end.
      EXPECT_FALSE(SsdDecompress(codec, packed, back.data(), bytes - 1));
      std::string longer(bytes + 1, '\0');
      EXPECT_FALSE(SsdDecompress(codec, packed, longer.data(), bytes + 1));
    }
  }
}

TEST(SsdCompressionTest, NoiseIsLeftAlone) {
  std::string packed;
  for (const SsdCompression codec : kCodecs) {
    EXPECT_FALSE(SsdCompress(codec, SsdValue(1, 1 << 20), &packed));
    // A saving of less than a sixteenth is not worth it.
    std::string text = SsdValue(2, 1 << 20);
    std::fill_n(text.begin(), 1 << 15, 'x');
    EXPECT_FALSE(SsdCompress(codec, text, &packed));
    std::fill_n(text.begin(), 1 << 17, 'x');
    EXPECT_TRUE(SsdCompress(codec, text, &packed));
  }
  EXPECT_FALSE(SsdCompress(SsdCompression::kNone, std::string(1000, 'x'), &packed));
}

TEST(SsdCompressionTest, DamageIsNeverReadPastTheEnd) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::string text = Shrinking(3, 100'000);
  for (const SsdCompression codec : kCodecs) {
    std::string packed;
    ASSERT_TRUE(SsdCompress(codec, text, &packed));
    std::string back(text.size(), '\0');
    for (int i = 0; i < 2000; ++i) {
      std::string damaged = packed;
      damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
      if (random() % 4 == 0) damaged.resize(random() % damaged.size());
      static_cast<void>(SsdDecompress(codec, damaged, back.data(), back.size()));
    }
  }
  char to[64];
  EXPECT_FALSE(SsdDecompress(SsdCompression::kNone, "x", to, 1));
  EXPECT_FALSE(SsdDecompress(static_cast<SsdCompression>(77), "x", to, 1));
  EXPECT_FALSE(SsdDecompress(SsdCompression::kLz4, "", to, 1));
  EXPECT_FALSE(SsdDecompress(SsdCompression::kZstd, "", to, 1));
}

TEST(SsdCompressionTest, EachVersionSaysHowItIsStored) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);  // compresses nothing by itself
  const std::string text = Shrinking(4, 4 * kMiB + 100);
  const uint64_t raw = WriteAlone(options, text, SsdCompression::kNone);
  EXPECT_GE(raw, text.size());
  for (const SsdCompression codec : kCodecs) {
    const uint64_t packed = WriteAlone(options, text, codec);
    EXPECT_LT(packed, raw * 3 / 5);
    EXPECT_GT(packed, raw * 2 / 5);
    // What does not shrink takes what it took before.
    EXPECT_LT(WriteAlone(options, SsdValue(5, text.size()), codec), raw + kMiB / 16);
  }
}

// Under the same key of RocksDB, with a checksum that is right: what a chunk of another length, or
// a codec that does not exist, must be taken for.
class SsdChunkTest : public testing::Test {
 protected:
  void SetUp() override {
    OpenSsd store(options_);
    record_ = PutVersion(*store.store, options_, "k", 10'000);
    ASSERT_TRUE(store->FlushPayload());
  }
  // `number`: of a chunk, or from 1 << 31 on of checksums.
  std::string Key(uint32_t number = 0) const {
    std::string key(12, '\0');
    for (int i = 0; i < 8; ++i)
      key[static_cast<size_t>(7 - i)] = static_cast<char>(record_.id >> 8 * i);
    for (int i = 0; i < 4; ++i)
      key[static_cast<size_t>(11 - i)] = static_cast<char>(number >> 8 * i);
    return key;
  }
  enum class Format { kTwo, kThree };
  void Put(std::string value, Format format,
           rocksdb::CompressionType blobs = rocksdb::kNoCompression) {
    const uint32_t crc =
        protocol::Crc32c(protocol::Crc32c(0, Key().data(), 12), value.data(), value.size());
    const std::string checksum(reinterpret_cast<const char*>(&crc), sizeof(crc));
    if (format == Format::kTwo) value += checksum;
    rocksdb::Options options;
    options.enable_blob_files = true;
    options.min_blob_size = 64;
    options.blob_compression_type = blobs;
    rocksdb::DB* opened = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, directory_.path() + "/payload", &opened).ok());
    const std::unique_ptr<rocksdb::DB> db(opened);
    rocksdb::WriteOptions write;
    write.disableWAL = true;
    ASSERT_TRUE(db->Put(write, Key(), value).ok());
    const std::string checksums = Key(uint32_t{1} << 31);
    ASSERT_TRUE((format == Format::kTwo ? db->Delete(write, checksums)
                                        : db->Put(write, checksums, checksum)).ok());
    ASSERT_TRUE(db->Flush(rocksdb::FlushOptions()).ok());
  }
  Result<std::string> Read() {
    OpenSsd store(options_);
    return ReadVersion(*store.store, record_);
  }
  void ExpectCorrupt() {
    const auto read = Read();
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, ErrorCode::kCorrupt);
  }

  const SsdDirectory directory_;
  const SsdOptions options_ = SmallSsd(directory_);
  SsdRecord record_;
};

TEST_F(SsdChunkTest, AnythingButItsBytesIsCorrupt) {
  const std::string text(10'000, 'x');
  std::string packed;
  for (const Format format : {Format::kTwo, Format::kThree}) {
    for (const SsdCompression codec : kCodecs) {
      ASSERT_TRUE(SsdCompress(codec, text, &packed));
      const char number = static_cast<char>(codec);
      Put(packed + number, format);
      const auto read = Read();
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_TRUE(Same(*read, text));
      Put(packed + "\x09", format);  // no such codec
      ExpectCorrupt();
      Put(packed + '\0', format);
      ExpectCorrupt();
      Put(packed.substr(0, packed.size() / 2) + number, format);
      ExpectCorrupt();
      ASSERT_TRUE(SsdCompress(codec, text + "x", &packed));  // one byte too many
      Put(packed + number, format);
      ExpectCorrupt();
    }
    for (const size_t length : {0, 1, 9'999, 10'001, 20'000}) {
      Put(std::string(length, 'x'), format);
      ExpectCorrupt();
    }
  }
}

TEST_F(SsdChunkTest, AStoreOfAnOlderVersionIsReadAndCarriedOn) {
  const std::string text = Shrinking(7, 10'000);
  const auto format = [&] {
    std::ifstream file(directory_.path() + "/format");
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const auto expect_read = [&](const char* old) {
    std::ofstream(directory_.path() + "/format") << old;
    {
      OpenSsd store(options_);
      ASSERT_EQ(store.found.count(record_.id), 1u);
      const auto read = ReadVersion(*store.store, record_);
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_TRUE(Same(*read, text));
      // A release that knows older versions alone must not take what comes now for damaged.
      EXPECT_EQ(format(), "moonpool-ssd 3\n");
      // It is locked all the same, and trusted.
      EXPECT_FALSE(SsdStore::Open(options_));
    }
    OpenSsd again(options_);
    EXPECT_EQ(again.found.count(record_.id), 1u);
  };
  for (const auto codec : {rocksdb::kLZ4Compression, rocksdb::kZSTD, rocksdb::kNoCompression}) {
    Put(text, Format::kTwo, codec);
    expect_read("moonpool-ssd 1\n");
  }
  Put(text, Format::kTwo);
  expect_read("moonpool-ssd 2\n");
}

}  // namespace
}  // namespace moonpool::storage
