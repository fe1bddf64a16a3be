// ClientImpl: batches on a stream of the caller's.
#include <algorithm>
#include <utility>

#include "client/client_impl.h"
#include "client/errors.h"
#include "client/gpu_parked.h"
#include "client/gpu_transfer.h"

namespace moonpool::client {

namespace {

std::vector<size_t> AllOf(const GpuTransferState& transfer) {
  std::vector<size_t> all(transfer.keys.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = i;
  return all;
}

}  // namespace

void ClientImpl::StartGet(GpuTransferState& transfer) {
  MutexLock lock(transfer.mu);
  transfer.work.ParkIn(parked_);
  std::vector<KeyResult> results(transfer.keys.size());
  GetBatch batch{transfer.keys, transfer.targets, results, AllOf(transfer), transfer.start,
                 &transfer.work};
  FindDevices(batch);
  GpuWork nothing;
  if (transfer.work.empty()) {
    batch.gpu = &nothing;
    PagesByProcessor(batch, &transfer);
  }
  Get(batch);
  Submit(transfer, &results);
}

void ClientImpl::StartPut(const std::shared_ptr<GpuTransferState>& transfer) {
  GpuTransferState& t = *transfer;
  {
    MutexLock lock(t.mu);
    t.work.ParkIn(parked_);
    std::vector<KeyResult> results(t.keys.size());
    PutBatch batch{t.keys, t.sources, results, AllOf(t), t.start, &t.work};
    FindDevices(batch);
    t.options = NearestFirst(t.work, std::move(t.options));
    if (t.work.empty()) {
      GpuWork nothing;
      batch.gpu = &nothing;
      PagesByProcessor(batch, &t);
      Put(batch, t.options);
      Submit(t, &results);
      return;
    }
    const Status status = WithChannel([&](Channel& channel) {
      return !channel.shm() || options_.checksum || AllocateAndPush(channel, batch, t.options);
    });
    // The rest goes out when it is in host memory.
    for (const size_t index : batch.pending) {
      if (!status.ok()) {
        batch.Error(index, status);
        continue;
      }
      GpuMove move;
      move.index = index;
      move.bytes = t.sources[index].bytes;
      const Result<char*> memory = t.work.Stage(t.work.main(), move.bytes);
      if (!memory) {
        batch.Error(index, FromDeviceError(memory.error()));
        continue;
      }
      move.pool = *memory;
      MoveFrom(t.sources[index], std::move(move), t.work);
    }
    if (Submit(t, &results)) return;
  }
  finisher().Add(transfer);
}

bool ClientImpl::Submit(GpuTransferState& transfer, std::vector<KeyResult>* results) {
  transfer.mu.AssertHeld();
  GpuWork& work = transfer.work;
  work.Submit(Deadline());
  transfer.device = work.main();
  for (size_t layer = 0; layer < work.layers(); ++layer) {
    const gpu::Event* const event = work.LayerEvent(layer);
    if (event != nullptr) transfer.events.push_back(event);
  }
  const bool finished = work.moves().empty();
  if (finished) work.Settle();
  MutexLock look(transfer.look_mu);
  transfer.results = std::move(*results);
  for (const GpuMove& move : work.moves()) transfer.in_flight[move.index] = true;
  transfer.finished = finished;
  return finished;
}

bool ClientImpl::TryFinish(GpuTransferState& transfer) {
  if (!transfer.mu.TryLock()) return false;  // somebody waits for it, or finishes it
  const bool done = transfer.work.Done() && FinishLocked(transfer, Clock::now());
  transfer.mu.Unlock();
  return done;
}

bool ClientImpl::FinishUntil(GpuTransferState& transfer, Clock::time_point deadline) {
  MutexLock lock(transfer.mu);
  return FinishLocked(transfer, deadline);
}

bool ClientImpl::FinishLocked(GpuTransferState& transfer, Clock::time_point deadline) {
  transfer.mu.AssertHeld();
  std::vector<KeyResult> results;
  {
    MutexLock look(transfer.look_mu);
    if (transfer.finished) return true;
    results = transfer.results;
  }
  if (!transfer.work.WaitUntil(deadline)) return false;
  if (transfer.kind == GpuTransferState::Kind::kPut) {
    FinishPut(transfer, &results);
  } else {
    FinishGet(transfer, &results);
  }
  transfer.work.Settle();
  Finished(transfer, &results);
  return true;
}

void ClientImpl::GiveUp(GpuTransferState& transfer) {
  MutexLock lock(transfer.mu);
  transfer.events.clear();
  transfer.work.Clear();
}

// In the place of the old ones: the caller may look at those.
void ClientImpl::Finished(GpuTransferState& transfer, std::vector<KeyResult>* results) {
  MutexLock look(transfer.look_mu);
  std::move(results->begin(), results->end(), transfer.results.begin());
  std::fill(transfer.in_flight.begin(), transfer.in_flight.end(), false);
  transfer.finished = true;
}

void ClientImpl::FinishGet(GpuTransferState& transfer, std::vector<KeyResult>* results) {
  transfer.mu.AssertHeld();
  GetBatch batch{transfer.keys, transfer.targets, *results, {}, transfer.start, &transfer.work};
  batch.now = Clock::now();
  for (GpuMove& move : transfer.work.moves()) FinishMove(move, batch);
  // The caller may have used these bytes already.
  for (const size_t index : batch.pending) {
    batch.Done(index, Code::kChanged, Transport::kNone, 0,
               "the value changed while it was copied; the bytes are worth nothing");
  }
}

void ClientImpl::FinishPut(GpuTransferState& transfer, std::vector<KeyResult>* results) {
  transfer.mu.AssertHeld();
  GpuWork nothing;
  std::vector<Source> staged = transfer.sources;
  std::vector<ConstBuffer> buffers(staged.size());
  PutBatch batch{transfer.keys, staged, *results, {}, transfer.start, &nothing};
  std::vector<GpuMove*> aborted;
  std::vector<Allocation> copied;
  std::shared_ptr<Channel> channel;
  bool left = false;
  for (GpuMove& move : transfer.work.moves()) {
    const bool in_pool = move.mapping != nullptr;
    if (in_pool) channel = move.channel;
    if (move.outcome != GpuMove::Outcome::kDone) {
      batch.Error(move.index, FromDeviceError(move.error));
      if (!in_pool) continue;
      // What the device may still write to must not be given to others.
      if (move.outcome == GpuMove::Outcome::kLeft) {
        left = true;
      } else {
        aborted.push_back(&move);
      }
      continue;
    }
    counters_.gpu_values.fetch_add(1, std::memory_order_relaxed);
    if (in_pool) {
      copied.push_back({move.index, move.token, 0, 0, move.mapping, 0});
      continue;
    }
    counters_.gpu_staged_values.fetch_add(1, std::memory_order_relaxed);
    buffers[move.index] = {move.pool, move.bytes};
    staged[move.index] = {std::span(&buffers[move.index], 1), move.bytes};
    batch.pending.push_back(move.index);
  }
  if (channel != nullptr) Commit(channel, aborted, copied, batch);
  if (left) {
    Status status;
    if (const Borrowed session = BorrowThat(channel, &status)) session->Park();
  }
  Put(batch, transfer.options);
}

// On the session that was given the extents.
void ClientImpl::Commit(const std::shared_ptr<Channel>& session, std::span<GpuMove* const> aborted,
                        std::span<const Allocation> copied, PutBatch& batch) {
  Status status;
  std::string what = "the value was not committed";
  size_t done = 0;
  {
    const Borrowed channel = BorrowThat(session, &status);
    if (channel) {
      RespStream& stream = channel->stream();
      if (channel->has_releases()) channel->BeginReleases();
      for (const GpuMove* move : aborted) Abort(*channel, batch.keys[move->index], move->token);
      const size_t most = channel->limits().max_batch_keys;
      bool usable = true;
      while (usable && done < copied.size()) {
        const auto some = copied.subspan(done, std::min(most, copied.size() - done));
        WordsOfCommit(stream, batch, some);
        usable = stream.Flush() && ReadCommits(stream, batch, some);
        if (usable) done += some.size();
      }
      if (usable && copied.empty()) usable = stream.Flush();
      if (!usable) {
        status = stream.failure();
        what = "it is not known whether the value was committed";
      }
    }
  }
  for (; done < copied.size(); ++done) {
    batch.Error(copied[done].index,
                {status.code, what + ", put it again: " + status.message});
  }
}

bool ClientImpl::Retry(GpuTransferState& transfer) {
  MutexLock lock(transfer.mu);
  if (!FinishLocked(transfer, Deadline())) return false;
  std::vector<KeyResult> results;
  {
    MutexLock look(transfer.look_mu);
    results = transfer.results;
  }
  GpuWork work(parked_);
  GetBatch batch{transfer.keys, transfer.targets, results, {}, Clock::now(), &work};
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].code == Code::kChanged) batch.pending.push_back(i);
  }
  FindDevices(batch);
  Get(batch);
  Finished(transfer, &results);
  return true;
}

