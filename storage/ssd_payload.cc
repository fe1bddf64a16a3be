#include "storage/ssd_payload.h"

#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/slice.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "protocol/crc32c.h"
#include "storage/ssd_blob_file.h"
#include "storage/ssd_chunk_layout.h"
#include "storage/ssd_key.h"

namespace moonpool::storage {

namespace {

using Checksum = uint32_t;

// More than an entry of checksums takes.
constexpr uint64_t kLeastInBlobFile = 2048;
static_assert(kChecksumsPerEntry * sizeof(Checksum) < kLeastInBlobFile);
// Of a write buffer: in one block of memory, and what an entry takes besides the chunk.
constexpr uint64_t kChunksPerBlock = 4;
constexpr uint64_t kChunkEntryBytes = 256;
constexpr char kZeros[kSsdPageBytes * 2] = {};

Checksum ChecksumOf(const ChunkKey& key, std::string_view bytes) {
  return protocol::Crc32c(protocol::Crc32c(0, key.data(), key.size()), bytes.data(), bytes.size());
}

// What is stored, but for the zeros around it, of a chunk in whole sectors.
struct Stored {
  std::string_view bytes;
  bool aligned;
};

void Put(rocksdb::WriteBatch& batch, const ChunkKey& key, const Stored& stored) {
  const rocksdb::Slice key_slice = key;
  const uint64_t tail = stored.aligned ? ChunkTailBytes(stored.bytes.size()) : 0;
  const rocksdb::Slice value[] = {{kZeros, stored.aligned ? kChunkLeadBytes : 0},
                                  {stored.bytes.data(), stored.bytes.size()},
                                  {kZeros, tail}};
  batch.Put(rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(value, std::size(value)));
}

void PutComplete(rocksdb::WriteBatch& batch, uint64_t id, uint64_t length) {
  char value[8];
  StoreBigEndian(value, length);
  batch.Put(CompleteKey(id), rocksdb::Slice(value, sizeof(value)));
}

}  // namespace

rocksdb::Options SsdPayload::DatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                             std::shared_ptr<SsdWatch> watch) {
  rocksdb::Options result = SsdDatabaseOptions(options, shared, std::move(watch));
  result.use_direct_reads = shared.direct_io;
  result.use_direct_io_for_flush_and_compaction = shared.direct_io;
  result.writable_file_max_buffer_size = 2 << 20;
  // Buffered files reach the disk in steps rather than at once.
  result.bytes_per_sync = result.wal_bytes_per_sync = 1 << 20;

  // One being written, one being flushed, one that has filled meanwhile.
  result.write_buffer_size = options.write_buffer_bytes;
  result.max_write_buffer_number = 3;
  // One by one chunks of 1 MiB would take 1.25 MiB of heap each.  More than four in a block would
  // leave the last one's end unused: a buffer is taken for full when a quarter of a block is free.
  result.arena_block_size =
      std::min(options.write_buffer_bytes / 2,
               kChunksPerBlock * (AlignedChunkBytes(options.chunk_bytes) + kChunkEntryBytes));
  result.min_write_buffer_number_to_merge = 1;
  if (options.log_payload) result.max_total_wal_size = 4 * options.write_buffer_bytes;

  result.enable_blob_files = true;
  // Only checksums, the marks that a version is complete, and the last bytes of some are in the
  // tables.
  result.min_blob_size = kLeastInBlobFile;
  result.blob_file_size = std::max<uint64_t>(256 << 20, options.write_buffer_bytes * 2);
  // Chunks are compressed before they get here, each as its partition wants it; a blob that RocksDB
  // compressed (format 1) says so itself.
  result.blob_compression_type = rocksdb::kNoCompression;
  // RocksDB's own collection rewrites what is alive in the oldest files whenever a compaction
  // meets it.  Our tables are so small that compactions meet most of the store: Compact() chooses
  // what to rewrite instead.
  result.enable_blob_garbage_collection = false;
  result.blob_compaction_readahead_size = 2 << 20;

  // Tables are references alone, so compacting them is cheap and writers need not wait for it.
  // A small table is what Compact() rewrites at once: at 1 MiB a chunk about 150 MiB.
  result.compression = rocksdb::kNoCompression;
  result.target_file_size_base = 8 << 10;
  result.max_bytes_for_level_base = 8 << 20;
  result.max_compaction_bytes = 64 << 20;
  result.level0_file_num_compaction_trigger = 4;
  result.level0_slowdown_writes_trigger = 128;
  result.level0_stop_writes_trigger = 256;
  result.soft_pending_compaction_bytes_limit = 0;
  result.hard_pending_compaction_bytes_limit = 0;

  rocksdb::BlockBasedTableOptions table;
  // For references: 100 MiB of payload in a block.  The chunks themselves pass by every cache.
  table.block_cache = rocksdb::NewLRUCache(4 << 20, 2);
  table.block_size = 4 << 10;
  // Tables with deletions span all ids; who looks for a chunk should not read them.
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  result.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return result;
}

