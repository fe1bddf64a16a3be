#include "storage/ssd_store.h"

#include <rocksdb/rate_limiter.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "storage/ssd_file_system.h"
#include "storage/ssd_files.h"
#include "storage/ssd_index.h"
#include "storage/ssd_payload.h"
#include "storage/ssd_rocksdb.h"

namespace moonpool::storage {

namespace {

// How far the index's floor may lag behind: a restart looks at so many versions more.
constexpr uint64_t kFloorStep = 1024;
// Ids are taken before they are written, so that some come late.
constexpr uint64_t kFloorMargin = 64;
constexpr uint64_t kIdBlock = 1 << 20;

Status CheckOptions(const SsdOptions& options) {
  if (options.directory.empty()) {
    return Fail(ErrorCode::kInvalidArgument, "an SSD store needs a directory");
  }
  if (options.chunk_bytes < 4096) {
    return Fail(ErrorCode::kInvalidArgument, "SSD chunks are at least 4096 bytes");
  }
  if (options.write_buffer_bytes < 1 << 20) {
    return Fail(ErrorCode::kInvalidArgument, "an SSD write buffer is at least 1 MiB");
  }
  return {};
}

// Whether the index and the payload were both made, or neither.
bool HasBothOrNone(const std::string& directory) {
  std::error_code ignored;
  return std::filesystem::exists(directory + "/index/CURRENT", ignored) ==
         std::filesystem::exists(directory + "/payload/CURRENT", ignored);
}

bool HasDatabases(const std::string& directory) {
  std::error_code ignored;
  return std::filesystem::exists(directory + "/index/CURRENT", ignored);
}

}  // namespace

Result<std::unique_ptr<SsdStore>> SsdStore::Open(const SsdOptions& options) {
  if (Status valid = CheckOptions(options); !valid) return tl::unexpected(valid.error());
  Result<UniqueFd> lock = LockSsdDirectory(options.directory);
  if (!lock) return tl::unexpected(std::move(lock.error()));
  std::unique_ptr<SsdStore> store(new SsdStore(options, std::move(*lock)));
  if (Status opened = store->OpenDatabases(); !opened) return tl::unexpected(opened.error());
  return store;
}

SsdStore::SsdStore(const SsdOptions& options, UniqueFd lock)
    : options_(options), lock_(std::move(lock)), shared_(std::make_unique<SsdShared>()) {
  if (options_.boot_id.empty()) options_.boot_id = KernelBootId();
  shared_->env = NewSsdEnv(options_.env, options_.sync);
  if (options_.rate_limit_bytes_s > 0) {
    shared_->rate_limiter.reset(
        rocksdb::NewGenericRateLimiter(static_cast<int64_t>(options_.rate_limit_bytes_s)));
  }
  shared_->direct_io = options_.direct_io && DirectIoWorks(options_.directory);
  if (options_.direct_io && !shared_->direct_io) {
    Note("the file system of " + options_.directory +
         " refuses direct I/O: SSD values pass through the page cache");
  }
}

SsdStore::~SsdStore() {
  // RocksDB flushes when it closes, but not after a background error that it has recovered from.
  if (payload_ != nullptr && index_ != nullptr && Health()) static_cast<void>(payload_->Flush());
}

Status SsdStore::Distrust() {
  Status done = DistrustSsdDirectory(options_.directory);
  if (!done) Note(done.error().message);
  return done;
}

void SsdStore::Trust() {
  if (Status done = TrustSsdDirectory(options_.directory); !done) Note(done.error().message);
}

void SsdStore::Note(const std::string& line) const {
  if (options_.note) options_.note(line);
}

Status SsdStore::OpenDatabases() {
  if (!HasBothOrNone(options_.directory)) {
    if (Status wiped = Wipe("one of its databases is gone"); !wiped) return wiped;
  }
  if (HasDatabases(options_.directory) && !SsdDirectoryTrusted(options_.directory)) {
    if (Status wiped = Wipe("changes could not be written when it was used last"); !wiped) {
      return wiped;
    }
  }
  if (Status trusted = TrustSsdDirectory(options_.directory); !trusted) return trusted;
  for (;;) {
    Status opened;
    Result<std::unique_ptr<SsdIndex>> index = SsdIndex::Open(options_, *shared_);
    if (index) {
      index_ = std::move(*index);
      const Result<std::optional<SsdIndex::State>> state = index_->GetState();
      if (!state) {
        opened = tl::unexpected(state.error());
      } else if (*state && !(*state)->clean && !(*state)->sync &&
                 ((*state)->boot_id != options_.boot_id || options_.boot_id.empty())) {
        if (Status wiped = Wipe("the machine stopped without warning"); !wiped) return wiped;
        continue;
      }
    } else {
      opened = tl::unexpected(std::move(index.error()));
    }
    if (opened) {
      Result<std::unique_ptr<SsdPayload>> payload = SsdPayload::Open(options_, *shared_);
      if (payload) {
        payload_ = std::move(*payload);
        return {};
      }
      opened = tl::unexpected(std::move(payload.error()));
    }
    if (opened.error().code != ErrorCode::kCorrupt || wiped_) return opened;
    if (Status wiped = Wipe(opened.error().message); !wiped) return wiped;
  }
}

Status SsdStore::Wipe(const std::string& why) {
  Note(options_.directory + " starts empty: " + why);
  index_.reset();
  payload_.reset();
  const auto watch = std::make_shared<SsdWatch>();
  for (const auto& [name, database] :
       {std::pair{"/index", SsdIndex::DatabaseOptions(options_, *shared_, watch)},
        std::pair{"/payload", SsdPayload::DatabaseOptions(options_, *shared_, watch)}}) {
    const std::string path = options_.directory + name;
    const auto status = rocksdb::DestroyDB(path, database);
    if (!status.ok() && !status.IsNotFound()) return FailRocks("emptying " + path, status);
    // What RocksDB does not know by its name stays; a database that cannot be listed goes too.
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error) return Fail(ErrorCode::kSystem, "emptying " + path + ": " + error.message());
  }
  wiped_ = true;
  return {};
}

