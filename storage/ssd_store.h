// What the SSD tier keeps on disk: two RocksDB databases under one directory.
//
//   DIR/format     "moonpool-ssd 3": the version of this layout.  Version 2, whose chunks have their
//                  checksums with them, and version 1, whose chunks RocksDB compressed if anybody,
//                  are read as well, and are version 3 from then on
//   DIR/trusted    not there while changes cannot be written: a restart then starts empty
//   DIR/payload/   the bytes of values in chunks, in blob files; puts are written without a log
//   DIR/index/     which value versions are alive; every change is logged before it is acknowledged
//
// A *version* is one value of one key, named by an id that is never used twice in a store's life
// and grows.  Its record in the index is what makes it come back after a restart; a record that was
// erased never comes back (invariant: what was acknowledged stays changed).  Payload of versions
// without a record is garbage, deleted in the background (CollectGarbage) and after a crash.
//
// After a crash of the process the index has every change that Apply() returned for, and payload
// has what was flushed: Recover() drops records whose payload was not.  After a crash of the
// machine (the boot id differs and there is no clean mark) without `sync`, changes may be lost, so
// that a record may be one that was erased: the store then starts empty and says so.  It does the
// same when RocksDB finds a database damaged as a whole.
//
// Threads: any, except where said.  Blocking: every call may wait for the disk.
// Errors: kSystem (I/O; the message says what to do), kNoSpace (the file system or the quota is
// full), kCorrupt (checksum, length, a file that is gone), kNotFound (chunk missing),
// kInvalidArgument (a newer format, a directory that cannot be used or is in use).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"
#include "storage/ssd_compression.h"

namespace rocksdb {
class Env;
}

namespace moonpool::storage {

class SsdIndex;
class SsdPayload;
struct SsdShared;

struct SsdOptions {
  std::string directory;                   // made when it is not there
  uint32_t chunk_bytes = 1 << 20;          // of versions written from now on; at least 4 KiB
  uint64_t write_buffer_bytes = 8 << 20;   // one memtable of the payload: one blob file.  Up to
                                           // three are in memory; large stores want larger ones
                                           // (fewer files)
  using Compression = SsdCompression;
  Compression compression = Compression::kNone;  // of versions that do not say otherwise
  bool direct_io = true;            // falls back to buffered, with a note, where the fs refuses
  bool log_payload = false;         // payload survives a crash before it is flushed
  bool sync = false;                // fsync the index's log: machine crashes keep the store
  uint64_t rate_limit_bytes_s = 0;  // of flushes and compactions; 0: none
  int background_threads = 2;       // flushes and compactions
  int niceness = 0;                 // of every thread that moves values, see GiveWay()
  double garbage_share = 0.2;       // of the files: more, and CollectGarbage() rewrites some.
                                    // Smaller wastes less disk and writes more
  std::function<void(std::string)> note;  // a line for the log; any thread

  // For tests.
  rocksdb::Env* env = nullptr;  // the file system of both databases; nullptr: the real one
  std::string boot_id;          // empty: the kernel's
};

struct SsdRecord {
  uint64_t id = 0;
  std::string key;
  uint64_t length = 0;    // bytes, at least 1
  int64_t expiry_ms = 0;  // Unix; 0: never
  uint32_t chunk_bytes = 0;
};

// What KV.DROP said: versions older than `floor` whose key matches are gone.  `text` is a glob or
// the beginning of keys.
struct SsdVoid {
  uint64_t sequence = 0;
  uint64_t floor = 0;
  std::string text;
  bool is_glob = false;
};

// Changes of the index that reach the disk together and in order.  Threads: one at a time.
class SsdChange {
 public:
  void Put(const SsdRecord& record);  // new, or with another key or expiry
  void Erase(uint64_t id, uint64_t length, uint32_t chunk_bytes);
  void EraseBelow(uint64_t floor);  // FLUSHALL: every id < floor
  void PutVoid(const SsdVoid& v);
  void EraseVoid(uint64_t sequence);
  bool empty() const { return steps_.empty(); }
  void Clear() { *this = SsdChange(); }

