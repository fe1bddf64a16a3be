// What is behind a Client: the pool of channels and the transfers over them.
//
//   caller's thread -> Borrow() a channel -> locate / allocate in one round trip per chunk
//                   -> copy between the mapped pool and the caller's buffers -> give it back
//
// Threads: any.  mu_ guards the pool of channels; nothing slow happens under it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "client/channel.h"
#include "client/copier.h"
#include "client/endpoint.h"
#include "client/gpu_devices.h"
#include "client/gpu_work.h"
#include "client/moonpool/client.h"
#include "client/pace.h"
#include "protocol/mutex.h"

namespace moonpool::client {

class AsyncQueue;
class Gatherer;
class GpuFinisher;
class GpuParked;
struct GpuTransferState;

// Where the bytes of one key go: pieces to fill, or a string that takes the value's size.
struct Target {
  std::span<const Buffer> pieces;
  std::string* text = nullptr;
  // The layer of each piece; empty: there is only one.
  std::span<const uint32_t> layers = {};
  // Device memory described by a page table (PageCopy::to), in the place of pieces.
  const gpu::PageCopy* pages = nullptr;
  bool whole = false;  // nothing may be left over

  // False when they are shorter than `bytes`.
  bool Accept(uint64_t bytes) const;
};

// Where they come from.
struct Source {
  std::span<const ConstBuffer> pieces;
  uint64_t bytes = 0;
  std::span<const uint32_t> layers = {};
  const gpu::PageCopy* pages = nullptr;  // PageCopy::from
};

struct Counters {
  std::atomic<uint64_t> values_read[kTransports] = {};  // by Transport
  std::atomic<uint64_t> values_written[kTransports] = {};
  std::atomic<uint64_t> bytes_read[kTransports] = {};
  std::atomic<uint64_t> bytes_written[kTransports] = {};
  std::atomic<uint64_t> inline_values{0};
  std::atomic<uint64_t> fallbacks{0};
  std::atomic<uint64_t> tcp_by_choice{0};
  std::atomic<uint64_t> generation_retries{0};
  std::atomic<uint64_t> reconnects{0};
  std::atomic<uint64_t> attach_failures{0};
  std::atomic<uint64_t> rdma_failures{0};
  std::atomic<uint64_t> rdma_staged_values{0};
  std::atomic<uint64_t> views{0};
  std::atomic<uint64_t> view_copies{0};
  std::atomic<uint64_t> gathered_calls{0};
  std::atomic<uint64_t> gpu_values{0};
  std::atomic<uint64_t> gpu_staged_values{0};
  std::atomic<uint64_t> gpu_unpinned_values{0};
  std::atomic<uint64_t> gpu_rdma_direct_values{0};

  void Read(Transport transport, uint64_t bytes) {
    values_read[static_cast<size_t>(transport)].fetch_add(1, std::memory_order_relaxed);
    bytes_read[static_cast<size_t>(transport)].fetch_add(bytes, std::memory_order_relaxed);
  }
  void Wrote(Transport transport, uint64_t bytes) {
    values_written[static_cast<size_t>(transport)].fetch_add(1, std::memory_order_relaxed);
    bytes_written[static_cast<size_t>(transport)].fetch_add(bytes, std::memory_order_relaxed);
  }
  void FellBack(uint64_t values) { fallbacks.fetch_add(values, std::memory_order_relaxed); }
};

// Cuts a list of keys into runs for one command each: of at most `most_keys`, and with no more
// bytes (bytes_of(key) each) than it takes to reach `most_bytes`.
template <typename BytesOf>
std::vector<std::span<const size_t>> Chunks(std::span<const size_t> keys, size_t most_keys,
                                            uint64_t most_bytes, BytesOf&& bytes_of) {
  std::vector<std::span<const size_t>> chunks;
  while (!keys.empty()) {
    size_t count = 0;
    const size_t most = std::min(most_keys, keys.size());
    for (uint64_t bytes = 0; count < most && bytes < most_bytes; ++count) {
      bytes += bytes_of(keys[count]);
    }
    chunks.push_back(keys.first(count));
    keys = keys.subspan(count);
  }
  return chunks;
}

// crc32c, as readers check it.
uint32_t ChecksumOf(const Source& source);

// What KV.ALLOC and KV.WRITE say behind their keys, and how many words that is.
size_t OptionWords(const PutOptions& options);
void SayOptions(RespStream& stream, const PutOptions& options);
// What is wrong with them; empty: nothing.
std::string WrongOptions(const PutOptions& options);

class ClientImpl {
 public:
  ClientImpl(Endpoint endpoint, Options options);
  ~ClientImpl();