// --- ids -----------------------------------------------------------------------------------------

uint64_t SsdStore::NextId() {
  const uint64_t id = next_.fetch_add(1, std::memory_order_relaxed);
  MOONPOOL_CHECK(id > 0);  // Recover() first
  if (id + kIdBlock / 2 >= reserved_.load(std::memory_order_acquire)) ReserveIds();
  return id;
}

void SsdStore::ReserveIds() {
  MutexLock lock(ids_mu_);
  const uint64_t next = next_.load(std::memory_order_relaxed);
  if (next + kIdBlock / 2 < reserved_.load(std::memory_order_relaxed)) return;
  SsdIndex::Batch batch;
  batch.Set(SsdIndex::Number::kNext, next + kIdBlock);
  // Without a disk to write to no record of these ids can be put either, so that none is known
  // after a restart; the next call tries again.
  if (index_->Write(batch)) reserved_.store(next + kIdBlock, std::memory_order_release);
}

Status SsdStore::LowerFloor(uint64_t id) {
  MutexLock lock(floor_mu_);
  if (id >= floor_) return {};
  SsdIndex::Batch batch;
  batch.Set(SsdIndex::Number::kFloor, id);
  if (Status written = index_->Write(batch); !written) return written;
  floor_ = id;
  return {};
}

void SsdStore::RaiseFloor() {
  // Whoever writes an id below the new floor has told payload_ before it asks for floor_mu_, so
  // that either we see it here or it sees the floor that we wrote.
  if (!floor_mu_.TryLock()) return;
  const uint64_t safe = payload_->SafeBelow();
  if (safe >= floor_ + kFloorStep + kFloorMargin) {
    SsdIndex::Batch batch;
    batch.Set(SsdIndex::Number::kFloor, safe - kFloorMargin);
    if (index_->Write(batch)) floor_ = safe - kFloorMargin;
  }
  floor_mu_.Unlock();
}

// --- payload -------------------------------------------------------------------------------------

Status SsdStore::WritePayload(uint64_t id, std::string_view bytes, SsdCompression compression) {
  MOONPOOL_CHECK(!bytes.empty());
  payload_->Begin(id);
  Status written = LowerFloor(id);
  if (written) written = payload_->Write(id, bytes, compression);
  live_bytes_.fetch_add(static_cast<int64_t>(bytes.size()), std::memory_order_relaxed);
  if (!written) {
    payload_->GiveUp(id);
    DropPayload(id, bytes.size(), options_.chunk_bytes);
    return written;
  }
  payload_bytes_written_.fetch_add(bytes.size(), std::memory_order_relaxed);
  return {};
}

