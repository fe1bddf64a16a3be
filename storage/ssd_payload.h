// The payload database of an SsdStore: chunks of values, keyed by version and number.
//
//   id (8 bytes, big-endian) + chunk (4 bytes, big-endian) -> the chunk, see ssd_chunk_layout.h
//   id + 0x80000000 + n -> crc32c(key, what is stored, but for zeros around it) (4 bytes) of each
//     of the chunks 256 n to 256 n + 255
//   id + 0xffffffff -> length (8 bytes): written last, so that it is there when all of it is
//
// Puts of chunks only ever go to ids that grow, so the tables that flushes make do not overlap but
// for deletions.  Tables hold references of about 50 bytes per chunk; the bytes are in blob files,
// written once by a flush and again only by Compact().
//
// Threads: any; one at a time for everything under "space".  mu_ is a leaf lock.
#pragma once

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/ssd_rocksdb.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

constexpr uint32_t SsdChunks(uint64_t length, uint32_t chunk_bytes) {
  return static_cast<uint32_t>((length + chunk_bytes - 1) / chunk_bytes);
}

class SsdPayload {
 public:
  static Result<std::unique_ptr<SsdPayload>> Open(const SsdOptions& options,
                                                  const SsdShared& shared);
  static rocksdb::Options DatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                          std::shared_ptr<SsdWatch> watch);

  // Before Write().
  void Begin(uint64_t id);
  Status Write(uint64_t id, std::string_view bytes, SsdCompression compression);
  // As SsdStore::ReadChunk().
  Status Read(uint64_t id, uint64_t length, uint32_t chunk_bytes, uint32_t chunk,
              std::span<char> to);
  // Everything written before is durable when it returns.
  Status Flush();
  // Whether all of a version is here.
  Result<bool> Complete(uint64_t id, uint64_t length);

  // Above every id that there is something of.
  Result<uint64_t> EndOfIds();

  // --- which versions a crash can take back
  // Every version with a smaller id is durable, and is in the index or deleted.
  uint64_t SafeBelow();
  // The index knows what became of a version that was written.
  void Settle(uint64_t id);
  void SettleBelow(uint64_t floor);

  // A version that could not be written to its end; Delete() it.
  void GiveUp(uint64_t id);

  // --- space
  struct Erased {
    uint64_t id;
    uint64_t length;
    uint32_t chunks;
  };
  // Deletes; durable when sequence() of that time has been flushed.
  Status Delete(std::span<const Erased> versions);
  Status DeleteRange(uint64_t first, uint64_t end);
  // As DeleteRange(0, floor), and whole files at once.
  Status DeleteBelow(uint64_t floor);
  uint64_t sequence() const { return db_->GetLatestSequenceNumber(); }
  bool Flushed(uint64_t sequence) const { return sequence <= watch_->flushed_sequence(); }
  // Rewrites some files if there is too much garbage in them; true when it may pay to go on.
  // live_bytes: what is not deleted.
  Result<bool> Compact(uint64_t live_bytes);

  struct Space {
    uint64_t table_bytes = 0;
    uint64_t blob_bytes = 0;
    uint64_t blob_files = 0;
    uint64_t memory_bytes = 0;
    uint64_t pending_compaction_bytes = 0;
  };
  Space space() const;
  uint64_t read_in_place() const { return read_in_place_.load(std::memory_order_relaxed); }
  SsdWatch& watch() const { return *watch_; }
  Status Resume() { return watch_->Resume(*db_); }
  void GiveUpResuming() {
    watch_->GiveUp();
    rocksdb::CancelAllBackgroundWork(db_.get(), false);
  }

 private:
  struct Written {
    uint64_t sequence;  // of its last chunk; kUnfinished while it is being written
    bool settled;
  };
  static constexpr uint64_t kUnfinished = ~uint64_t{0};

  SsdPayload(const SsdOptions& options, std::shared_ptr<SsdWatch> watch,
             std::unique_ptr<rocksdb::DB> db);
  Status CompactTables();
  struct Victim {
    std::string smallest, largest;  // keys
    uint64_t garbage_bytes = 0;
    uint64_t blob_bytes = 0;
  };
  Victim WorstTable(const rocksdb::ColumnFamilyMetaData& files) const;

  const uint32_t chunk_bytes_;
  const uint64_t write_buffer_bytes_;
  const double garbage_share_;
  rocksdb::WriteOptions write_options_;
  const std::shared_ptr<SsdWatch> watch_;
  const std::unique_ptr<rocksdb::DB> db_;
  std::atomic<uint64_t> read_in_place_{0};  // chunks

  mutable Mutex mu_;
  std::map<uint64_t, Written> written_ GUARDED_BY(mu_);  // neither durable nor settled, or not both
  uint64_t begun_ GUARDED_BY(mu_) = 0;                   // above every id that was written

  // Space.
  uint64_t uncompacted_deletions_ = 0;  // bytes, since CompactTables()
  uint64_t stuck_at_ = 0;               // garbage that compactions did not reduce
};

}  // namespace moonpool::storage
