// CudaDevice: streams, events, and work put into streams.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "gpu/cuda_device.h"
#include "gpu/cuda_errors.h"

namespace moonpool::gpu {

namespace {

// Blocks of a kernel that moves host memory: enough to have the link's bandwidth times its latency
// (55 GB/s, 2 us) in flight several times over, and few, as the multiprocessors have other work.
constexpr int kHostBlocks = 32;

// Who waits for an event with a deadline looks at it all the time at first, as the driver does, and
// then at times that add no more than this share to the wait.
constexpr std::chrono::microseconds kSpin{500};
constexpr int kPauseShare = 32;
constexpr std::chrono::microseconds kLongestPause{1000};

cudaStream_t Native(StreamRef stream) {
  return static_cast<cudaStream_t>(stream.handle);
}

class CudaStream : public Stream {
 public:
  CudaStream(CudaPools* pools, cudaStream_t stream) : pools_(pools), stream_(stream) {}
  ~CudaStream() override { pools_->GiveBack(stream_); }
  StreamRef ref() const override { return {stream_}; }

 private:
  CudaPools* const pools_;
  const cudaStream_t stream_;
};

class CudaEvent : public Event {
 public:
  CudaEvent(CudaContext* context, CudaPools* pools, cudaEvent_t event)
      : context_(context), pools_(pools), event_(event) {}
  ~CudaEvent() override { pools_->GiveBack(event_); }

  Result<bool> Reached() const override {
    if (!recorded) return true;
    const ContextScope scope(context_);
    if (!scope.status()) return tl::unexpected(scope.status().error());
    const cudaError_t error = cudaEventQuery(event_);
    if (error == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    Status status = CudaStatus(error, "cudaEventQuery");
    if (!status) return tl::unexpected(std::move(status.error()));
    return true;
  }
  Status Wait() const override {
    if (!recorded) return {};
    const ContextScope scope(context_);
    if (!scope.status()) return scope.status();
    return CudaStatus(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }
  // The driver waits for ever or not at all, so this looks again and again.
  Result<bool> WaitUntil(std::chrono::steady_clock::time_point deadline) const override {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      const Result<bool> reached = Reached();
      if (!reached || *reached) return reached;
      const auto now = std::chrono::steady_clock::now();
      if (now >= deadline) return false;
      const auto waited = now - start;
      if (waited < kSpin) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(
            {waited / kPauseShare, kLongestPause, deadline - now}));
      }
    }
  }
  void* native() const override { return event_; }

  bool recorded = false;  // those of the pool carry an old mark

 private:
  CudaContext* const context_;
  CudaPools* const pools_;
  const cudaEvent_t event_;
};

// Runs `launch` with a table that is in the launch itself, or was sent to the device before it.
template <typename Fill, typename Launch>
Status WithTable(CudaTables* tables, size_t bytes, cudaStream_t stream, const Fill& fill,
                 const Launch& launch) {
  if (bytes <= kernels::kInlineBytes) {
    alignas(16) std::array<char, kernels::kInlineBytes> inlined;
    fill(inlined.data());
    return launch(kernels::Table{nullptr, bytes, inlined.data()});
  }
  const Result<CudaTables::Slot> slot = tables->Take(bytes);
  if (!slot) return tl::unexpected(slot.error());
  fill(slot->host.data);
  Status status = tables->Send(*slot, bytes, stream);
  if (status) status = launch(kernels::Table{slot->device.data, 0, nullptr});
  Status given_back = tables->GiveBack(*slot, stream);
  return status ? given_back : status;
}

}  // namespace

Result<std::unique_ptr<Stream>> CudaDevice::NewStream() {
  Result<cudaStream_t> stream = pools_.TakeStream();
  if (!stream) return tl::unexpected(std::move(stream.error()));
  return std::make_unique<CudaStream>(&pools_, *stream);
}

Result<std::unique_ptr<Event>> CudaDevice::NewEvent() {
  Result<cudaEvent_t> event = pools_.TakeEvent();
  if (!event) return tl::unexpected(std::move(event.error()));
  return std::make_unique<CudaEvent>(&context_, &pools_, *event);
}

Status CudaDevice::Accepts(StreamRef stream) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  cudaStreamCaptureStatus captured = cudaStreamCaptureStatusNone;
  Status status =
      CudaStatus(cudaStreamIsCapturing(Native(stream), &captured), "cudaStreamIsCapturing");
  if (!status || captured == cudaStreamCaptureStatusNone) return status;
  return FailCuda(cudaErrorStreamCaptureUnsupported, "copies on a stream of the caller's");
}

Status CudaDevice::Record(Event& event, StreamRef stream) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  Status status = CudaStatus(
      cudaEventRecord(static_cast<cudaEvent_t>(event.native()), Native(stream)), "cudaEventRecord");
  if (status) static_cast<CudaEvent&>(event).recorded = true;
  return status;
}

