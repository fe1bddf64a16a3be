#include "gpu/host_device.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "gpu/host_memory.h"
#include "gpu/host_objects.h"
#include "gpu/host_streams.h"
#include "protocol/mutex.h"

namespace moonpool::gpu {

namespace {

constexpr uint64_t kStagedBytes = 4096;

// Where calls wait while a test wants them to.
class Gate {
 public:
  void Pass() EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ++held_;
    while (hold_) changed_.Wait(mu_);
    --held_;
  }
  void Hold(bool hold) EXCLUDES(mu_) {
    {
      MutexLock lock(mu_);
      hold_ = hold;
    }
    changed_.NotifyAll();
  }
  int held() const EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return held_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool hold_ GUARDED_BY(mu_) = false;
  int held_ GUARDED_BY(mu_) = 0;
};

class HostDouble : public HostDevice {
 public:
  HostDouble(WorldPtr world, int index) : world_(std::move(world)), index_(index) {
    info_.uuid.bytes[0] = 0xd0;
    info_.uuid.bytes[15] = static_cast<uint8_t>(index);
    info_.name = "host double " + std::to_string(index);
    info_.multiprocessors = 1;
    info_.total_bytes = world_->options.memory_bytes;
    info_.posix_handles = world_->options.handles == HandleKind::kPosixFd;
    info_.ipc_handles = true;
    info_.pins_read_only = world_->options.pins_read_only;
    info_.dmabuf = world_->options.dmabuf;
    default_stream_ = world_->streams.NewStream(index);
  }

  const DeviceInfo& info() const override { return info_; }
  Result<MemoryUse> Memory() const override {
    if (world_->streams.lost(index_)) return HostEvent::Lost();
    return MemoryUse{info_.total_bytes - world_->allocated[index_], info_.total_bytes};
  }
  Link LinkTo(const Device& other) const override {
    if (&other == this) return Link::kSame;
    return LinkTo(static_cast<const HostDouble&>(other).index_);
  }

  Result<std::unique_ptr<DeviceRegion>> Allocate(uint64_t bytes, HandleKind kind) override {
    allocations_.Pass();
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    if (bytes == 0) return Fail(ErrorCode::kInvalidArgument, "a region of no bytes");
    const uint64_t granularity = world_->options.granularity;
    bytes = (bytes + granularity - 1) / granularity * granularity;
    if (world_->allocated[index_] + bytes > info_.total_bytes) {
      return Fail(ErrorCode::kOutOfMemory, "the device has no memory left; free some");
    }
    Result<FileMapping> mapping = FileMapping::Create(bytes, world_->options.hidden);
    if (!mapping) return tl::unexpected(mapping.error());
    return std::make_unique<HostRegion>(world_, std::move(*mapping), index_, info_.uuid, kind,
                                        false);
  }

  Result<std::unique_ptr<DeviceRegion>> Import(const RegionHandle& handle, int fd) override {
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    int owner = -1;
    for (size_t i = 0; i < world_->devices.size(); ++i) {
      if (world_->devices[i]->info().uuid == handle.device) owner = static_cast<int>(i);
    }
    if (owner < 0) return Fail(ErrorCode::kUnavailable, "no device has that UUID here");
    Result<FileMapping> mapping = FileMapping::Map(fd, handle.bytes, world_->options.hidden);
    if (!mapping) return tl::unexpected(mapping.error());
    return std::make_unique<HostRegion>(world_, std::move(*mapping), owner, handle.device,
                                        handle.kind, true);
  }

  Result<std::unique_ptr<PinnedRegion>> Pin(void* data, uint64_t bytes, Access access) override {
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    if (data == nullptr || bytes == 0) return Fail(ErrorCode::kInvalidArgument, "nothing to pin");
    if (access == Access::kReadOnly && !info_.pins_read_only) {
      return Fail(ErrorCode::kUnavailable, "the driver pins no read-only memory; map it writable");
    }
    const Result<uintptr_t> range = world_->memory.Pin(data, bytes);
    if (!range) return tl::unexpected(range.error());
    return std::make_unique<HostPinned>(world_, static_cast<char*>(data), bytes, *range);
  }

  Result<std::unique_ptr<HostBlock>> NewHostBlock(uint64_t bytes) override {
    return NewBlock<HostBlock>(bytes, HostMemory::kPinned);
  }
  Result<std::unique_ptr<DeviceBlock>> NewDeviceBlock(uint64_t bytes) override {
    return NewBlock<DeviceBlock>(bytes, index_);
  }

