// Moves the bytes of many keys at once, between host memory and devices in any mix, and proves on
// the stream that they are one version.
//
//   CopyBatch batch(device);                          // or a stream of the caller's
//   const size_t key = batch.AddKey(counter, generation);
//   batch.Copy(key, {to, from, bytes});               // pieces, in any number
//   batch.CopyPages(key, pages);                      // a paged cache
//   batch.EndLayer();                                 // optional: an event for what came so far
//   auto completion = std::move(batch).Submit();      // returns at once
//   device.WaitFor(stream, completion->layer(0));     // a stream goes on when layer 0 is there
//   completion->Wait();  completion->Unchanged(key);  // kOk and true: the bytes are that version
//
// Only the batch's event, and each layer's, is behind the check of generations.  The stream itself
// need not be: work put on it after Submit() comes after the bytes, but may run before they are
// checked.  What must not see an older or a torn version waits for the event, and someone looks at
// Unchanged() before its results are used.
//
// How bytes go: within a device and over a link, small pieces in one kernel launch and large ones
// through the copy engine; between devices without a link, through pinned host memory; host pool to
// device and back, through the copy engine or, for many small pieces, a launch of few blocks.
// Pageable host memory works, at the driver's pace, but not under page tables.
// Threads: a batch and its completion are used by one thread at a time.  The device, and the memory
// named, must stay until the completion has been waited for or destroyed (which waits).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gpu/device.h"
#include "gpu/pages.h"
#include "protocol/status.h"

namespace moonpool::gpu {

// What is under way.  Destruction waits for it, however long: who must not wait keeps it.
class Completion {
 public:
  Completion(Completion&&) noexcept;
  Completion& operator=(Completion&&) noexcept;
  ~Completion();

  // Whether everything has been done.  An error: the device is lost, no byte is to be trusted.
  Result<bool> Done() const;
  Status Wait() const;
  // The same as Done(), at the latest then.
  Result<bool> WaitUntil(std::chrono::steady_clock::time_point deadline) const;
  // Reached when the layer's bytes have arrived and its keys have been checked.
  size_t layers() const;
  const Event& layer(size_t index) const;
  // REQUIRES: the layer's event has been reached, or (first form) Done().
  // False: the value changed while it was copied; its bytes are worth nothing.
  bool Unchanged(size_t key) const;
  bool Unchanged(size_t key, size_t layer) const;

 private:
  friend class CopyBatch;
  struct State;
  explicit Completion(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct CopyLimits {
  // Pieces from this size on go through the copy engine, by where they go.
  uint64_t engine_same_device = 64 << 20;
  uint64_t engine_link = 1 << 20;
  uint64_t engine_host = 256 << 10;
  // Pages between a device and one run of host memory of at least this many bytes go through the
  // copy engine and device memory of this size, twice.
  uint64_t staged_pages = 1 << 20;
  uint64_t staging_chunk = 8 << 20;
  // From so many bytes of a batch within devices on, generations that are not compared by the launch
  // that copies are compared on another stream behind it, so that what follows on this one need not
  // wait for that.  Copies to and from host memory are checked in the stream, where it is faster.
  uint64_t checks_beside = 16 << 20;
};

class CopyBatch {
 public:
  // On a stream of the device's, or without one on one that belongs to the batch.
  explicit CopyBatch(Device* device, std::optional<StreamRef> stream = std::nullopt,
                     const CopyLimits& limits = {});
  ~CopyBatch();
  CopyBatch(CopyBatch&&) noexcept;

  // A key whose pieces are checked.  A null counter: there is nothing to check (Unchanged is true).
  size_t AddKey(const protocol::GenerationCounter* counter, uint64_t generation);
  void Copy(size_t key, const Piece& piece);
  // The arrays that `pages` names (planes, a table in host memory) must stay until Submit().
  void CopyPages(size_t key, const PageCopy& pages);
  // What was added last is that key's too: a page copy may carry the pages of many values.
  void Share(size_t key);
  // What is added from now on is another layer's.  Empty layers are allowed.
  void EndLayer();

  // On an error nothing is under way any more, and the destinations hold anything.
  Result<Completion> Submit() &&;
  // The same for who must not wait: on an error `left` is what may be under way yet, if anything
  // is.  It has no layers, and says nothing of keys.
  Result<Completion> Submit(std::optional<Completion>* left) &&;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moonpool::gpu