Status CudaDevice::WaitFor(StreamRef stream, const Event& event) {
  if (!static_cast<const CudaEvent&>(event).recorded) return {};
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  return CudaStatus(
      cudaStreamWaitEvent(Native(stream), static_cast<cudaEvent_t>(event.native()), 0),
      "cudaStreamWaitEvent");
}

Status CudaDevice::Drain(StreamRef stream) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  return CudaStatus(cudaStreamSynchronize(Native(stream)), "cudaStreamSynchronize");
}

Status CudaDevice::CopyOne(StreamRef stream, const Piece& piece) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  return CudaStatus(
      cudaMemcpyAsync(piece.to, piece.from, piece.bytes, cudaMemcpyDefault, Native(stream)),
      "cudaMemcpyAsync");
}

namespace {

void FillChecks(const Checks& checks, char* to) {
  auto* entry = reinterpret_cast<kernels::CheckEntry*>(to);
  for (const GenerationCheck& check : checks.checks) {
    *entry++ = {reinterpret_cast<uint64_t>(check.counter), check.generation};
  }
}

uint32_t* StatesOf(const Checks& checks) {
  return reinterpret_cast<uint32_t*>(checks.block->states() + checks.first);
}

}  // namespace

Status CudaDevice::CopyMany(StreamRef stream, std::span<const Piece> pieces, bool host,
                            const Checks& behind) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  // A launch counts its units in 32 bits.
  constexpr uint64_t kMostUnits = 1ull << 30;
  while (!pieces.empty()) {
    uint64_t units = 0;
    size_t count = 0;
    for (; count < pieces.size(); ++count) {
      const uint64_t more = (pieces[count].bytes + kernels::kUnitBytes - 1) / kernels::kUnitBytes;
      if (more > kMostUnits) {
        return Fail(ErrorCode::kInvalidArgument, "a piece of more than 4 TiB");
      }
      if (units + more > kMostUnits) break;
      units += more;
    }
    const std::span<const Piece> part = pieces.first(count);
    pieces = pieces.subspan(count);
    if (units == 0 && (!pieces.empty() || behind.checks.empty())) continue;
    const int blocks =
        host ? kHostBlocks
             : kernels::BlocksFor(units, kernels::kPieceRunBytes, info_.multiprocessors);
    kernels::Behind checks;
    size_t table_bytes = count * sizeof(kernels::PieceEntry);
    if (pieces.empty() && !behind.checks.empty()) {
      checks.count = static_cast<uint32_t>(behind.checks.size());
      checks.offset = static_cast<uint32_t>(table_bytes);
      checks.states = StatesOf(behind);
      checks.blocks_done = static_cast<const CudaChecks*>(behind.block)->blocks_done();
      table_bytes += behind.checks.size() * sizeof(kernels::CheckEntry);
    }
    const auto fill = [&](char* to) {
      auto* entry = reinterpret_cast<kernels::PieceEntry*>(to);
      uint32_t unit = 0;
      for (const Piece& piece : part) {
        entry->to = reinterpret_cast<uint64_t>(piece.to);
        entry->from = reinterpret_cast<uint64_t>(piece.from);
        entry->bytes = piece.bytes;
        entry->first_unit = unit;
        entry->vector = kernels::VectorFor(entry->to | entry->from);
        unit +=
            static_cast<uint32_t>((piece.bytes + kernels::kUnitBytes - 1) / kernels::kUnitBytes);
        ++entry;
      }
      if (checks.count != 0) FillChecks(behind, to + checks.offset);
    };
    Status status =
        WithTable(&tables_, table_bytes, Native(stream), fill, [&](const kernels::Table& table) {
          return CudaStatus(
              kernels::LaunchPieces(table, static_cast<uint32_t>(count),
                                    static_cast<uint32_t>(units), checks, blocks, Native(stream)),
              "launching a copy of pieces");
        });
    if (!status) return status;
  }
  return {};
}

namespace {

// Adds a side's arrays to the table of a page copy.
class SideBuilder {
 public:
  SideBuilder(const Pages& pages, uint32_t page_count, bool table_on_device)
      : pages_(pages), page_count_(page_count), on_device_(table_on_device) {
    side.base = reinterpret_cast<uint64_t>(pages.base);
    side.plane_stride = pages.plane_stride;
    side.page_stride = pages.page_stride;
    side.kind = static_cast<uint32_t>(pages.table.kind);
    side.has_planes = pages.planes.empty() ? 0 : 1;
    if (on_device_) side.entries = pages.table.entries;
  }