  Result<std::unique_ptr<CheckBlock>> NewCheckBlock(size_t states) override {
    auto block = NewHostBlock(states * sizeof(CheckState));
    if (!block) return tl::unexpected(std::move(block.error()));
    return std::make_unique<HostChecks>(std::move(*block), states);
  }

  Result<Place> WhereIs(const void* address) override {
    const HostMemory::Range range = world_->memory.Find(address, 1);
    Place place;
    if (range.end == 0) return place;
    place.begin = range.begin;
    place.end = range.end;
    if (range.device == HostMemory::kPinned) {
      place.kind = Place::Kind::kPinned;
      place.device_offset = world_->options.pinned_offset;
    } else {
      place.kind = Place::Kind::kDevice;
      place.device = world_->devices[static_cast<size_t>(range.device)];
    }
    return place;
  }

  Result<Dmabuf> ExportDmabuf(const void* data, uint64_t bytes) override {
    dmabufs_.Pass();
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    const HostMemory::Range range = world_->memory.Find(data, bytes);
    if (!info_.dmabuf || range.end == 0 || range.device != index_ || range.fd < 0) {
      return Fail(ErrorCode::kUnavailable, "that memory has no dma-buf");
    }
    ++counts_dmabufs_;
    Dmabuf exported;
    exported.fd.Reset(dup(range.fd));
    if (!exported.fd) return FailErrno("dup");
    exported.offset = reinterpret_cast<uintptr_t>(data) - range.begin;
    return exported;
  }

  Status FlushRemoteWrites() override {
    if (Status status = Call(); !status) return status;
    if (!info_.dmabuf) return Fail(ErrorCode::kUnavailable, "nothing can be flushed");
    ++counts_flushes_;
    MutexLock lock(unflushed_mu_);
    for (const auto& write : unflushed_) write();
    unflushed_.clear();
    return {};
  }
  void HoldUntilFlush(std::function<void()> write) override {
    MutexLock lock(unflushed_mu_);
    unflushed_.push_back(std::move(write));
  }

  Result<std::unique_ptr<Stream>> NewStream() override {
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    return std::make_unique<HostStream>(world_, index_);
  }
  Result<std::unique_ptr<Event>> NewEvent() override {
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    return std::make_unique<HostEvent>(world_);
  }
  Status Accepts(StreamRef stream) override {
    MutexLock lock(captured_mu_);
    if (!captured_.contains(stream.handle)) return {};
    return Fail(ErrorCode::kInvalidArgument, "the stream is being captured into a graph");
  }
  void SetCaptured(StreamRef stream, bool captured) override {
    MutexLock lock(captured_mu_);
    if (captured) {
      captured_.insert(stream.handle);
    } else {
      captured_.erase(stream.handle);
    }
  }
  Status Record(Event& event, StreamRef stream) override {
    if (Status status = Call(); !status) return status;
    auto& host_event = static_cast<HostEvent&>(event);
    host_event.point = std::make_shared<HostStreams::Point>();
    world_->streams.PutMark(Queue(stream), host_event.point);
    return {};
  }
  Status WaitFor(StreamRef stream, const Event& event) override {
    if (Status status = Call(); !status) return status;
    world_->streams.PutWait(Queue(stream), static_cast<const HostEvent&>(event).point);
    return {};
  }
  Status Drain(StreamRef stream) override {
    auto point = std::make_shared<HostStreams::Point>();
    world_->streams.PutMark(Queue(stream), point);
    if (!world_->streams.WaitUntilReached(*point)) return HostEvent::Lost();
    return {};
  }

  Status CopyOne(StreamRef stream, const Piece& piece) override {
    if (Status status = Call(); !status) return status;
    ++counts_one_;
    return Put(stream, [this, piece] { return DoCopyOne(piece); });
  }

  Status CopyMany(StreamRef stream, std::span<const Piece> pieces, bool host,
                  const Checks& behind) override {
    if (Status status = Call(); !status) return status;
    ++counts_many_;
    if (!behind.checks.empty()) ++counts_checks_behind_;
    counts_pieces_ += pieces.size();
    if (host) ++counts_host_;
    return Put(stream, [this, list = std::vector<Piece>(pieces.begin(), pieces.end()),
                        checks = StepOf(behind)] {
      for (const Piece& piece : list) {
        if (Status status = DoKernelCopy(piece); !status) return status;
      }
      return checks();
    });
  }

