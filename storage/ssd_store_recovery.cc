// SsdStore: what a start finds, what a clean stop leaves, and the collection of garbage that both
// rest on.
#include <algorithm>
#include <vector>

#include "protocol/glob.h"
#include "storage/ssd_files.h"
#include "storage/ssd_index.h"
#include "storage/ssd_payload.h"
#include "storage/ssd_rocksdb.h"
#include "storage/ssd_store.h"

namespace moonpool::storage {

namespace {

constexpr size_t kBatchBytes = 1 << 20;
constexpr uint64_t kIdBlock = 1 << 20;
constexpr size_t kErasedAtOnce = 256;

bool IsVoid(const std::vector<SsdVoid>& voids, const SsdRecord& record) {
  return std::any_of(voids.begin(), voids.end(), [&](const SsdVoid& v) {
    return record.id < v.floor &&
           (v.is_glob ? protocol::GlobMatch(v.text, record.key) : record.key.starts_with(v.text));
  });
}

}  // namespace

Result<SsdStore::Recovery> SsdStore::Recover(
    int64_t now_ms, const std::function<void(const SsdRecord&)>& version,
    const std::function<void(std::string_view key, int64_t expiry_ms, std::string_view value)>&
        small) {
  using Number = SsdIndex::Number;
  const auto state = index_->GetState();
  const auto floor = index_->Get(Number::kFloor);
  const auto next = index_->Get(Number::kNext);
  const auto below = index_->Get(Number::kBelow);
  const auto voids = index_->Voids();
  auto hot = index_->Hot();
  if (!state) return tl::unexpected(state.error());
  if (!floor) return tl::unexpected(floor.error());
  if (!next) return tl::unexpected(next.error());
  if (!below) return tl::unexpected(below.error());
  if (!voids) return tl::unexpected(voids.error());
  if (!hot) return tl::unexpected(hot.error());

  hot_ = std::move(*hot);
  Recovery recovery;
  recovery.wiped = wiped_;
  recovery.clean = *state && (*state)->clean;
  const uint64_t unsafe_from = floor->value_or(0);
  std::vector<uint64_t> known;  // ids at or above the floor whose payload the index knows of
  uint64_t largest = 0;
  SsdIndex::Batch batch;
  Status read = index_->ForEachVersion(0, [&](const SsdRecord& record) -> Status {
    largest = record.id;
    uint64_t* dropped = nullptr;
    if (record.id >= unsafe_from && !recovery.clean) {
      known.push_back(record.id);
      const Result<bool> complete = payload_->Complete(record.id, record.length);
      if (!complete) return tl::unexpected(complete.error());
      if (!*complete) dropped = &recovery.unfinished;
    }
    if (record.expiry_ms != 0 && record.expiry_ms <= now_ms) {
      dropped = &recovery.expired;
    } else if (!voids->empty() && IsVoid(*voids, record)) {
      dropped = &recovery.voided;
    }
    if (dropped == nullptr) {
      ++recovery.versions;
      recovery.bytes += record.length;
      version(record);
      return {};
    }
    ++*dropped;
    batch.Erase({record.id, record.length, SsdChunks(record.length, record.chunk_bytes)});
    if (batch.bytes() < kBatchBytes) return {};
    Status written = index_->Write(batch);
    batch.Clear();
    return written;
  });
  if (!read) return tl::unexpected(read.error());
  const Result<uint64_t> payload_end = payload_->EndOfIds();
  if (!payload_end) return tl::unexpected(payload_end.error());
  if (!recovery.clean) {
    if (Status deleted = DeleteUnknown(unsafe_from, *payload_end, std::move(known)); !deleted) {
      return tl::unexpected(deleted.error());
    }
  }
  if (recovery.clean) {
    read =
        index_->ForEachSmall([&](std::string_view key, int64_t expiry_ms, std::string_view value) {
          if (expiry_ms != 0 && expiry_ms <= now_ms) return;
          ++recovery.small_values;
          small(key, expiry_ms, value);
        });
    if (!read) return tl::unexpected(read.error());
  }

  // From here on the disk says that this process runs: durable before anything changes, so that a
  // crash of the machine cannot bring the clean mark back.
  const uint64_t first_id =
      std::max({next->value_or(1), unsafe_from, largest + 1, *payload_end, below->value_or(0)});
  for (const SsdVoid& v : *voids) batch.EraseVoid(v.sequence);
  batch.ClearSmall();
  batch.SetHot({});
  batch.Set(Number::kNext, first_id + kIdBlock);
  batch.Set(Number::kFloor, first_id);
  batch.SetState({options_.boot_id, false, options_.sync});
  // With `sync` the mark says that what is here survives too, and the last process may not have
  // synced it.
  Status written = SyncSsdDirectory(options_.directory);
  if (written) written = index_->Write(batch, true);
  if (written) written = SyncUnsynced();
  if (!written) return tl::unexpected(written.error());
  {
    MutexLock lock(floor_mu_);
    floor_ = first_id;
  }
  {
    MutexLock lock(below_mu_);
    erase_below_ = below->value_or(0);
  }
  live_bytes_ = static_cast<int64_t>(recovery.bytes);
  reserved_ = first_id + kIdBlock;
  next_ = first_id;
  return recovery;
}

// Payload that a crash left behind: of ids that the index never heard of.
Status SsdStore::DeleteUnknown(uint64_t first, uint64_t end, std::vector<uint64_t> known) {
  if (first >= end) return {};
  const auto erased = index_->ErasedFrom(first, ~size_t{0});
  if (!erased) return tl::unexpected(erased.error());
  for (const SsdPayload::Erased& version : *erased) known.push_back(version.id);
  known.push_back(end);
  std::sort(known.begin(), known.end());
  for (const uint64_t id : known) {
    if (first < id) {
      if (Status deleted = payload_->DeleteRange(first, id); !deleted) return deleted;
    }
    first = id + 1;
  }
  return payload_->Flush();
}

// --- clean stop ----------------------------------------------------------------------------------

Status SsdStore::SaveSmall(std::string_view key, int64_t expiry_ms, std::string_view value) {
  MutexLock lock(small_mu_);
  small_.push_back({std::string(key), expiry_ms, std::string(value)});
  small_bytes_ += key.size() + value.size();
  return small_bytes_ < kBatchBytes ? Status() : WriteSmall();
}

Status SsdStore::WriteSmall() {
  SsdIndex::Batch batch;
  for (const Small& value : small_) batch.PutSmall(value.key, value.expiry_ms, value.value);
  small_.clear();
  small_bytes_ = 0;
  return index_->Write(batch);
}

Status SsdStore::MarkClean(std::span<const uint64_t> hot) {
  {
    MutexLock lock(small_mu_);
    if (Status written = WriteSmall(); !written) return written;
  }
  if (Status flushed = payload_->Flush(); !flushed) return flushed;
  if (Status synced = SyncUnsynced(); !synced) return synced;
  SsdIndex::Batch batch;
  const uint64_t next = next_.load(std::memory_order_relaxed);
  batch.Set(SsdIndex::Number::kNext, next);
  batch.Set(SsdIndex::Number::kFloor, next);
  batch.SetHot(hot);
  batch.SetState({options_.boot_id, true, options_.sync});
  if (Status written = index_->Write(batch, true); !written) return written;
  return SyncUnsynced();
}

Status SsdStore::SyncUnsynced() {
  return options_.sync ? Status() : SyncSsdDirectory(options_.directory);
}

// --- garbage -------------------------------------------------------------------------------------

bool SsdStore::CollectGarbage() {
  if (!Health() || !garbage_mu_.TryLock()) return false;
  const Result<bool> more = CollectSome();
  if (!more && !garbage_failing_) Note("collecting garbage on the SSD: " + more.error().message);
  garbage_failing_ = !more;
  garbage_mu_.Unlock();
  return more && *more;
}

Result<bool> SsdStore::CollectSome() {
  SsdChange drops;
  {
    MutexLock lock(drops_mu_);
    drops = drops_;
  }
  if (!drops.empty()) {
    if (Status applied = Apply(drops); !applied) return tl::unexpected(applied.error());
    MutexLock lock(drops_mu_);
    drops_.steps_.erase(drops_.steps_.begin(),
                        drops_.steps_.begin() + static_cast<ptrdiff_t>(drops.steps_.size()));
  }
  uint64_t floor = 0;
  {
    MutexLock lock(below_mu_);
    floor = erase_below_;
  }
  if (floor > 0) {
    if (Status deleted = payload_->DeleteBelow(floor); !deleted) {
      return tl::unexpected(deleted.error());
    }
    SsdIndex::Batch batch;
    batch.Unset(SsdIndex::Number::kBelow);
    MutexLock lock(below_mu_);
    if (erase_below_ > floor) return true;  // another FLUSHALL came meanwhile
    if (Status written = index_->Write(batch); !written) return tl::unexpected(written.error());
    erase_below_ = 0;
  }
  if (Status forgotten = ForgetDeleted(); !forgotten) return tl::unexpected(forgotten.error());
  const Result<bool> deleted = DeleteSome();
  if (!deleted || *deleted) return deleted;
  const int64_t live = live_bytes_.load(std::memory_order_relaxed);
  return payload_->Compact(live > 0 ? static_cast<uint64_t>(live) : 0);
}

// Until a deletion is durable a crash can undo it, and the index still tells of it.
Status SsdStore::ForgetDeleted() {
  SsdIndex::Batch batch;
  while (!waiting_.empty() && payload_->Flushed(waiting_.front().sequence)) {
    for (const uint64_t id : waiting_.front().ids) batch.ForgetErased(id);
    waiting_.pop_front();
  }
  return batch.empty() ? Status() : index_->Write(batch);
}

Result<bool> SsdStore::DeleteSome() {
  const auto erased = index_->ErasedFrom(garbage_cursor_, kErasedAtOnce);
  if (!erased) return tl::unexpected(erased.error());
  if (erased->empty()) {
    // From the start again, once what was deleted on the way here is no longer there.  While
    // nothing is written no flush comes by itself.
    if (!waiting_.empty() && erased_bytes_.load(std::memory_order_relaxed) >
                                 static_cast<int64_t>(options_.write_buffer_bytes)) {
      if (Status flushed = payload_->Flush(); !flushed) return tl::unexpected(flushed.error());
      if (Status done = ForgetDeleted(); !done) return tl::unexpected(done.error());
    }
    if (!waiting_.empty() || garbage_cursor_ == 0) return false;
    garbage_cursor_ = 0;
    return erased_bytes_.load(std::memory_order_relaxed) > 0;
  }
  if (Status deleted = payload_->Delete(*erased); !deleted) {
    return tl::unexpected(deleted.error());
  }
  Waiting waiting{payload_->sequence(), {}};
  for (const SsdPayload::Erased& version : *erased) {
    waiting.ids.push_back(version.id);
    erased_bytes_.fetch_sub(static_cast<int64_t>(version.length), std::memory_order_relaxed);
  }
  waiting_.push_back(std::move(waiting));
  garbage_cursor_ = erased->back().id + 1;
  return true;
}

}  // namespace moonpool::storage
