// Batches on a stream of the caller's: bytes go into and out of GPU memory in the stream's order, and
// no call waits for them.
//
//   auto transfer = moonpool::client::GetOnStream(*client, stream, keys, into);
//   for (size_t layer = 0; layer < transfer.layers(); ++layer) {
//     transfer.StreamWaits(compute, layer);    // or cudaStreamWaitEvent(compute, transfer.event(layer))
//     launch_layer(compute, layer);            // while the next layer is on its way
//   }
//   for (const KeyResult& result : transfer.Wait()) ...
//
// A call asks the server where the values are (one round trip per 128 keys), puts all copies into the
// stream, and returns.  Behind each layer's copies, and before its event, the device compares the
// values' generations: Wait() then says kChanged for a key whose bytes are worth nothing, because it
// was overwritten or evicted while its copy stood in the queue.  Work that was launched on these bytes
// meanwhile has used garbage, so look at the results before using its.  It is rare while the stream
// comes to the copies within the lease (Options::lease_ms).  Treat such a key as a miss, or Retry().
// Values without memory on this host come through pinned memory of the library's: they are fetched
// within the call, and only their way into the GPU is the stream's.  So it is where NICs reach the GPU's
// memory, too (Options::gpu_rdma): what the stream does before may still use the buffer, which a NIC
// would not wait for.  A stream's read that need not be one is faster as Client::BatchGetInto().
//
// What takes longer than that:
// - With Options::checksum values are read into pinned memory and checked within the call; for those
//   in a GPU's memory it waits for that GPU.
// - Host buffers that are not pinned, and values of a pool that could not be pinned
//   (Stats::gpu_unpinned_values), are copied by cudaMemcpyAsync, which may wait for the stream.  Where
//   the driver pins no read-only memory this is so for every value that is read from shared memory, and
//   generations are then compared by Done() and Wait(), not before the event.
// - A call whose copies the driver refuses waits for the stream, so that nothing of it is under way.
// - The last user of a Client that closes it, or drops the last transfer of a closed one, waits for the
//   streams of writes that are not committed yet.
//
// None of this takes longer than Options::timeout_ms: a GPU that hangs, or work before ours in the
// stream that never ends, costs the keys kTimeout, and writes are not committed.  What the library has
// in such a stream is not taken back, though.  Buffers must stay until Done() says true; of a read that
// was dropped, until Stats::gpu_parked_values is 0; of a write that was, and when the client is closed,
// until the stream is empty.  (Calls of the driver that do not return are beyond this.)
//
// A stream that is being captured into a graph is refused (kInvalidArgument): the graph would move the
// bytes again whenever it is launched.  Captures of other streams, in whatever thread, go on.
//
// Needs no CUDA headers: a stream is a cudaStream_t (a CUstream), null the default stream; an event
// a cudaEvent_t.  The stream belongs to the device of the first device buffer of the batch.  Buffers
// of the host may be among the others; they too are touched when the stream comes to them.  A
// batch without any device buffer is done when the call returns, with or without CUDA.
// Buffers must stay until the last event; arrays and keys are copied.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include <moonpool/client.h>

namespace moonpool::client {

// A piece of a value and the layer it belongs to: 0, 1, ..  Pieces are filled (gathered) in order.
struct LayerBuffer {
  void* data = nullptr;
  size_t size = 0;
  uint32_t layer = 0;
};
struct ConstLayerBuffer {
  const void* data = nullptr;
  size_t size = 0;
  uint32_t layer = 0;
};

// A paged KV cache.  A page is cut into plane_count pieces of piece_bytes: K and V of every layer,
// or only one.  Piece p of page e lies at
//
//     planes[p] + e * page_stride       or, without planes,
//     base + p * plane_stride + e * page_stride
//
//   per layer [2, pages, page bytes], or K and V apart: planes = K and V of every layer
//   page first, [pages, layers, 2, bytes]: base, plane_stride = bytes
//   MLA latent, per layer [pages, bytes]: planes = the layers
//
// A value holds one or more pages, one after the other, each with its pieces in the order of p.
struct PagedCache {
  std::vector<void*> planes = {};
  void* base = nullptr;
  size_t plane_stride = 0;
  size_t page_stride = 0;
  uint32_t plane_count = 1;
  size_t piece_bytes = 0;
  uint64_t page_limit = 0;  // indexes are checked to be below; 0: they are not
  // With an event for each of so many runs of plane_count / layers planes.
  uint32_t layers = 1;
};

// Indexes of pages: for every key, in order, as many as its value holds; the same number for each.
class PageIndexes {
 public:
  PageIndexes(std::span<const int32_t> indexes) : narrow_(indexes) {}
  PageIndexes(std::span<const int64_t> indexes) : wide_(indexes) {}
  PageIndexes(const std::vector<int32_t>& indexes) : narrow_(indexes) {}
  PageIndexes(const std::vector<int64_t>& indexes) : wide_(indexes) {}
  size_t size() const { return narrow_.size() + wide_.size(); }
  int64_t operator[](size_t i) const { return narrow_.empty() ? wide_[i] : narrow_[i]; }