  // Opens the first channel.
  Status Start();
  uint64_t forks() const { return forks_; }
  const Endpoint& endpoint() const { return endpoint_; }
  const Options& options() const { return options_; }

  std::vector<KeyResult> GetInto(std::span<const std::string_view> keys,
                                 std::span<const Target> targets);
  std::vector<KeyResult> PutFrom(std::span<const std::string_view> keys,
                                 std::span<const Source> sources, const PutOptions& options);
  std::vector<KeyResult> Remove(std::span<const std::string_view> keys);
  std::vector<KeyResult> Exist(std::span<const std::string_view> keys);
  Status MatchPrefix(std::span<const std::string_view> keys, size_t* present);
  Status GetView(std::string_view key, View* view);
  Status Command(std::span<const std::string_view> words, std::string* reply);
  Status Ping();

  AsyncQueue& async();
  // Null when calls are not gathered.
  Gatherer* gatherer() { return gatherer_.get(); }

  void CountGathered(size_t calls) {
    counters_.gathered_calls.fetch_add(calls, std::memory_order_relaxed);
  }

  Status RegisterBuffer(void* data, size_t size);
  Status UnregisterBuffer(void* data);

  // moonpool/gpu.h
  void StartGet(GpuTransferState& transfer);
  void StartPut(const std::shared_ptr<GpuTransferState>& transfer);
  // Makes every result known: if the device has copied, or false (of a write over the network: not
  // for those who only look); or when it has, which is waited for until the deadline.
  bool TryFinish(GpuTransferState& transfer);
  bool FinishUntil(GpuTransferState& transfer, Clock::time_point deadline);
  // Nobody waits for it any more.
  void GiveUp(GpuTransferState& transfer);
  // False: it is not finished yet.
  bool Retry(GpuTransferState& transfer);
  // For what begins to wait now.
  Clock::time_point Deadline() const {
    return Clock::now() + std::chrono::milliseconds(options_.timeout_ms);
  }

  Stats stats() const;
  Transport transport() const;

 private:
  // A channel borrowed from the pool; goes back at the end, or is dropped when it broke.
  class Borrowed {
   public:
    Borrowed(ClientImpl* client, std::shared_ptr<Channel> channel)
        : client_(client), channel_(std::move(channel)) {}
    ~Borrowed() {
      if (channel_ != nullptr) client_->GiveBack(std::move(channel_));
    }
    Borrowed(Borrowed&& other) noexcept = default;
    Borrowed& operator=(Borrowed&&) = delete;
    Channel* operator->() const { return channel_.get(); }
    Channel& operator*() const { return *channel_; }
    const std::shared_ptr<Channel>& get() const { return channel_; }
    explicit operator bool() const { return channel_ != nullptr; }

   private:
    ClientImpl* client_;
    std::shared_ptr<Channel> channel_;
  };

  // channel_pool.cc
  // Waits for a free channel or opens one.  Empty, with `status` set, when there is none.
  Borrowed Borrow(Status* status);
  // The same for one that is wanted and no other; empty when it is gone.
  Borrowed BorrowThat(const std::shared_ptr<Channel>& channel, Status* status);
  void GiveBack(std::shared_ptr<Channel> channel);
  // Runs `work` on a channel, once more on a fresh one when the connection broke.  `work` returns
  // false when the stream failed; what it has completed by then it must not do again.
  Status WithChannel(const std::function<bool(Channel&)>& work);
  bool MayBeBetter(const Channel& channel) REQUIRES(mu_);
  std::shared_ptr<Channel> TakeIdle(const std::function<bool(Channel&)>& wanted) EXCLUDES(mu_);
  // Those of every channel there is now, each when nobody uses it.
  void VisitQueuePairs(const std::function<void(RdmaSession&)>& visit) EXCLUDES(mu_);
  void StartHousekeeper() EXCLUDES(housekeeper_mu_);
  void Housekeep();
  void TendQueuePairs() EXCLUDES(mu_);
  // The channel's queue pairs, when there are any now.  Between commands.
  RdmaSession* QueuePairs(Channel& channel);