 private:
  friend class SsdStore;
  friend class SsdIndex;
  struct Step {
    enum class Kind : uint8_t { kPut, kErase, kEraseBelow, kPutVoid, kEraseVoid } kind;
    uint64_t id = 0;      // or floor, or sequence
    uint64_t length = 0;  // of the value; its record or void is in `entry`
    uint32_t chunk_bytes = 0;
    std::string entry;
  };
  std::vector<Step> steps_;
  uint64_t erases_below_ = 0;
};

class SsdStore {
 public:
  // Locks the directory and opens what is there.
  static Result<std::unique_ptr<SsdStore>> Open(const SsdOptions& options);
  // Closes; not a clean stop unless MarkClean() was the last thing.
  ~SsdStore();
  SsdStore(const SsdStore&) = delete;

  struct Recovery {
    bool clean = false;         // the last stop was
    bool wiped = false;         // the machine crashed, or a database was damaged: starts empty
    uint64_t versions = 0;      // records that are alive
    uint64_t unfinished = 0;    // dropped: their payload had not reached the disk
    uint64_t expired = 0;       // dropped
    uint64_t voided = 0;        // dropped by a KV.DROP that had not been swept
    uint64_t small_values = 0;  // saved by SaveSmall()
    uint64_t bytes = 0;         // of the versions that are alive
  };
  // Once, before anything else: visits what is alive (in no particular order), then what
  // SaveSmall() kept; from then on small values are gone from the disk (before the function
  // returns, logged).  Also erases the clean mark and every void, whose work is done.  Keys and
  // values are valid during the call.  An error leaves a store that can only be closed.
  Result<Recovery> Recover(int64_t now_ms, const std::function<void(const SsdRecord&)>& version,
                           const std::function<void(std::string_view key, int64_t expiry_ms,
                                                    std::string_view value)>& small);
  // Ids to use next: larger than any ever used (also by versions long erased).  Any thread.
  uint64_t NextId();
  // The ids that a clean stop left as the hottest, hottest first.  Known once Recover() visits.
  std::vector<uint64_t> hot() const;

  // --- payload
  // The chunks of a version; when it returns they can be read, though they may not be durable.
  // Uses O(chunk) of memory of its own besides the write buffers, and waits while those are full.
  // After an error the payload counts as dropped, and the id must not be used again.
  Status WritePayload(uint64_t id, std::string_view bytes) {
    return WritePayload(id, bytes, options_.compression);
  }
  Status WritePayload(uint64_t id, std::string_view bytes, SsdCompression compression);
  // One chunk of a version to the beginning of `to` (its length: min(chunk_bytes, length - chunk *
  // chunk_bytes)), verified; the key is not used.  Fastest where `to` begins with a page of memory
  // and holds the whole of the chunk's last page; what is behind the chunk there is overwritten.
  // After an error `to` holds anything.
  Status ReadChunk(const SsdRecord& version, uint32_t chunk, std::span<char> to);
  // When it returns, everything written before is durable.
  Status FlushPayload();
  // A version whose record was never put (its key changed meanwhile).
  void DropPayload(uint64_t id, uint64_t length, uint32_t chunk_bytes);
  // Deletes payload of erased versions and gives their space back, some at a time; true when there
  // is more.  One thread works, others return at once.
  bool CollectGarbage();

  // --- index
  // When it returns without an error the changes survive a crash of the process.  After an error
  // it is not known which of them did: Resume(), then apply them again.
  Status Apply(const SsdChange& change);

  // While changes cannot be written: a store that is not trusted starts empty, so that what they
  // would have erased does not come back.
  Status Distrust();
  void Trust();

  // --- clean stop, in this order, nothing else meanwhile
  Status SaveSmall(std::string_view key, int64_t expiry_ms, std::string_view value);
  Status MarkClean(std::span<const uint64_t> hot);  // flushes and fsyncs everything first

