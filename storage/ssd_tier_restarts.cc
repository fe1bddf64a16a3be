// SsdTier: what a start finds, and what a clean stop leaves.
#include <algorithm>
#include <chrono>
#include <unordered_map>

#include "storage/ssd_tier.h"
#include "storage/clock.h"

namespace moonpool::storage {

namespace {

// Values brought up ahead at a time after a restart.
constexpr size_t kWarmUpAhead = 4;
// How long the log is given after the time of a stop is over.
constexpr int64_t kLastWaitMs = 100;

}  // namespace

Status SsdTier::Recover(int64_t now_ms) {
  auto store = SsdStore::Open(options_.store);
  if (!store) return tl::unexpected<Error>(std::move(store.error()));
  store_ = std::move(*store);
  log_ = std::make_unique<SsdLog>(*store_);
  keyspace_.AttachLog(log_.get());
  std::unordered_map<uint64_t, size_t> rank;
  const auto note_hot = [&](const SsdRecord& record, const SsdPlace& place) {
    if (hot_.empty()) {
      for (const uint64_t id : store_->hot()) rank.emplace(id, rank.size());
      hot_.resize(rank.size());
    }
    if (const auto hot = rank.find(record.id); hot != rank.end()) {
      hot_[hot->second] = {HashKey(record.key), place};
    }
  };
  auto recovery = store_->Recover(
      now_ms,
      [&](const SsdRecord& record) {
        const SsdPlace place = SsdPlace::At(record.id, record.length, record.chunk_bytes);
        note_hot(record, keyspace_.Restore(record.key, record.expiry_ms, place));
      },
      [&](std::string_view key, int64_t expiry_ms, std::string_view value) {
        KeyLock lock(keyspace_, key, HashKey(key), now_ms);
        lock.key.Set(value);
        if (expiry_ms != 0) lock.key.SetExpiry(expiry_ms);
      });
  if (!recovery) return tl::unexpected<Error>(std::move(recovery.error()));
  recovery_ = *recovery;
  std::erase_if(hot_, [](const Hot& hot) { return !hot.place; });
  std::reverse(hot_.begin(), hot_.end());  // taken from the back
  if (options_.write_through) {
    // One for which the queue has no room goes down when it is evicted.
    keyspace_.AttachLog(log_.get(), [this](BulkValue* value) {
      static_cast<void>(Demote(ValueRef::Share(value), true));
    });
  }
  return {};
}

void SsdTier::WarmUp(const std::function<bool()>& room) {
  if (hot_.empty()) return;
  {
    MutexLock lock(mu_);
    if (jobs_.size() >= kWarmUpAhead) return;
  }
  for (size_t i = 0; i < kWarmUpAhead && !hot_.empty(); ++i) {
    if (!room()) return hot_.clear();
    Load(hot_.back().hash, hot_.back().place, Why::kWarmUp, nullptr);
    hot_.pop_back();
  }
}

Status SsdTier::Save(int64_t most_ms, const Note& note) {
  const int64_t end = MonotonicMs() + most_ms;
  std::vector<Keyspace::InMemory> values;
  for (size_t i = 0; i < Keyspace::kStripes; ++i) {
    for (auto& value : keyspace_.BulkValuesOf(i, UnixMs())) values.push_back(std::move(value));
  }
  std::sort(values.begin(), values.end(),
            [](const auto& a, const auto& b) { return a.heat > b.heat; });
  size_t skipped = 0;
  int64_t noted = MonotonicMs();
  for (size_t i = 0; i < values.size(); ++i) {
    if (keyspace_.PlaceOf(*values[i].value)) continue;
    Taken taken;
    while ((taken = Demote(values[i].value.Share(), true)) == Taken::kFull && MonotonicMs() < end) {
      MutexLock lock(mu_);
      if (!down_.empty() || writing_) idle_.WaitFor(mu_, std::chrono::milliseconds(1));
    }
    if (taken != Taken::kYes) ++skipped;
    if (MonotonicMs() - noted > 1000 && note) {
      noted = MonotonicMs();
      note("saving to the SSD: " + std::to_string(i + 1) + " of " + std::to_string(values.size()) +
           " values");
    }
  }
  {
    MutexLock lock(mu_);
    while ((!down_.empty() || writing_) && MonotonicMs() < end) {
      idle_.WaitFor(mu_, std::chrono::milliseconds(10));
    }
  }
  std::vector<uint64_t> hot;
  for (const auto& value : values) {
    if (const SsdPlace place = keyspace_.PlaceOf(*value.value)) hot.push_back(place.id);
  }
  values.clear();
  if (!log_->Sync(std::max<int64_t>(end - MonotonicMs(), kLastWaitMs))) {
    return Fail(ErrorCode::kSystem, "the SSD's index cannot be written; its contents are lost");
  }
  for (size_t i = 0; i < Keyspace::kStripes; ++i) {
    for (const Keyspace::Small& small : keyspace_.SmallValuesOf(i, UnixMs())) {
      if (auto saved = store_->SaveSmall(small.key, small.expiry_ms, small.value); !saved) {
        return saved;
      }
    }
  }
  if (note && skipped > 0) {
    note(std::to_string(skipped) + " values did not reach the SSD in time and are gone");
  }
  return store_->MarkClean(hot);
}

}  // namespace moonpool::storage