// Pages in host memory are pieces.
template <typename Item>
void ClientImpl::PagesByProcessor(Batch<Item>& batch, GpuTransferState* transfer) {
  if (transfer->pages.empty()) return;
  const bool get = transfer->kind == GpuTransferState::Kind::kGet;
  transfer->into.resize(transfer->keys.size());
  transfer->from.resize(transfer->keys.size());
  std::erase_if(batch.pending, [&](size_t index) {
    gpu::PageCopy copy = transfer->pages[index];
    gpu::Pages& caller = get ? copy.to : copy.from;
    (get ? copy.from : copy.to) = caller;
    if (const auto valid = gpu::Validate(copy, true, true); !valid) {
      batch.Error(index, FromError(valid.error()));
      return true;
    }
    for (uint32_t page = 0; page < copy.page_count; ++page) {
      for (uint32_t plane = 0; plane < copy.plane_count; ++plane) {
        char* const piece = gpu::PieceAddress(caller, page, plane);
        if (get) {
          transfer->into[index].push_back({piece, copy.piece_bytes});
        } else {
          transfer->from[index].push_back({piece, copy.piece_bytes});
        }
      }
    }
    if (get) {
      transfer->targets[index].pieces = transfer->into[index];
      transfer->targets[index].whole = true;
      transfer->targets[index].pages = nullptr;
    } else {
      transfer->sources[index].pieces = transfer->from[index];
      transfer->sources[index].pages = nullptr;
    }
    return false;
  });
}
template void ClientImpl::PagesByProcessor(Batch<Target>& batch, GpuTransferState* transfer);
template void ClientImpl::PagesByProcessor(Batch<Source>& batch, GpuTransferState* transfer);

GpuFinisher& ClientImpl::finisher() {
  MutexLock lock(async_mu_);
  if (finisher_ == nullptr) {
    finisher_ = std::make_unique<GpuFinisher>(
        [this](GpuTransferState& transfer) { return TryFinish(transfer); },
        [this](GpuTransferState& transfer) { GiveUp(transfer); });
  }
  return *finisher_;
}

}  // namespace moonpool::client