  Status CopyPages(StreamRef stream, const PageCopy& copy, bool host) override {
    if (Status status = Call(); !status) return status;
    ++counts_pages_;
    if (host) ++counts_host_;
    // The addresses of pieces are worked out in the stream, as tables in device memory are read
    // there; what may change after the call is copied.
    auto from_table = CopiedTable(copy.from, copy.page_count);
    auto to_table = CopiedTable(copy.to, copy.page_count);
    std::vector<char*> from_planes(copy.from.planes.begin(), copy.from.planes.end());
    std::vector<char*> to_planes(copy.to.planes.begin(), copy.to.planes.end());
    return Put(stream, [this, copy, from_table = std::move(from_table),
                        to_table = std::move(to_table), from_planes = std::move(from_planes),
                        to_planes = std::move(to_planes)]() mutable {
      PageCopy mine = copy;
      mine.from.planes = from_planes;
      mine.to.planes = to_planes;
      if (Status status = ReadTable(from_table, &mine.from); !status) return status;
      if (Status status = ReadTable(to_table, &mine.to); !status) return status;
      for (uint32_t page = 0; page < mine.page_count; ++page) {
        for (uint32_t plane = 0; plane < mine.plane_count; ++plane) {
          Status status = DoKernelCopy({PieceAddress(mine.to, page, plane),
                                        PieceAddress(mine.from, page, plane), mine.piece_bytes});
          if (!status) return status;
        }
      }
      return Status();
    });
  }

  Status CheckGenerations(StreamRef stream, const Checks& checks) override {
    if (Status status = Call(); !status) return status;
    ++counts_checks_;
    return Put(stream, StepOf(checks));
  }

  Counts counts() const override {
    return {counts_one_,     counts_many_,   counts_pieces_,        counts_pages_,
            counts_host_,    counts_checks_, counts_checks_behind_, counts_staged_,
            counts_dmabufs_, counts_flushes_};
  }
  void Pause(uint64_t after) override { world_->streams.Pause(index_, after); }
  void Resume() override { world_->streams.Resume(index_); }
  bool still() const override { return world_->streams.still(index_); }
  void LoseAfter(uint64_t steps) override { world_->streams.LoseAfter(index_, steps); }
  void HoldAllocations(bool hold) override { allocations_.Hold(hold); }
  int allocations_held() const override { return allocations_.held(); }
  void HoldDmabufs(bool hold) override { dmabufs_.Hold(hold); }
  int dmabufs_held() const override { return dmabufs_.held(); }
  void FailCallAfter(uint64_t calls) override { fail_call_ = static_cast<int64_t>(calls); }

 private:
  HostStreams::Step StepOf(const Checks& checks) const {
    if (checks.checks.empty()) return [] { return Status(); };
    return [this, states = checks.block->states() + checks.first,
            list = std::vector<GenerationCheck>(checks.checks.begin(), checks.checks.end())] {
      for (size_t i = 0; i < list.size(); ++i) {
        bool unchanged = true;
        if (list[i].counter != nullptr) {
          const Result<char*> counter =
              world_->memory.FromDevice(list[i].counter, sizeof(*list[i].counter));
          if (!counter) return Status(tl::unexpected(counter.error()));
          unchanged = protocol::GenerationUnchanged(
              *reinterpret_cast<const protocol::GenerationCounter*>(*counter), list[i].generation);
        }
        __atomic_store_n(
            reinterpret_cast<uint32_t*>(states + i),
            static_cast<uint32_t>(unchanged ? CheckState::kUnchanged : CheckState::kChanged),
            __ATOMIC_RELEASE);
      }
      return Status();
    };
  }

  void* Queue(StreamRef stream) const {
    return stream.handle != nullptr ? stream.handle : default_stream_;
  }
  Status Put(StreamRef stream, HostStreams::Step step) {
    world_->streams.Put(Queue(stream), std::move(step));
    return {};
  }

  // Every call goes through here.
  Status Call() {
    if (world_->streams.lost(index_)) return HostEvent::Lost();
    int64_t left = fail_call_.load();
    while (left >= 0 && !fail_call_.compare_exchange_weak(left, left - 1)) {
    }
    if (left == 0) return Fail(ErrorCode::kSystem, "the test wants this call to fail");
    return {};
  }

  template <typename Interface>
  Result<std::unique_ptr<Interface>> NewBlock(uint64_t bytes, int device) {
    if (Status status = Call(); !status) return tl::unexpected(status.error());
    if (bytes >= kStagedBytes) ++counts_staged_;
    const bool hidden = device != HostMemory::kPinned && world_->options.hidden;
    Result<FileMapping> mapping = FileMapping::Create(std::max<uint64_t>(bytes, 1), hidden);
    if (!mapping) return tl::unexpected(mapping.error());
    return std::make_unique<HostOwned<Interface>>(world_, std::move(*mapping), device);
  }