Result<std::unique_ptr<SsdPayload>> SsdPayload::Open(const SsdOptions& options,
                                                     const SsdShared& shared) {
  auto watch = std::make_shared<SsdWatch>(options.niceness);
  const std::string path = options.directory + "/payload";
  rocksdb::DB* db = nullptr;
  const rocksdb::Status opened =
      rocksdb::DB::Open(DatabaseOptions(options, shared, watch), path, &db);
  if (!opened.ok()) return FailRocks("opening " + path, opened);
  watch->Watch(db);
  return std::unique_ptr<SsdPayload>(
      new SsdPayload(options, std::move(watch), std::unique_ptr<rocksdb::DB>(db)));
}

SsdPayload::SsdPayload(const SsdOptions& options, std::shared_ptr<SsdWatch> watch,
                       std::unique_ptr<rocksdb::DB> db)
    : chunk_bytes_(options.chunk_bytes),
      write_buffer_bytes_(options.write_buffer_bytes),
      garbage_share_(options.garbage_share),
      watch_(std::move(watch)),
      db_(std::move(db)) {
  write_options_.disableWAL = !options.log_payload;
}

void SsdPayload::Begin(uint64_t id) {
  MutexLock lock(mu_);
  written_[id] = {kUnfinished, false};
  begun_ = std::max(begun_, id + 1);
}

Status SsdPayload::Write(uint64_t id, std::string_view bytes, SsdCompression compression) {
  const uint32_t chunks = SsdChunks(bytes.size(), chunk_bytes_);
  rocksdb::WriteBatch batch(AlignedChunkBytes(std::min<uint64_t>(bytes.size(), chunk_bytes_)) +
                            2 * kLeastInBlobFile);
  std::string compressed, checksums;
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    const ChunkKey key(id, chunk);
    Stored stored{bytes.substr(uint64_t{chunk} * chunk_bytes_, chunk_bytes_),
                  bytes.size() >= kLeastAlignedBytes};
    if (SsdCompress(compression, stored.bytes, &compressed)) {
      compressed += static_cast<char>(compression);
      stored = {compressed, false};
    }
    const Checksum crc = ChecksumOf(key, stored.bytes);
    checksums.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
    batch.Clear();
    Put(batch, key, stored);
    const bool last = chunk + 1 == chunks;
    if (last || (chunk + 1) % kChecksumsPerEntry == 0) {
      batch.Put(ChecksumsKey(id, chunk), checksums);
      checksums.clear();
    }
    if (last) PutComplete(batch, id, bytes.size());
    if (const auto status = db_->Write(write_options_, &batch); !status.ok()) {
      return watch_->FailWrite("writing to the SSD", status);
    }
  }
  MutexLock lock(mu_);
  written_[id].sequence = sequence();
  return {};
}

