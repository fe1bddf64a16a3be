#include "storage/ssd_rocksdb.h"

#include <rocksdb/db.h>
#include <rocksdb/rate_limiter.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>

#include "protocol/crc32c.h"
#include "storage/heap.h"
#include "storage/thread_priority.h"

// Distributions build RocksDB for the oldest processors of an architecture, with a crc32c that goes
// through tables at 1.5 GB/s; each byte of a blob file passes it, which was two thirds of the cost
// of a write.  The program's definition of a function comes before a shared library's, so this one
// takes the place of RocksDB's (util/crc32c.h): the same function at 20 GB/s.  Weak, so that a
// static RocksDB keeps its own.
namespace rocksdb::crc32c {
__attribute__((weak, visibility("default"))) uint32_t Extend(uint32_t crc, const char* data,
                                                             size_t bytes) {
  return moonpool::protocol::Crc32c(crc, data, bytes);
}
}  // namespace rocksdb::crc32c

#if defined(__SANITIZE_THREAD__)
// The distribution's RocksDB is not instrumented, so the sanitizer misses how it synchronizes.  Nor
// is libstdc++, whose functions RocksDB's strings (batches, keys) pass through.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:librocksdb\n"
         "called_from_lib:libzstd\n"
         "called_from_lib:liblz4\n"
         "race:rocksdb::\n"
         "race:std::__cxx11::basic_string*::_M_\n";
}
#endif

namespace moonpool::storage {

namespace {

ErrorCode CodeOf(const rocksdb::Status& status, const std::string& text) {
  // A quota that is used up has no code of its own in RocksDB.
  if (status.IsNoSpace() || text.find("quota exceeded") != std::string::npos ||
      text.find("No space left") != std::string::npos) {
    return ErrorCode::kNoSpace;
  }
  if (status.IsCorruption() || status.IsPathNotFound()) return ErrorCode::kCorrupt;
  if (status.IsNotFound()) return ErrorCode::kNotFound;
  if (status.IsInvalidArgument() || status.IsNotSupported()) return ErrorCode::kInvalidArgument;
  return ErrorCode::kSystem;
}

// Longest that an error waits for a flush to begin.
constexpr std::chrono::seconds kFlushBegins{30};

// Tables and blob files that may be open: a share of what the process may have, since every
// connection needs one too.
int MaxOpenFiles() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return static_cast<int>(std::clamp<rlim_t>(limit.rlim_cur / 4, 128, 8192));
}

}  // namespace

tl::unexpected<Error> FailRocks(std::string_view what, const rocksdb::Status& status) {
  const std::string text = status.ToString();
  return Fail(CodeOf(status, text), std::string(what) + ": " + text);
}

Status SsdWatch::Health() const {
  MutexLock lock(mu_);
  if (error_) return Fail(error_->code, error_->message);
  return {};
}

// RocksDB 7.8 waits for what runs in the background before it resumes, and begins flushes meanwhile.
// When one of those fails, the flush of its own that it then schedules is forgotten (taken off the
// count of unscheduled flushes, but not off their queue), and every later Resume() waits for it
// forever.  So it must find nothing running; a flush that failed sleeps for a second.
Status SsdWatch::Resume(rocksdb::DB& db) {
  using Properties = rocksdb::DB::Properties;
  for (const std::string& running :
       {Properties::kNumRunningFlushes, Properties::kNumRunningCompactions}) {
    uint64_t count = 0;
    if (db.GetIntProperty(running, &count) && count > 0) {
      return Fail(ErrorCode::kBusy, "resuming SSD writes: background work is still running");
    }
  }
  if (const auto status = db.Resume(); !status.ok()) return FailRocks("resuming SSD writes", status);
  MutexLock lock(mu_);
  error_.reset();
  return {};
}

tl::unexpected<Error> SsdWatch::FailWrite(std::string_view what,
                                          const rocksdb::Status& status) const {
  // Writers that waited for a flush that failed are told no more than "incomplete".
  if (Status health = Health(); !health) {
    return Fail(health.error().code, std::string(what) + ": " + health.error().message);
  }
  return FailRocks(what, status);
}

void SsdWatch::AllFlushed(uint64_t sequence) {
  uint64_t known = flushed_sequence_.load(std::memory_order_relaxed);
  while (known < sequence &&
         !flushed_sequence_.compare_exchange_weak(known, sequence, std::memory_order_release)) {
  }
}

void SsdWatch::OnFlushBegin(rocksdb::DB*, const rocksdb::FlushJobInfo&) {
  // RocksDB's own thread, which the buffer between memtable and disk will be of.
  thread_local bool first = true;
  if (!std::exchange(first, false)) return;
  UseHugePages();
  GiveWay(niceness_);
}

