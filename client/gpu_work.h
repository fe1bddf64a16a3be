// What of one batch goes through devices: bytes into and out of device memory.
//
//   GpuWork work;
//   work.Use(index, device);                   // each key with device memory
//   work.Add(move, pieces);                    // a value that is to be copied
//   char* memory = *work.Stage(device, bytes); // or: pinned memory for one that comes another way
//   work.Submit(deadline);
//   work.WaitUntil(deadline);                  // moves() then say what became of each
//   work.Clear();                              // for the next part of the batch
//
// Without a stream every device works on a stream of the library's; with one, which belongs to the
// device of the first key with device memory, everything goes through that.
// Threads: one at a time.  What a device has not finished when it is cleared (or destroyed) is
// parked with all that it touches, but for the caller's buffers.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/channel.h"
#include "client/gpu_parked.h"
#include "client/moonpool/client.h"
#include "client/node_memory.h"
#include "gpu/copy_batch.h"
#include "gpu/device.h"
#include "gpu/pages.h"

namespace moonpool::client {

// One value on its way, between memory of the pool's side (a mapping, or staged) and the caller's.
struct GpuMove {
  size_t index = 0;                // of its key in the batch
  gpu::Device* device = nullptr;   // that copies it when no memory of the caller's is a device's
  Transport transport = Transport::kNone;
  char* pool = nullptr;
  uint64_t bytes = 0;
  // What is compared behind the copy; null: nothing.
  const protocol::GenerationCounter* counter = nullptr;
  uint64_t generation = 0;
  std::shared_ptr<Mapping> mapping = {};  // what `pool` is in; null: staged
  std::shared_ptr<NodeMemory> memory = {};  // what `counter` is in
  // A string: the processor copies there from `staged` when the device has copied to that.
  std::string* text = nullptr;
  const char* staged = nullptr;
  // What the server promised for it, and whom to tell when it is done.
  std::shared_ptr<Channel> channel = {};
  uint64_t lease = 0;
  int64_t token = 0;
  uint32_t crc = 0;

  // kLeft: the time was over; the device may still copy it.
  enum class Outcome : uint8_t { kPending, kDone, kChanged, kFailed, kLeft };
  Outcome outcome = Outcome::kPending;
  Error error = {};  // of kFailed and kLeft
};

// A piece of a value, and the layer it belongs to.
struct LayeredPiece {
  gpu::Piece piece;
  uint32_t layer = 0;
};

class GpuWork {
 public:
  explicit GpuWork(std::shared_ptr<GpuParked> parked = nullptr,
                   std::optional<gpu::StreamRef> stream = std::nullopt, uint32_t layers = 1)
      : parked_(std::move(parked)), stream_(stream), layers_(layers) {}
  ~GpuWork() { Clear(); }
  GpuWork(const GpuWork&) = delete;
  GpuWork& operator=(const GpuWork&) = delete;

  // REQUIRES: before Submit(), unless the constructor was told.
  void ParkIn(std::shared_ptr<GpuParked> parked) { parked_ = std::move(parked); }
  // The key's device memory is on `device`.
  void Use(size_t index, gpu::Device* device);
  // Whether the key's bytes go through here.  With a stream all do, once one does.
  bool Takes(size_t index) const { return DeviceFor(index) != nullptr; }
  gpu::Device* DeviceFor(size_t index) const;
  bool empty() const { return main_ == nullptr; }
  // The results are looked at later, by somebody else.
  bool deferred() const { return stream_.has_value(); }

  // Pinned memory that every device reaches, until Clear().
  Result<char*> Stage(gpu::Device* device, uint64_t bytes);
  // What the other has staged stays as long as this needs it.
  void ShareStaged(const GpuWork& other);
  // So much of it is in use that it is time to finish what is there; a larger value is alone in it.
  bool full() const { return !deferred() && staged_bytes_ >= kStagedBytes; }
  // REQUIRES: Takes(move.index), or `move.device` is set.
  void Add(GpuMove move, std::span<const LayeredPiece> pieces);
  // The same for pages: `pages` is the caller's side, the value's bytes lie page after page and plane
  // after plane.  The arrays it names must stay until Submit().
  enum class Direction : uint8_t { kToCaller, kFromCaller };
  void AddPages(GpuMove move, Direction direction, const gpu::PageCopy& pages);

  // Puts what was added since Clear() into streams, the first time; returns at once, or, when the
  // driver refuses a part, waits until the rest of it is done or the time is over.
  void Submit(Clock::time_point deadline);
  // Whether everything has been done.
  bool Done() const;
  // Until every outcome is known, or the time is over: false, some are kLeft, and it may be called
  // again.
  bool WaitUntil(Clock::time_point deadline);
  // Without a stream: a device that was waited for in vain is given nothing more.
  void GiveUp(gpu::Device* device) { given_up_.push_back(device); }
  bool given_up(const gpu::Device* device) const;
  // When all are known: lets go of everything but outcomes and events.
  void Settle();
  std::span<GpuMove> moves() { return moves_; }
  void Clear();

  // That of the first key with device memory; null when there is none.
  gpu::Device* main() const { return main_; }

  // --- with a stream, after Submit()
  size_t layers() const { return layers_; }
  // Null when nothing was put into it.
  const gpu::Event* LayerEvent(size_t layer) const;

 private:
  static constexpr uint64_t kStagedBytes = 64ull << 20;
  struct PagesMove {
    size_t move = 0;
    Direction direction = Direction::kToCaller;
    gpu::PageCopy pages;
  };
  // What one device does.
  struct Group {
    gpu::Device* device = nullptr;
    std::vector<size_t> moves;
    std::vector<std::pair<size_t, LayeredPiece>> pieces;  // of which move
    std::vector<PagesMove> pages;
    std::optional<gpu::Completion> completion;
    bool submitted = false;
    bool refused = false;  // the completion is of what the driver had taken by then
    bool done = false;     // with the completion
  };

  struct Tables;

  Group& GroupFor(const GpuMove& move);
  void Submit(Group& group, Clock::time_point deadline);
  Result<gpu::Completion> Send(Group& group, Clock::time_point deadline) const;
  void Park(Group& group);
  // Takes out what the device would not take whatever else there is; false when that is nothing.
  bool DropUnusable(Group& group);
  moonpool::Status AddPagesOfLayer(const Group& group, uint32_t layer, std::span<const size_t> keys,
                                   Tables* tables, gpu::CopyBatch* batch) const;
  void Fail(const Group& group, const Error& error,
            GpuMove::Outcome outcome = GpuMove::Outcome::kFailed);
  void ForgetStaged();

  std::shared_ptr<GpuParked> parked_;
  const std::optional<gpu::StreamRef> stream_;
  const uint32_t layers_;
  gpu::Device* main_ = nullptr;
  std::vector<gpu::Device*> devices_;  // by key
  std::vector<GpuMove> moves_;
  std::vector<Group> groups_;
  std::vector<gpu::Device*> given_up_;
  std::vector<std::shared_ptr<gpu::HostBlock>> blocks_;
  char* staged_at_ = nullptr;
  uint64_t staged_left_ = 0;
  uint64_t staged_bytes_ = 0;
};

}  // namespace moonpool::client
