// What of one batch goes through devices: bytes into and out of device memory.
//
//   GpuWork work;
//   work.Use(index, device);                   // each key with device memory
//   work.Add(move, pieces);                    // a value that is to be copied
//   char* memory = *work.Stage(device, bytes); // or: pinned memory for one that comes another way
//   work.Submit();  work.Wait();               // moves() then say what became of each
//   work.Clear();                              // for the next part of the batch
//
// Without a stream every device works on a stream of the library's; with one, which belongs to the
// device of the first key with device memory, everything goes through that.
// Threads: one at a time.  Memory that was named must stay until Wait() or the destructor, which
// waits.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/channel.h"
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
  // What the server promised for it, and whom to tell when it is done.
  std::shared_ptr<Channel> channel = {};
  uint64_t lease = 0;
  int64_t token = 0;
  uint32_t crc = 0;

  enum class Outcome : uint8_t { kPending, kDone, kChanged, kFailed };
  Outcome outcome = Outcome::kPending;
  Error error = {};  // of kFailed
};

// A piece of a value, and the layer it belongs to.
struct LayeredPiece {
  gpu::Piece piece;
  uint32_t layer = 0;
};

class GpuWork {
 public:
  explicit GpuWork(std::optional<gpu::StreamRef> stream = std::nullopt, uint32_t layers = 1)
      : stream_(stream), layers_(layers) {}
  ~GpuWork() { Clear(); }
  GpuWork(const GpuWork&) = delete;
  GpuWork& operator=(const GpuWork&) = delete;

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
  // So much of it is in use that it is time to finish what is there; a larger value is alone in it.
  bool full() const { return !deferred() && staged_bytes_ >= kStagedBytes; }
  // REQUIRES: Takes(move.index), or `move.device` is set.
  void Add(GpuMove move, std::span<const LayeredPiece> pieces);
  // The same for pages: `pages` is the caller's side, the value's bytes lie page after page and plane
  // after plane.  The arrays it names must stay until Submit().
  enum class Direction : uint8_t { kToCaller, kFromCaller };
  void AddPages(GpuMove move, Direction direction, const gpu::PageCopy& pages);

  // Puts what was added since Clear() into streams, the first time; returns at once.
  void Submit();
  // Whether everything has been done.
  bool Done() const;
  // Until it is, and every outcome is known.
  void Wait();
  // After that: lets go of everything but outcomes and events.
  void Settle();
  std::span<GpuMove> moves() { return moves_; }
  void Clear();

  // --- with a stream, after Submit()
  gpu::Device* main() const { return main_; }
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
  };

  struct Tables;

  Group& GroupFor(const GpuMove& move);
  void Submit(Group& group);
  Result<gpu::Completion> Send(const Group& group) const;
  // Takes out what the device would not take whatever else there is; false when that is nothing.
  bool DropUnusable(Group& group);
  moonpool::Status AddPagesOfLayer(const Group& group, uint32_t layer, std::span<const size_t> keys,
                                   Tables* tables, gpu::CopyBatch* batch) const;
  void Fail(const Group& group, const Error& error);
  void ForgetStaged();

  const std::optional<gpu::StreamRef> stream_;
  const uint32_t layers_;
  gpu::Device* main_ = nullptr;
  std::vector<gpu::Device*> devices_;  // by key
  std::vector<GpuMove> moves_;
  std::vector<Group> groups_;
  std::vector<std::unique_ptr<gpu::HostBlock>> blocks_;
  char* staged_at_ = nullptr;
  uint64_t staged_left_ = 0;
  uint64_t staged_bytes_ = 0;
};

}  // namespace moonpool::client