  struct Stats {
    uint64_t disk_bytes = 0;             // files of both databases
    uint64_t live_bytes = 0;             // values written and not erased
    uint64_t garbage_bytes = 0;          // of the payload's files: about what is not live
    uint64_t payload_bytes_written = 0;  // by WritePayload() since Open()
    uint64_t disk_bytes_written = 0;     // by flushes and compactions since Open()
    uint64_t blob_files = 0;
    uint64_t chunks_in_place = 0;           // read by the disk to where they were wanted, since Open()
    uint64_t memory_bytes = 0;              // write buffers, table readers, block caches
    uint64_t pending_compaction_bytes = 0;  // RocksDB's estimate, tables alone
    bool stalled = false;                   // writers wait for flushes
  };
  Stats stats() const;

  // The sticky background error (kNoSpace, kSystem), if there is one.  Writes fail until Resume()
  // succeeds, which is for the caller to try now and then; reads go on.
  Status Health() const;
  Status Resume();
  // Ends a Resume() that another thread is in, and every later one.  Before the store is closed.
  void GiveUpResuming();

 private:
  SsdStore(const SsdOptions& options, UniqueFd lock);
  Status OpenDatabases();
  Status Wipe(const std::string& why);
  void ReserveIds();
  // Keeps ids from `id` on among those that a restart checks.
  Status LowerFloor(uint64_t id);
  void RaiseFloor();
  Status ErasedBelow(uint64_t floor);
  void Note(const std::string& line) const;

  struct Waiting {  // deleted, and still in the index until that is durable
    uint64_t sequence;
    std::vector<uint64_t> ids;
  };
  Status DeleteUnknown(uint64_t first, uint64_t end, std::vector<uint64_t> known);
  Status WriteSmall() REQUIRES(small_mu_);
  // Makes durable what files that are never synced hold.
  Status SyncUnsynced();
  Status ForgetDeleted() REQUIRES(garbage_mu_);
  Result<bool> DeleteSome() REQUIRES(garbage_mu_);
  Result<bool> CollectSome() REQUIRES(garbage_mu_);

  SsdOptions options_;
  const UniqueFd lock_;
  std::unique_ptr<SsdShared> shared_;
  std::unique_ptr<SsdPayload> payload_;
  std::unique_ptr<SsdIndex> index_;
  bool wiped_ = false;
  std::vector<uint64_t> hot_;

  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> reserved_{0};  // the index says that ids below it may be used
  std::atomic<int64_t> live_bytes_{0};
  std::atomic<uint64_t> payload_bytes_written_{0};

  // Lock order: garbage_mu_, below_mu_, then one of the others; all are held across writes of
  // the index.
  Mutex ids_mu_;
  Mutex floor_mu_;
  uint64_t floor_ GUARDED_BY(floor_mu_) = 0;  // what the index says
  Mutex garbage_mu_;
  std::deque<Waiting> waiting_ GUARDED_BY(garbage_mu_);
  uint64_t garbage_cursor_ GUARDED_BY(garbage_mu_) = 0;
  bool garbage_failing_ GUARDED_BY(garbage_mu_) = false;  // and was told so
  std::atomic<int64_t> erased_bytes_{0};  // whose payload is still to be deleted
  Mutex below_mu_;
  uint64_t erase_below_ GUARDED_BY(below_mu_) = 0;  // payload of smaller ids is to be deleted
  Mutex drops_mu_;                                  // a leaf
  SsdChange drops_ GUARDED_BY(drops_mu_);           // that could not be written
  Mutex small_mu_;
  struct Small {
    std::string key;
    int64_t expiry_ms;
    std::string value;
  };
  std::vector<Small> small_ GUARDED_BY(small_mu_);  // not written yet
  uint64_t small_bytes_ GUARDED_BY(small_mu_) = 0;
};

}  // namespace moonpool::storage