Status SsdPayload::Read(uint64_t id, uint64_t length, uint32_t chunk_bytes, uint32_t chunk,
                        std::span<char> to) {
  const uint64_t offset = uint64_t{chunk} * chunk_bytes;
  MOONPOOL_CHECK(chunk_bytes > 0 && offset < length);
  const uint64_t expected = std::min<uint64_t>(chunk_bytes, length - offset);
  MOONPOOL_CHECK(to.size() >= expected);
  const ChunkKey key(id, chunk);
  rocksdb::ReadOptions options;
  // Our checksums cover the bytes and whose they are; RocksDB's would be a second pass.
  options.verify_checksums = false;
  const auto get = [&](const ChunkKey& wanted, rocksdb::PinnableSlice* value) {
    return db_->Get(options, db_->DefaultColumnFamily(), wanted, value);
  };

  rocksdb::PinnableSlice checksums, value;
  auto status = get(ChecksumsKey(id, chunk), &checksums);
  const bool format_2 = status.IsNotFound();
  if (!status.ok() && !format_2) return FailRocks("reading from the SSD", status);
  std::string_view stored;
  if (format_2) {  // or 1, where RocksDB has something to decompress
    status = get(key, &value);
    if (!status.ok()) return FailRocks("reading from the SSD", status);
    stored = {value.data(), value.size()};
  } else {
    const uint64_t pages = SsdPages(expected);
    const BlobRead read(AlignedChunkBytes(expected), kChunkLeadBytes,
                        to.first(pages <= to.size() ? pages : 0));
    status = get(key, &value);
    if (!read.taken() && !status.ok()) return FailRocks("reading from the SSD", status);
    stored = read.taken() ? read.blob() : std::string_view(value.data(), value.size());
    if (read.in_place()) {
      read_in_place_.fetch_add(1, std::memory_order_relaxed);
      stored = {to.data(), expected};
    } else if (stored.size() == AlignedChunkBytes(expected)) {
      stored = stored.substr(kChunkLeadBytes, expected);
    }
  }

  Checksum crc = 0;
  const auto corrupt = [](const std::string& what) {
    return Fail(ErrorCode::kCorrupt, "a chunk on the SSD " + what);
  };
  if (format_2) {
    if (stored.size() < sizeof(crc)) return corrupt("has no checksum");
    std::memcpy(&crc, stored.data() + stored.size() - sizeof(crc), sizeof(crc));
    stored.remove_suffix(sizeof(crc));
  } else {
    const size_t at = chunk % kChecksumsPerEntry * sizeof(crc);
    if (checksums.size() < at + sizeof(crc)) return corrupt("has no checksum");
    std::memcpy(&crc, checksums.data() + at, sizeof(crc));
  }
  // What does not have its own length is compressed, and shorter.
  const bool raw = stored.size() == expected;
  if (!raw && (stored.size() < 2 || stored.size() > expected)) {
    return corrupt("has " + std::to_string(stored.size()) + " bytes instead of " +
                   std::to_string(expected));
  }
  if (raw && stored.data() != to.data()) std::memcpy(to.data(), stored.data(), expected);
  // What was copied is what is checked.
  if (crc != ChecksumOf(key, raw ? std::string_view(to.data(), expected) : stored)) {
    return corrupt("does not have its checksum");
  }
  if (!raw && !SsdDecompress(static_cast<SsdCompression>(stored.back()),
                             stored.substr(0, stored.size() - 1), to.data(), expected)) {
    return corrupt("cannot be decompressed");
  }
  return {};
}

Status SsdPayload::Flush() {
  const uint64_t before = sequence();
  const auto status = db_->Flush(rocksdb::FlushOptions());
  if (!status.ok()) return watch_->FailWrite("flushing to the SSD", status);
  watch_->AllFlushed(before);
  return {};
}

Result<bool> SsdPayload::Complete(uint64_t id, uint64_t length) {
  rocksdb::PinnableSlice value;
  const auto status =
      db_->Get({}, db_->DefaultColumnFamily(), CompleteKey(id), &value);
  if (status.IsNotFound()) return false;
  if (!status.ok()) return FailRocks("reading from the SSD", status);
  return value.size() == 8 && LoadBigEndian<uint64_t>(value.data()) == length;
}

uint64_t SsdPayload::SafeBelow() {
  MutexLock lock(mu_);
  std::erase_if(written_, [this](const auto& entry) {
    return entry.second.settled && entry.second.sequence != kUnfinished &&
           Flushed(entry.second.sequence);
  });
  return written_.empty() ? begun_ : written_.begin()->first;
}

void SsdPayload::GiveUp(uint64_t id) {
  MutexLock lock(mu_);
  written_[id] = {sequence(), true};
}

Result<uint64_t> SsdPayload::EndOfIds() {
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator({}));
  it->SeekToLast();
  if (!it->status().ok()) return FailRocks("reading from the SSD", it->status());
  return it->Valid() ? LoadBigEndian<uint64_t>(it->key().data()) + 1 : 0;
}

void SsdPayload::Settle(uint64_t id) {
  MutexLock lock(mu_);
  if (const auto it = written_.find(id); it != written_.end()) it->second.settled = true;
}

void SsdPayload::SettleBelow(uint64_t floor) {
  MutexLock lock(mu_);
  for (auto it = written_.begin(); it != written_.end() && it->first < floor; ++it) {
    if (it->second.sequence != kUnfinished) it->second.settled = true;
  }
}

SsdPayload::Space SsdPayload::space() const {
  Space result;
  const auto read = [this](const std::string& property) {
    uint64_t value = 0;
    db_->GetIntProperty(property, &value);
    return value;
  };
  using Properties = rocksdb::DB::Properties;
  result.table_bytes = read(Properties::kTotalSstFilesSize);
  result.blob_bytes = read(Properties::kTotalBlobFileSize);
  result.blob_files = read(Properties::kNumBlobFiles);
  result.memory_bytes = read(Properties::kSizeAllMemTables) +
                        read(Properties::kEstimateTableReadersMem) +
                        read(Properties::kBlockCacheUsage);
  result.pending_compaction_bytes = read(Properties::kEstimatePendingCompactionBytes);
  return result;
}

}  // namespace moonpool::storage