  size_t planes_bytes() const { return pages_.planes.size() * sizeof(uint64_t); }
  size_t entries_bytes() const {
    if (pages_.table.kind == PageTable::Kind::kNone || on_device_) return 0;
    const size_t entry = pages_.table.kind == PageTable::Kind::kIndex32 ? 4 : 8;
    return (page_count_ * entry + 7) / 8 * 8;
  }
  // Where the arrays go: from byte `at` of the table on.
  size_t Place(size_t at) {
    side.planes_offset = static_cast<uint32_t>(at);
    side.entries_offset = static_cast<uint32_t>(at + planes_bytes());
    return at + planes_bytes() + entries_bytes();
  }
  void Fill(char* table) const {
    if (!pages_.planes.empty()) {
      std::memcpy(table + side.planes_offset, pages_.planes.data(), planes_bytes());
    }
    if (entries_bytes() == 0) return;
    const size_t entry = pages_.table.kind == PageTable::Kind::kIndex32 ? 4 : 8;
    std::memcpy(table + side.entries_offset, pages_.table.entries, page_count_ * entry);
  }
  // What all addresses of the side are multiples of, as far as it can be seen here.
  uint64_t Alignment() const {
    uint64_t all = pages_.table.kind == PageTable::Kind::kPointers
                       ? pages_.plane_stride
                       : side.base | pages_.plane_stride | pages_.page_stride;
    if (!pages_.planes.empty()) all = pages_.page_stride;
    for (const char* plane : pages_.planes) all |= reinterpret_cast<uint64_t>(plane);
    if (pages_.table.kind == PageTable::Kind::kPointers && !on_device_) {
      const auto* entries = static_cast<const uint64_t*>(pages_.table.entries);
      for (uint32_t i = 0; i < page_count_; ++i) all |= entries[i];
    }
    return all;
  }

  kernels::PageSide side;

 private:
  const Pages& pages_;
  const uint32_t page_count_;
  const bool on_device_;
};

static_assert(static_cast<uint32_t>(PageTable::Kind::kNone) == kernels::PageSide::kOrdinal &&
              static_cast<uint32_t>(PageTable::Kind::kIndex32) == kernels::PageSide::kIndex32 &&
              static_cast<uint32_t>(PageTable::Kind::kIndex64) == kernels::PageSide::kIndex64 &&
              static_cast<uint32_t>(PageTable::Kind::kPointers) == kernels::PageSide::kPointer);

}  // namespace

Status CudaDevice::CopyPages(StreamRef stream, const PageCopy& copy, bool host) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  const auto on_device = [&](const Pages& pages) -> Result<bool> {
    if (pages.table.kind == PageTable::Kind::kNone) return false;
    const Result<gpu::Place> place = WhereIs(pages.table.entries);
    if (!place) return tl::unexpected(place.error());
    return place->kind == gpu::Place::Kind::kDevice;
  };
  const Result<bool> from_on_device = on_device(copy.from);
  if (!from_on_device) return tl::unexpected(from_on_device.error());
  const Result<bool> to_on_device = on_device(copy.to);
  if (!to_on_device) return tl::unexpected(to_on_device.error());
  SideBuilder from(copy.from, copy.page_count, *from_on_device);
  SideBuilder to(copy.to, copy.page_count, *to_on_device);
  const size_t table_bytes = to.Place(from.Place(0));
  kernels::PageJob job;
  job.from = from.side;
  job.to = to.side;
  job.pages = copy.page_count;
  job.planes = copy.plane_count;
  job.piece_bytes = static_cast<uint32_t>(copy.piece_bytes);
  job.vector = kernels::VectorFor(from.Alignment() | to.Alignment());
  const uint64_t units = (copy.piece_bytes + kernels::kUnitBytes - 1) / kernels::kUnitBytes *
                         copy.page_count * copy.plane_count;
  const int blocks =
      host ? kHostBlocks : kernels::BlocksFor(units, kernels::kPageRunBytes, info_.multiprocessors);
  return WithTable(
      &tables_, table_bytes, Native(stream),
      [&](char* table) {
        from.Fill(table);
        to.Fill(table);
      },
      [&](const kernels::Table& table) {
        return CudaStatus(kernels::LaunchPages(job, table, blocks, Native(stream)),
                          "launching a copy of pages");
      });
}

Status CudaDevice::CheckGenerations(StreamRef stream, const Checks& checks) {
  const ContextScope scope(&context_);
  if (!scope.status()) return scope.status();
  return WithTable(
      &tables_, checks.checks.size() * sizeof(kernels::CheckEntry), Native(stream),
      [&](char* to) { FillChecks(checks, to); },
      [&](const kernels::Table& table) {
        return CudaStatus(kernels::LaunchChecks(table, static_cast<uint32_t>(checks.checks.size()),
                                                StatesOf(checks), Native(stream)),
                          "launching a check of generations");
      });
}

}  // namespace moonpool::gpu