Status SsdStore::ReadChunk(const SsdRecord& version, uint32_t chunk, std::span<char> to) {
  return payload_->Read(version.id, version.length, version.chunk_bytes, chunk, to);
}

Status SsdStore::FlushPayload() {
  return payload_->Flush();
}

void SsdStore::DropPayload(uint64_t id, uint64_t length, uint32_t chunk_bytes) {
  SsdChange change;
  change.Erase(id, length, chunk_bytes);
  if (Apply(change)) return;
  MutexLock lock(drops_mu_);
  drops_.Erase(id, length, chunk_bytes);
}

// --- index ---------------------------------------------------------------------------------------

Status SsdStore::Apply(const SsdChange& change) {
  using Kind = SsdChange::Step::Kind;
  if (change.empty()) return {};
  if (next_.load(std::memory_order_relaxed) >= reserved_.load(std::memory_order_acquire)) {
    ReserveIds();
  }
  SsdIndex::Batch batch;
  batch.Add(change);
  if (change.erases_below_ > 0) {
    MutexLock lock(below_mu_);
    if (Status written = index_->Write(batch); !written) return written;
    erase_below_ = std::max(erase_below_, change.erases_below_);
  } else if (Status written = index_->Write(batch); !written) {
    return written;
  }
  for (const SsdChange::Step& step : change.steps_) {
    switch (step.kind) {
      case Kind::kPut:
        payload_->Settle(step.id);
        break;
      case Kind::kErase:
        payload_->Settle(step.id);
        live_bytes_.fetch_sub(static_cast<int64_t>(step.length), std::memory_order_relaxed);
        erased_bytes_.fetch_add(static_cast<int64_t>(step.length), std::memory_order_relaxed);
        break;
      case Kind::kEraseBelow:
        if (Status erased = ErasedBelow(step.id); !erased) return erased;
        break;
      case Kind::kPutVoid:
      case Kind::kEraseVoid:
        break;
    }
  }
  RaiseFloor();
  return {};
}

Status SsdStore::ErasedBelow(uint64_t floor) {
  payload_->SettleBelow(floor);
  int64_t alive = 0;
  Status read = index_->ForEachVersion(floor, [&](const SsdRecord& record) -> Status {
    alive += static_cast<int64_t>(record.length);
    return {};
  });
  live_bytes_.store(alive, std::memory_order_relaxed);
  return read;
}

// --- state ---------------------------------------------------------------------------------------

std::vector<uint64_t> SsdStore::hot() const {
  return hot_;
}

SsdStore::Stats SsdStore::stats() const {
  const SsdPayload::Space space = payload_->space();
  Stats stats;
  stats.disk_bytes = space.table_bytes + space.blob_bytes + index_->disk_bytes();
  const int64_t live = live_bytes_.load(std::memory_order_relaxed);
  stats.live_bytes = live > 0 ? static_cast<uint64_t>(live) : 0;
  stats.garbage_bytes = space.blob_bytes - std::min(space.blob_bytes, stats.live_bytes);
  stats.payload_bytes_written = payload_bytes_written_.load(std::memory_order_relaxed);
  stats.disk_bytes_written =
      payload_->watch().disk_bytes_written() + index_->watch().disk_bytes_written();
  stats.blob_files = space.blob_files;
  stats.chunks_in_place = payload_->read_in_place();
  stats.memory_bytes = space.memory_bytes + index_->memory_bytes();
  stats.pending_compaction_bytes = space.pending_compaction_bytes;
  stats.stalled = payload_->watch().stalled() || index_->watch().stalled();
  return stats;
}

Status SsdStore::Health() const {
  if (Status health = index_->watch().Health(); !health) return health;
  return payload_->watch().Health();
}

Status SsdStore::Resume() {
  if (Status resumed = index_->Resume(); !resumed) return resumed;
  return payload_->Resume();
}

void SsdStore::GiveUpResuming() {
  index_->GiveUpResuming();
  payload_->GiveUpResuming();
}

}  // namespace moonpool::storage