  // Empty for tables in device memory, and without one.
  std::vector<int64_t> CopiedTable(const Pages& pages, uint32_t page_count) const {
    if (pages.table.kind == PageTable::Kind::kNone) return {};
    const HostMemory::Range range = world_->memory.Find(pages.table.entries, 1);
    if (range.end != 0 && range.device != HostMemory::kPinned) return {};
    std::vector<int64_t> copied(page_count);
    const size_t entry = pages.table.kind == PageTable::Kind::kIndex32 ? 4 : 8;
    std::memcpy(copied.data(), pages.table.entries, page_count * entry);
    return copied;
  }

  Link LinkTo(int other) const {
    const int island = world_->options.island;
    return island > 0 && other / island == index_ / island ? Link::kNvlink : world_->options.link;
  }

  // The table where the double reads it: `copied`, or in device memory.
  Status ReadTable(const std::vector<int64_t>& copied, Pages* pages) const {
    if (!copied.empty()) pages->table.entries = copied.data();
    if (!copied.empty() || pages->table.kind == PageTable::Kind::kNone) return {};
    const Result<char*> there = world_->memory.FromDevice(pages->table.entries, 1);
    if (!there) return tl::unexpected(there.error());
    pages->table.entries = *there;
    return {};
  }

  // Memory of another device without a link cannot be reached.
  bool Reaches(const HostMemory::Range& range) const {
    return range.end == 0 || range.device == HostMemory::kPinned || range.device == index_ ||
           LinkTo(range.device) != Link::kNone;
  }

  Status DoCopyOne(const Piece& piece) const {
    for (const void* address : {static_cast<const void*>(piece.to), piece.from}) {
      if (!Reaches(world_->memory.Find(address, 1))) {
        return Fail(ErrorCode::kSystem, "a copy without a link");
      }
    }
    // The copy engine takes the address of either side.
    const Result<char*> from = world_->memory.FromDevice(piece.from, piece.bytes);
    const Result<char*> to = world_->memory.FromDevice(piece.to, piece.bytes);
    protocol::RacyCopy(to ? *to : static_cast<char*>(piece.to), from ? *from : piece.from,
                       piece.bytes);
    return {};
  }

  Status DoKernelCopy(const Piece& piece) const {
    const Result<char*> from = world_->memory.FromDevice(piece.from, piece.bytes);
    if (!from) return tl::unexpected(from.error());
    const Result<char*> to = world_->memory.FromDevice(piece.to, piece.bytes);
    if (!to) return tl::unexpected(to.error());
    if (!Reaches(world_->memory.Find(piece.from, 1)) ||
        !Reaches(world_->memory.Find(piece.to, 1))) {
      return Fail(ErrorCode::kSystem, "a kernel without a link");
    }
    protocol::RacyCopy(*to, *from, piece.bytes);
    return {};
  }

  const WorldPtr world_;
  const int index_;
  DeviceInfo info_;
  void* default_stream_ = nullptr;
  Gate allocations_;
  Gate dmabufs_;
  std::atomic<int64_t> fail_call_{-1};
  std::atomic<uint64_t> counts_one_{0}, counts_many_{0}, counts_pieces_{0}, counts_pages_{0},
      counts_host_{0}, counts_checks_{0}, counts_checks_behind_{0}, counts_staged_{0},
      counts_dmabufs_{0}, counts_flushes_{0};
  Mutex unflushed_mu_;
  std::vector<std::function<void()>> unflushed_ GUARDED_BY(unflushed_mu_);
  Mutex captured_mu_;
  std::set<void*> captured_ GUARDED_BY(captured_mu_);  // streams
};

}  // namespace

std::vector<std::unique_ptr<HostDevice>> MakeHostDevices(const HostDeviceOptions& options) {
  const auto world = std::make_shared<HostWorld>(options);
  MOONPOOL_CHECK(static_cast<size_t>(options.devices) <= std::size(world->allocated));
  std::vector<std::unique_ptr<HostDevice>> devices;
  for (int i = 0; i < options.devices; ++i) {
    devices.push_back(std::make_unique<HostDouble>(world, i));
    world->devices.push_back(devices.back().get());
  }
  return devices;
}

}  // namespace moonpool::gpu