 private:
  std::span<const int32_t> narrow_ = {};
  std::span<const int64_t> wide_ = {};
};

struct GpuTransferState;

// What is under way.  Destruction waits for the copies of a read, at most Options::timeout_ms; a write
// goes on without it.
// May outlive the Client.  Threads: any, one at a time.  Of a parent's nothing works after fork().
class MOONPOOL_API GpuTransfer {
 public:
  GpuTransfer();
  GpuTransfer(GpuTransfer&&) noexcept;
  GpuTransfer& operator=(GpuTransfer&&) noexcept;
  ~GpuTransfer();

  // The highest that was named, plus one.
  size_t layers() const;
  // Recorded in the stream behind the layer's bytes (and those of the layers before): a read's have
  // arrived and been compared; a write's have been read, so that the buffers may be used again.
  // Null when there is nothing to wait for.  Valid as long as the transfer.
  void* event(size_t layer) const;
  // Work put into `stream` from now on waits for that event.
  Status StreamWaits(void* stream, size_t layer) const;
  // Whether it has been reached.  An error: it never will be; Wait() says what that means for whom.
  Status Reached(size_t layer, bool* reached) const;

  // False when the key's result was known without waiting: a miss, an error, or all is done; or when
  // there is no such key.
  bool in_flight(size_t key) const;
  // kInvalidArgument when there is no such key.
  KeyResult result(size_t key) const;
  // Whether all are known; does not wait, neither for the device nor for the network.
  bool Done();
  // Waits until they are, at most Options::timeout_ms.  Of a write: until the values have been
  // committed.  Keys whose copies are not done by then have kTimeout and stay in flight: wait again, or
  // look at Done().  What is returned stays until the next call of these.
  std::span<const KeyResult> Wait();
  // The same with another time for the copies; the commit of a write has timeout_ms as ever.
  std::span<const KeyResult> WaitFor(std::chrono::milliseconds timeout);
  // Waits; then reads again, through fresh descriptors, what is kChanged, and waits for that too.
  // On streams of the library's: what the caller has put into its own meanwhile is not waited for.
  // Both within timeout_ms each, as Wait() and as calls without a stream do.
  std::span<const KeyResult> Retry();

 private:
  friend struct GpuEntry;
  std::shared_ptr<ClientImpl> client_;
  std::shared_ptr<GpuTransferState> state_;
};

// One result per key; one bad key never fails its neighbours.
MOONPOOL_API GpuTransfer GetOnStream(Client& client, void* stream,
                                     std::span<const std::string_view> keys,
                                     std::span<const std::vector<LayerBuffer>> into);
// The values are copied in the stream's order, and committed by a thread of the library's when that
// is done: they appear soon after the last event, not with it.  A stream that does not come to the
// copies within the server's `reservation-timeout` loses the space that large values were given.
MOONPOOL_API GpuTransfer PutOnStream(Client& client, void* stream,
                                     std::span<const std::string_view> keys,
                                     std::span<const std::vector<ConstLayerBuffer>> from,
                                     const PutOptions& options = {});

// The same for pages of a cache in device memory or in pinned host memory: thousands of them in one
// launch per layer.  A value that does not fill its pages exactly is kBufferTooSmall.
// A cache in host memory alone, pinned or not, is copied by the processor within the call, whatever
// is in the stream: a write must find its bytes there when it is called.
MOONPOOL_API GpuTransfer GetPagesOnStream(Client& client, void* stream,
                                          std::span<const std::string_view> keys,
                                          const PagedCache& cache, const PageIndexes& pages);
MOONPOOL_API GpuTransfer PutPagesOnStream(Client& client, void* stream,
                                          std::span<const std::string_view> keys,
                                          const PagedCache& cache, const PageIndexes& pages,
                                          const PutOptions& options = {});

}  // namespace moonpool::client
