// The index database of an SsdStore: which versions are alive, and what a restart must know.
//
//   m + id         -> length, expiry, chunk size, key        alive
//   d + id         -> length, chunks                         erased; payload still to be deleted
//   v + sequence   -> floor, glob or not, text               voids
//   s + key        -> expiry, value                          small values of a clean stop
//   !next          -> ids below it may have been used
//   !floor         -> below it, payload is durable and belongs to a version of m or d
//   !below         -> payload of smaller ids is to be deleted
//   !state         -> boot id, clean or not, synchronous or not
//   !hot           -> ids
//
// Every write is logged; `sync` makes the log durable as well.
// Threads: any.  Numbers in keys are big-endian, in values little-endian.
#pragma once

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/status.h"
#include "storage/ssd_payload.h"
#include "storage/ssd_rocksdb.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

class SsdIndex {
 public:
  static Result<std::unique_ptr<SsdIndex>> Open(const SsdOptions& options, const SsdShared& shared);
  static rocksdb::Options DatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                          std::shared_ptr<SsdWatch> watch);

  enum class Number : uint8_t { kNext, kFloor, kBelow };
  struct State {
    std::string boot_id;
    bool clean = false;
    bool sync = false;
  };

  // A change under construction.
  class Batch {
   public:
    void Add(const SsdChange& change);
    void Erase(const SsdPayload::Erased& version);
    void EraseVoid(uint64_t sequence);
    void Set(Number number, uint64_t value);
    void Unset(Number number);
    void SetState(const State& state);
    void SetHot(std::span<const uint64_t> ids);
    void PutSmall(std::string_view key, int64_t expiry_ms, std::string_view value);
    void ClearSmall();
    // Payload of these versions has been deleted for good.
    void ForgetErased(uint64_t id);
    size_t bytes() const { return batch_.GetDataSize(); }
    bool empty() const { return batch_.Count() == 0; }
    void Clear() { batch_.Clear(); }

   private:
    friend class SsdIndex;
    rocksdb::WriteBatch batch_;
  };
  // All of it or nothing.  `durable`: on the disk when it returns, whatever the options.
  Status Write(Batch& batch, bool durable = false);

  Result<std::optional<uint64_t>> Get(Number number) const;
  Result<std::optional<State>> GetState() const;
  Result<std::vector<uint64_t>> Hot() const;
  Result<std::vector<SsdVoid>> Voids() const;
  // Visit what was there at the call, versions from `first` on, in the order of ids or keys;
  // kCorrupt for what cannot be read.  Writing meanwhile is fine.
  Status ForEachVersion(uint64_t first, const std::function<Status(const SsdRecord&)>& visit) const;
  Status ForEachSmall(const std::function<void(std::string_view key, int64_t expiry_ms,
                                               std::string_view value)>& visit) const;
  // Up to `limit` erased versions from `first` on.
  Result<std::vector<SsdPayload::Erased>> ErasedFrom(uint64_t first, size_t limit) const;

  Status Flush();
  uint64_t disk_bytes() const;
  uint64_t memory_bytes() const;
  SsdWatch& watch() const { return *watch_; }
  Status Resume() { return watch_->Resume(*db_); }
  void GiveUpResuming() {
    watch_->GiveUp();
    rocksdb::CancelAllBackgroundWork(db_.get(), false);
  }

 private:
  SsdIndex(bool sync, std::shared_ptr<SsdWatch> watch, std::unique_ptr<rocksdb::DB> db);
  Status ForEach(
      char prefix, std::string_view first, size_t readahead_bytes,
      const std::function<Result<bool>(std::string_view key, std::string_view value)>& visit) const;

  const bool sync_;
  const std::shared_ptr<SsdWatch> watch_;
  const std::unique_ptr<rocksdb::DB> db_;
};

}  // namespace moonpool::storage