  // One batch in progress: the caller's keys and results, and which keys are still to be done.
  template <typename Item>
  struct Batch {
    std::span<const std::string_view> keys;
    std::span<const Item> items;
    std::vector<KeyResult>& results;
    std::vector<size_t> pending;
    Clock::time_point start;
    GpuWork* gpu = nullptr;  // of reads and writes, never null
    std::vector<size_t> unreachable = {};  // what goes over tcp next
    // Of keys that are done together: the clock may cost more than a key.
    std::optional<Clock::time_point> now = {};
    uint64_t room = 0;  // of all that is read, strings aside

    void Done(size_t index, Code code, Transport transport = Transport::kNone,
              uint64_t bytes = 0, std::string message = {});
    void Error(size_t index, const Status& status) {
      Done(index, status.code, Transport::kNone, 0, status.message);
    }
  };
  using GetBatch = Batch<Target>;
  using PutBatch = Batch<Source>;

  // What a batch of about `bytes` takes where there are queue pairs; as the caller has it, if so.
  Transport ChooseFor(Pace& pace, uint64_t bytes);
  // What became of the batch's large values, in the time since its start.
  template <typename Item>
  void Learn(Pace& pace, Transport chosen, uint64_t bytes, const Batch<Item>& batch);

  // Each does what it can of batch.pending and leaves there what is still to be done; false when
  // the stream failed.
  // `rdma`: over which to pull, when there is no shared memory.
  void Get(GetBatch& batch);
  void Put(PutBatch& batch, const PutOptions& options);
  bool LocateAndPull(Channel& channel, RdmaSession* rdma, GetBatch& batch);
  bool GetOverTcp(Channel& channel, GetBatch& batch);
  bool AllocateAndPush(Channel& channel, PutBatch& batch, const PutOptions& options);
  // What KV.ALLOC gave for a key.
  struct Allocation {
    size_t index;
    int64_t token;
    uint32_t region;
    uint64_t offset;
    std::shared_ptr<Mapping> mapping;
    uint32_t crc;

    Transport transport() const {
      return mapping->device() != nullptr ? Transport::kCuda : Transport::kShm;
    }
  };
  bool ReadAllocations(Channel& channel, std::span<const size_t> chunk, PutBatch& batch,
                       std::vector<Allocation>* allocations, std::vector<size_t>* rest);
  void FindExtents(Channel& channel, PutBatch& batch, std::vector<Allocation>* allocations,
                   std::vector<size_t>* rest);
  void Push(Channel& channel, PutBatch& batch, std::vector<Allocation>* allocations);
  void PushByDevice(Channel& channel, const Allocation& allocation, PutBatch& batch);
  // The options for bytes that `gpu` moves: "gpu" in PREFER is near them first.
  PutOptions NearestFirst(const GpuWork& gpu, PutOptions options) const;
  void WordsOfCommit(RespStream& stream, const PutBatch& batch,
                     std::span<const Allocation> allocations);
  bool ReadCommits(RespStream& stream, PutBatch& batch, std::span<const Allocation> allocations);
  // With the next command.
  void Abort(Channel& channel, std::string_view key, int64_t token);
  bool LetServerRead(Channel& channel, RdmaSession& rdma, PutBatch& batch,
                     const PutOptions& options);
  bool SetOverTcp(Channel& channel, PutBatch& batch, const PutOptions& options);

  // --- on a stream of the caller's.  Those without a lock of their own: the transfer's is held
  // Takes what is known so far.  Whether that is everything.
  bool Submit(GpuTransferState& transfer, std::vector<KeyResult>* results);
  bool FinishLocked(GpuTransferState& transfer, Clock::time_point deadline);
  void FinishGet(GpuTransferState& transfer, std::vector<KeyResult>* results);
  void FinishPut(GpuTransferState& transfer, std::vector<KeyResult>* results);
  static void Finished(GpuTransferState& transfer, std::vector<KeyResult>* results);
  void Commit(const std::shared_ptr<Channel>& session, std::span<GpuMove* const> aborted,
              std::span<const Allocation> copied, PutBatch& batch);
  template <typename Item>
  void PagesByProcessor(Batch<Item>& batch, GpuTransferState* transfer);
  GpuFinisher& finisher();

  // A value that is to be copied out of shared memory, or read over RDMA (no mapping then).
  struct Pull {
    size_t index;
    protocol::Descriptor descriptor;
    std::shared_ptr<Mapping> mapping;
    const protocol::GenerationCounter* counter;
  };