void SsdWatch::OnCompactionBegin(rocksdb::DB*, const rocksdb::CompactionJobInfo&) {
  // RocksDB's own thread, or the tier's writer, which is as nice.
  thread_local bool first = true;
  if (std::exchange(first, false)) GiveWay(niceness_);
}

void SsdWatch::OnFlushCompleted(rocksdb::DB*, const rocksdb::FlushJobInfo& info) {
  // RocksDB installs flushes in the order of their memtables and tells of them afterwards.
  AllFlushed(info.largest_seqno);
}

void SsdWatch::OnTableFileCreated(const rocksdb::TableFileCreationInfo& info) {
  disk_bytes_written_.fetch_add(info.file_size, std::memory_order_relaxed);
}

void SsdWatch::OnBlobFileCreated(const rocksdb::BlobFileCreationInfo& info) {
  disk_bytes_written_.fetch_add(info.total_blob_bytes, std::memory_order_relaxed);
}

void SsdWatch::OnStallConditionsChanged(const rocksdb::WriteStallInfo& info) {
  stalled_.store(info.condition.cur != rocksdb::WriteStallCondition::kNormal,
                 std::memory_order_relaxed);
}

void SsdWatch::OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) {
  // A compaction that fails is tried again, and writers need not know.  Nor must it stop the
  // database: a flush that is about to start just then would be forgotten (see Resume()).
  if (reason == rocksdb::BackgroundErrorReason::kCompaction && error->IsIOError()) {
    *error = rocksdb::Status::OK();
    return;
  }
  AwaitFlush();
  const std::string text = error->ToString();
  MutexLock lock(mu_);
  if (!error_) error_ = Error{CodeOf(*error, text), text};
  // RocksDB takes an I/O error for the end of a database, until it is opened again.  Ours may go
  // on as after a full disk: Resume() writes what is in memory to new files and a new log, and who
  // got an error does not count on what was in the old one.
  if (error->IsIOError() && error->severity() > rocksdb::Status::Severity::kHardError) {
    *error = rocksdb::Status(*error, rocksdb::Status::Severity::kHardError);
  }
}

// RocksDB 7.8 forgets a flush whose turn of a thread comes when an error has stopped background work:
// it is taken off the count of unscheduled flushes, but stays in their queue, and every later
// Resume() waits for it forever.  RocksDB waits for its listeners before the error stops anything.
void SsdWatch::AwaitFlush() const {
  using Properties = rocksdb::DB::Properties;
  rocksdb::DB* const db = db_.load(std::memory_order_acquire);
  const auto end = std::chrono::steady_clock::now() + kFlushBegins;
  const auto waits = [&] {
    uint64_t sealed = 0, running = 0;
    return Health().has_value() && !given_up_.load(std::memory_order_relaxed) &&
           db->GetIntProperty(Properties::kNumImmutableMemTable, &sealed) && sealed > 0 &&
           db->GetIntProperty(Properties::kNumRunningFlushes, &running) && running == 0;
  };
  while (db != nullptr && waits() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void SsdWatch::OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status error,
                                    bool* auto_recovery) {
  // Resume() decides when, so that its caller knows whether writes can succeed.
  error.PermitUncheckedError();
  *auto_recovery = false;
}

rocksdb::Options SsdDatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                    std::shared_ptr<SsdWatch> watch) {
  rocksdb::Options result;
  result.env = shared.env.get();
  result.create_if_missing = true;
  result.listeners.push_back(std::move(watch));
  result.rate_limiter = shared.rate_limiter;
  // With two at once a failing one makes RocksDB forget the other (see SsdWatch::Resume()).
  result.max_background_flushes = 1;
  result.max_background_compactions = std::max(1, options.background_threads - 1);
  result.max_open_files = MaxOpenFiles();
  // Its own attempts would make writers wait for as long as a disk is full.
  result.max_bgerror_resume_count = 0;
  // A store of many files opens fast; a file that is not right is found by who reads it.
  result.skip_stats_update_on_db_open = true;
  result.skip_checking_sst_file_sizes_on_db_open = true;
  // Each flush would look at every file there is.
  result.force_consistency_checks = false;
  // Two small files that tell of trouble alone.
  result.info_log_level = rocksdb::InfoLogLevel::WARN_LEVEL;
  result.max_log_file_size = 1 << 20;
  result.keep_log_file_num = 2;
  result.stats_dump_period_sec = 0;
  result.stats_persist_period_sec = 0;
  // The manifest gets an entry per flush.
  result.max_manifest_file_size = 16 << 20;
  return result;
}

}  // namespace moonpool::storage
