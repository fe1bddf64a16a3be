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
#include "storage/ssd_key.h"

namespace moonpool::storage {

namespace {

constexpr uint32_t kCompleteChunk = ~uint32_t{0};

uint32_t ChecksumOf(const ChunkKey& key, std::string_view bytes) {
  return protocol::Crc32c(protocol::Crc32c(0, key.data(), key.size()), bytes.data(), bytes.size());
}

void PutComplete(rocksdb::WriteBatch& batch, uint64_t id, uint64_t length) {
  char value[8];
  StoreBigEndian(value, length);
  batch.Put(ChunkKey(id, kCompleteChunk), rocksdb::Slice(value, sizeof(value)));
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
  // Chunks of 1 MiB side by side: one by one each would take 1.25 MiB of heap.
  result.arena_block_size = options.write_buffer_bytes / 2;
  result.min_write_buffer_number_to_merge = 1;
  if (options.log_payload) result.max_total_wal_size = 4 * options.write_buffer_bytes;

  result.enable_blob_files = true;
  // Only the marks that a version is complete, and the last bytes of some, are in the tables.
  result.min_blob_size = 64;
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
  rocksdb::WriteBatch batch(std::min<uint64_t>(bytes.size(), chunk_bytes_) + 128);
  std::string compressed;
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    const std::string_view part = bytes.substr(uint64_t{chunk} * chunk_bytes_, chunk_bytes_);
    const ChunkKey key(id, chunk);
    std::string_view stored = part;
    if (SsdCompress(compression, part, &compressed)) {
      compressed += static_cast<char>(compression);
      stored = compressed;
    }
    const uint32_t crc = ChecksumOf(key, stored);
    const rocksdb::Slice key_slice = key;
    const rocksdb::Slice value[] = {{stored.data(), stored.size()},
                                    {reinterpret_cast<const char*>(&crc), sizeof(crc)}};
    batch.Clear();
    batch.Put(rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(value, 2));
    if (chunk + 1 == chunks) PutComplete(batch, id, bytes.size());
    if (const auto status = db_->Write(write_options_, &batch); !status.ok()) {
      return watch_->FailWrite("writing to the SSD", status);
    }
  }
  MutexLock lock(mu_);
  written_[id].sequence = sequence();
  return {};
}

Status SsdPayload::Read(uint64_t id, uint64_t length, uint32_t chunk_bytes, uint32_t chunk,
                        char* to) {
  const uint64_t offset = uint64_t{chunk} * chunk_bytes;
  MOONPOOL_CHECK(chunk_bytes > 0 && offset < length);
  const uint64_t expected = std::min<uint64_t>(chunk_bytes, length - offset);
  const ChunkKey key(id, chunk);
  rocksdb::ReadOptions options;
  // Our checksum covers the bytes and whose they are; RocksDB's would be a second pass.
  options.verify_checksums = false;
  rocksdb::PinnableSlice value;
  const auto status = db_->Get(options, db_->DefaultColumnFamily(), key, &value);
  if (!status.ok()) return FailRocks("reading from the SSD", status);
  uint32_t crc = 0;
  // What does not have its own length is compressed, and shorter.
  const bool raw = value.size() == expected + sizeof(crc);
  if (!raw && (value.size() <= 1 + sizeof(crc) || value.size() > expected)) {
    return Fail(ErrorCode::kCorrupt, "a chunk on the SSD has " + std::to_string(value.size()) +
                                         " bytes instead of " +
                                         std::to_string(expected + sizeof(crc)));
  }
  const std::string_view stored(value.data(), value.size() - sizeof(crc));
  std::memcpy(&crc, stored.data() + stored.size(), sizeof(crc));
  if (raw) std::memcpy(to, stored.data(), expected);
  // What was copied is what is checked.
  if (crc != ChecksumOf(key, raw ? std::string_view(to, expected) : stored)) {
    return Fail(ErrorCode::kCorrupt, "a chunk on the SSD does not have its checksum");
  }
  if (!raw && !SsdDecompress(static_cast<SsdCompression>(stored.back()),
                             stored.substr(0, stored.size() - 1), to, expected)) {
    return Fail(ErrorCode::kCorrupt, "a chunk on the SSD cannot be decompressed");
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
      db_->Get({}, db_->DefaultColumnFamily(), ChunkKey(id, kCompleteChunk), &value);
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