  // --- memory of devices
  // Which keys have any.  Done with an error: those whose memory the library cannot use.
  template <typename Item>
  void FindDevices(Batch<Item>& batch);
  // The rest of a bulk string into pinned memory, and from there on.
  bool ReadStaged(Channel& channel, const ReplyHeader& header, size_t index, GetBatch& batch);
  // A value's copy, for the device.
  static void MoveTo(const Target& target, GpuMove move, GpuWork& gpu);
  static void MoveFrom(const Source& source, GpuMove move, GpuWork& gpu);
  // Registers the copy of a pull by a device.
  void PullByDevice(Channel& channel, const Pull& pull, GetBatch& batch);
  void PutOnDevice(const Pull& pull, char* staged, GetBatch& batch);
  // For values that are to be checked: into pinned memory, and from there on.  False: its key is done
  // or pending again.
  bool LoadChecked(const Pull& pull, GetBatch& batch, GpuMove* move);
  // Waits for what devices move, unless somebody else does, and says what became of it.  REQUIRES:
  // what is staged and still wanted is of a move.
  void FinishMoves(GetBatch& batch);
  void FinishMove(GpuMove& move, GetBatch& batch);
  // Runs `put` with what is pending, in rounds in which device memory is copied to host memory.
  bool PutStaged(PutBatch& batch, const std::function<bool()>& put);

  // False when the value needs no copy: its key is done, or pending again.
  bool PreparePull(Channel& channel, Pull& pull, GetBatch& batch);
  void RunPulls(Channel& channel, std::span<const Pull> pulls, GetBatch& batch);
  bool PrepareRead(Channel& channel, const Pull& pull, GetBatch& batch);
  void RunReads(Channel& channel, RdmaSession& rdma, std::span<const Pull> pulls, GetBatch& batch);
  // So many of the first that their staged bytes are not too many.  `not_direct`: takes those that
  // could not be read into device memory; null: all are staged.
  size_t ReadSome(Channel& channel, RdmaSession& rdma, std::span<const Pull> pulls,
                  std::vector<Pull>* not_direct, GetBatch& batch);
  // Whether READs may land in the key's device memory.
  bool MayLandOnDevice(const Pull& pull, const GetBatch& batch) const;
  // The bytes are those of the descriptor's version; what is left is their checksum.
  void Pulled(const Pull& pull, Transport transport, GetBatch& batch);
  // The whole value over RESP, for a view that cannot be one.
  bool ReadCopy(Channel& channel, std::string_view key, std::string* copy, Status* answer);
  bool ReadInline(Channel& channel, const ReplyHeader& header, size_t index, GetBatch& batch);
  template <typename Reply>
  std::vector<KeyResult> PerKey(std::span<const std::string_view> keys, std::string_view command,
                                Reply&& on_reply);

  const Endpoint endpoint_;
  const Options options_;
  const uint64_t forks_;
  Counters counters_;
  Pace read_pace_;
  Pace write_pace_;
  // As the last server that was spoken to has it.
  std::atomic<uint64_t> bulk_threshold_{UINT64_MAX};
  Copier copier_;
  const std::shared_ptr<GpuParked> parked_;

  mutable Mutex mu_;
  CondVar channel_free_;  // who waits takes any
  // Who waits takes one and no other, and must not be woken in the place of one that takes any.
  CondVar that_free_;
  std::vector<std::shared_ptr<Channel>> idle_ GUARDED_BY(mu_);
  std::vector<std::weak_ptr<Channel>> all_ GUARDED_BY(mu_);
  int open_ GUARDED_BY(mu_) = 0;
  std::shared_ptr<NodeMemory> memory_ GUARDED_BY(mu_);
  const std::shared_ptr<RdmaTransport> rdma_;
  Clock::time_point attach_after_ GUARDED_BY(mu_);  // shared memory failed: not before this
  std::chrono::milliseconds attach_pause_ GUARDED_BY(mu_){0};
  // Replaced, never changed.
  std::shared_ptr<const KnownMemories> registered_ GUARDED_BY(mu_) =
      std::make_shared<KnownMemories>();
  // Device memory was used: new connections ask for the server's, and are asked for.
  std::atomic<bool> gpu_wanted_{false};
  bool stop_ GUARDED_BY(mu_) = false;
  std::atomic<Transport> in_use_{Transport::kTcp};

  Mutex async_mu_;
  std::unique_ptr<AsyncQueue> async_ GUARDED_BY(async_mu_);
  std::unique_ptr<GpuFinisher> finisher_ GUARDED_BY(async_mu_);
  std::unique_ptr<Gatherer> gatherer_;
  UniqueFd wake_fd_;
  Mutex housekeeper_mu_;
  std::thread housekeeper_ GUARDED_BY(housekeeper_mu_);
};

}  // namespace moonpool::client
