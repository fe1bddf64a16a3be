// SsdPayload: how the space of erased versions comes back.
//
// Deletions are entries of their own.  A compaction that brings them together with the references
// they delete tells RocksDB which bytes of which blob file are garbage; a blob file that is nothing
// but garbage goes away.  That is all it takes when values are erased about in the order they were
// written.  For the rest Compact() rewrites the table whose blob files hold the most garbage, with
// the blobs that it refers to.
#include <rocksdb/convenience.h>
#include <rocksdb/metadata.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <vector>

#include "storage/ssd_key.h"
#include "storage/ssd_payload.h"

namespace moonpool::storage {

Status SsdPayload::Delete(std::span<const Erased> versions) {
  rocksdb::WriteBatch batch;
  uint64_t bytes = 0;
  for (const Erased& version : versions) {
    for (uint32_t chunk = 0; chunk < version.chunks; ++chunk) {
      batch.Delete(ChunkKey(version.id, chunk));
    }
    for (uint32_t first = 0; first < version.chunks; first += kChecksumsPerEntry) {
      batch.Delete(ChecksumsKey(version.id, first));
    }
    batch.Delete(CompleteKey(version.id));
    bytes += version.length;
  }
  if (const auto status = db_->Write(write_options_, &batch); !status.ok()) {
    return watch_->FailWrite("deleting from the SSD", status);
  }
  uncompacted_deletions_ += bytes;
  return {};
}

Status SsdPayload::DeleteRange(uint64_t first, uint64_t end) {
  const auto status = db_->DeleteRange(write_options_, db_->DefaultColumnFamily(),
                                       ChunkKey(first, 0), ChunkKey(end, 0));
  if (!status.ok()) return watch_->FailWrite("deleting from the SSD", status);
  return {};
}

Status SsdPayload::DeleteBelow(uint64_t floor) {
  if (Status deleted = DeleteRange(0, floor); !deleted) return deleted;
  if (Status compacted = CompactTables(); !compacted) return compacted;
  const ChunkKey first(0, 0), end(floor, 0);
  const rocksdb::Slice first_slice = first, end_slice = end;
  const rocksdb::RangePtr range(&first_slice, &end_slice);
  const auto status =
      rocksdb::DeleteFilesInRanges(db_.get(), db_->DefaultColumnFamily(), &range, 1, false);
  if (!status.ok()) return watch_->FailWrite("deleting from the SSD", status);
  return {};
}

// Blob files of flushes hold ids in the order in which they were written, as tables do, so the
// blob files of a table are about those from its oldest up to the oldest of the next.
SsdPayload::Victim SsdPayload::WorstTable(const rocksdb::ColumnFamilyMetaData& files) const {
  struct Table {
    uint64_t oldest_blob_file;
    const rocksdb::SstFileMetaData* file;
  };
  std::vector<Table> tables;
  for (const auto& level : files.levels) {
    if (level.level == 0) continue;
    for (const auto& file : level.files) {
      if (file.oldest_blob_file_number != 0 && !file.being_compacted) {
        tables.push_back({file.oldest_blob_file_number, &file});
      }
    }
  }
  std::sort(tables.begin(), tables.end(),
            [](const Table& a, const Table& b) { return a.oldest_blob_file < b.oldest_blob_file; });
  std::vector<Victim> sums(tables.size());
  for (const auto& blob : files.blob_files) {
    const auto after = std::upper_bound(
        tables.begin(), tables.end(), blob.blob_file_number,
        [](uint64_t number, const Table& table) { return number < table.oldest_blob_file; });
    if (after == tables.begin()) continue;
    Victim& sum = sums[static_cast<size_t>(after - tables.begin()) - 1];
    sum.garbage_bytes += blob.garbage_blob_bytes;
    sum.blob_bytes += blob.total_blob_bytes;
  }
  // Most space for each byte that must be written.
  Victim best;
  double best_share = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    if (sums[i].blob_bytes == 0) continue;
    const double share = double(sums[i].garbage_bytes) / double(sums[i].blob_bytes);
    if (share <= best_share) continue;
    best_share = share;
    best = sums[i];
    best.smallest = tables[i].file->smallestkey;
    best.largest = tables[i].file->largestkey;
  }
  return best;
}

Status SsdPayload::CompactTables() {
  if (Status flushed = Flush(); !flushed) return flushed;
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kDisable;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kSkip;
  const auto status = db_->CompactRange(options, nullptr, nullptr);
  if (!status.ok()) return watch_->FailWrite("compacting the SSD", status);
  uncompacted_deletions_ = 0;
  return {};
}

Result<bool> SsdPayload::Compact(uint64_t live_bytes) {
  uint64_t blob_bytes = 0, garbage = 0;
  db_->GetIntProperty(rocksdb::DB::Properties::kTotalBlobFileSize, &blob_bytes);
  db_->GetIntProperty(rocksdb::DB::Properties::kLiveBlobFileGarbageSize, &garbage);
  const uint64_t slack = 4 * write_buffer_bytes_;
  const auto too_much = [&] {
    return garbage > slack && double(garbage) > garbage_share_ * double(blob_bytes) &&
           garbage != stuck_at_;
  };
  // What deletions still have to tell RocksDB, as far as its own compactions have not.
  const uint64_t hidden =
      std::min(uncompacted_deletions_, blob_bytes - std::min(blob_bytes, garbage + live_bytes));
  const bool hides_much = hidden > std::max(slack, blob_bytes / 10) ||
                          uncompacted_deletions_ > std::max(slack, blob_bytes / 2);
  if (!hides_much && !too_much()) return false;

  // Deletions reach over many tables, so that a compaction which takes them along rewrites them
  // all: tables alone are cheap, with their blobs it would be most of the store.  No deletion
  // comes while we are here, so from here on the compaction below finds none on its way.
  if (uncompacted_deletions_ > 0) {
    if (Status compacted = CompactTables(); !compacted) return tl::unexpected(compacted.error());
    db_->GetIntProperty(rocksdb::DB::Properties::kTotalBlobFileSize, &blob_bytes);
    db_->GetIntProperty(rocksdb::DB::Properties::kLiveBlobFileGarbageSize, &garbage);
  }
  if (!too_much()) return false;
  rocksdb::ColumnFamilyMetaData files;
  db_->GetColumnFamilyMetaData(&files);
  const Victim victim = WorstTable(files);
  if (victim.garbage_bytes == 0) return false;
  stuck_at_ = garbage;
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.blob_garbage_collection_policy = rocksdb::BlobGarbageCollectionPolicy::kForce;
  options.blob_garbage_collection_age_cutoff = 1.0;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  const rocksdb::Slice smallest = victim.smallest, largest = victim.largest;
  const auto status = db_->CompactRange(options, &smallest, &largest);
  if (!status.ok()) return watch_->FailWrite("compacting the SSD", status);
  return true;
}

}  // namespace moonpool::storage
