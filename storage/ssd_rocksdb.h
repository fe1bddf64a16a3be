// What the two databases of an SsdStore have in common: how their errors are told, how their
// background work is watched, and the options they share.
#pragma once

#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/status.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

// `what` was being done ("writing SSD payload").
tl::unexpected<Error> FailRocks(std::string_view what, const rocksdb::Status& status);

// Sees what one database does in the background.
// Threads: any; mu_ is a leaf lock.  The callbacks come from RocksDB's threads.
class SsdWatch : public rocksdb::EventListener {
 public:
  // `niceness`: of RocksDB's threads, once they have something to do.
  explicit SsdWatch(int niceness = 0) : niceness_(niceness) {}

  // Once `db` is open.  Its errors before that wait for no flush.
  void Watch(rocksdb::DB* db) { db_.store(db, std::memory_order_release); }

  // The background error that keeps the database from being written.
  Status Health() const;
  // Lets `db` be written again, if the cause of the error is gone.  kBusy: try again soon.
  Status Resume(rocksdb::DB& db);
  // The error of a write: the background error behind it, if there is one.
  tl::unexpected<Error> FailWrite(std::string_view what, const rocksdb::Status& status) const;

  uint64_t disk_bytes_written() const {
    return disk_bytes_written_.load(std::memory_order_relaxed);
  }
  // Everything up to this sequence number is durable.
  uint64_t flushed_sequence() const { return flushed_sequence_.load(std::memory_order_acquire); }
  void AllFlushed(uint64_t sequence);
  bool stalled() const { return stalled_.load(std::memory_order_relaxed); }
  // Nobody resumes any more: errors need not wait.
  void GiveUp() { given_up_.store(true, std::memory_order_relaxed); }

  void OnFlushBegin(rocksdb::DB*, const rocksdb::FlushJobInfo&) override;
  void OnCompactionBegin(rocksdb::DB*, const rocksdb::CompactionJobInfo&) override;
  void OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo& info) override;
  void OnTableFileCreated(const rocksdb::TableFileCreationInfo& info) override;
  void OnBlobFileCreated(const rocksdb::BlobFileCreationInfo& info) override;
  void OnStallConditionsChanged(const rocksdb::WriteStallInfo& info) override;
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override;
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason reason, rocksdb::Status error,
                            bool* auto_recovery) override;

 private:
  void AwaitFlush() const;

  const int niceness_;
  std::atomic<rocksdb::DB*> db_{nullptr};
  std::atomic<bool> given_up_{false};
  std::atomic<uint64_t> disk_bytes_written_{0};
  std::atomic<uint64_t> flushed_sequence_{0};
  std::atomic<bool> stalled_{false};
  mutable Mutex mu_;
  std::optional<Error> error_ GUARDED_BY(mu_);
};

// One of each per store.
struct SsdShared {
  std::shared_ptr<rocksdb::RateLimiter> rate_limiter;  // null: no limit
  bool direct_io = true;                               // what the file system can do
  std::unique_ptr<rocksdb::Env> env;                   // see ssd_file_system.h
};

rocksdb::Options SsdDatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                    std::shared_ptr<SsdWatch> watch);

}  // namespace moonpool::storage
