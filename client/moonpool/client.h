// libmoonpool: the C++ client of Moonpool.
//
//   std::unique_ptr<moonpool::client::Client> client;
//   auto status = moonpool::client::Client::Connect("moonpool://127.0.0.1:6379", {}, &client);
//   client->Set("key", "value");
//   std::string value;
//   client->Get("key", &value);
//
// Large values move through shared memory when client and server are on one host, by RDMA where
// both have NICs for it, and over RESP ("tcp") otherwise; plain Redis clients see the same values.
// A call on shared memory costs one round trip for the descriptors and one copy by the caller's own
// thread, one over RDMA the round trip and READs straight into the caller's buffers; the server's
// processor touches no payload byte.
//
// Threads: a Client may be used by any number of threads at once.  Each call borrows one of at
// most Options::connections connections, and waits for one when all are in use.
// Errors: returned, never thrown.  A miss is not an error: it has a code of its own.
// After fork() the child's Client connects anew on its first use; views are the parent's alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#if defined(__GNUC__)
#define MOONPOOL_API __attribute__((visibility("default")))
#else
#define MOONPOOL_API
#endif

namespace moonpool::client {

enum class Code : uint8_t {
  kOk,
  kMiss,              // there is no such key
  kConditionNotMet,   // if_absent / if_present did not hold; nothing was written
  kBufferTooSmall,    // the value is longer than the buffers given for it; KeyResult::bytes says
                      // how long, and nothing was written into them
  kInvalidArgument,   // the call itself is wrong; the message says how
  kOutOfMemory,       // the server has no memory for the value and nothing to evict
  kPermissionDenied,  // wrong password, or the server's ACL forbids it
  kUnavailable,       // no connection; the library has tried to reconnect
  kTimeout,           // Options::timeout_ms passed first
  kCorrupt,           // the bytes do not have the checksum their writer gave
  kProtocol,          // the peer does not speak the protocol this library speaks
  kServerError,       // any other error reply; the message is the server's
  kChanged,           // the value changed while a device copied it (moonpool/gpu.h)
  kDeviceError,       // a GPU or its driver failed; the message says how
};
// "kOk" without the k, for logs.
MOONPOOL_API std::string_view CodeName(Code code);
// What a caller can do about it, one sentence.
MOONPOOL_API std::string_view CodeCure(Code code);

struct Status {
  Code code = Code::kOk;
  std::string message;
  bool ok() const { return code == Code::kOk; }
};

// kShm: out of (into) memory of this host, by the processor or by the GPU whose memory the caller's
// buffer is in; kCuda: out of (into) memory of a GPU.
enum class Transport : uint8_t { kNone, kShm, kRdma, kTcp, kCuda };
inline constexpr size_t kTransports = 5;  // of these, for tables by transport

// What became of one key of a batch.
struct KeyResult {
  Code code = Code::kUnavailable;
  Transport transport = Transport::kNone;  // how the bytes moved
  uint64_t bytes = 0;                      // length of the value
  uint64_t elapsed_ns = 0;                 // from the start of the call until this key was done
  std::string message;                     // of an error
  bool ok() const { return code == Code::kOk; }
};

// Host memory, or memory of a GPU of this process (a CUDA device pointer).  What the GPU is to read
// must be written when the call begins, and what it is to write is written when the call returns:
// work on streams is in moonpool/gpu.h.  After kTimeout a GPU may still read or write the buffers, of
// the host too: they must stay until Stats::gpu_parked_values is 0.
struct Buffer {
  void* data = nullptr;
  size_t size = 0;
};
struct ConstBuffer {
  const void* data = nullptr;
  size_t size = 0;
};

struct Options {
  // Everything here may also stand in the URL: ?transport=tcp&connections=2 ...
  enum class TransportChoice { kAuto, kShm, kRdma, kTcp };
  // kAuto: shared memory where it can be had, else RDMA or tcp, whichever delivers more: RDMA at first,
  // and now and then a batch goes the other way to see.  kShm, kRdma: an error where it cannot be had.
  TransportChoice transport = TransportChoice::kAuto;
  std::string password = {};
  int connections = 8;           // most connections at one time
  int connect_timeout_ms = 5000;
  // For one round trip or one piece of a transfer.  A GPU that has not copied a piece by then (see
  // Stats::gpu_parked_values) costs its keys kTimeout, as do the batch's others that need it.
  int timeout_ms = 30000;
  // Threads that work on a large copy out of or into shared memory, the caller's among them;
  // 0: a quarter of the cores, at most 4.
  int copy_threads = 0;
  // A reply from the same host is looked for this long, giving way to other threads, before the
  // caller sleeps: to be woken costs about as much.
  int spin_us = 50;
  // Write a crc32c with every large value that does not go over tcp, check it on every read of one
  // that has it and does not come over tcp.
  bool checksum = false;
  int lease_ms = 0;              // lease of descriptors; 0: the server's default
  int async_threads = 1;         // threads that work on Submit()ted operations
  // Gathers single Get/Set/Exists calls that are made at the same time into batches.  A call
  // waits for company at most this long, and less when round trips are short; 0: never.
  int gather_us = 0;
  int gather_keys = 128;         // a batch goes out at once when it has so many keys
  // NICs, as patterns with commas between: "mlx5_*", "mlx5_0:1" (a port).  rdma_devices: only
  // these; empty: all that are up.  rdma_exclude has the last word.
  std::string rdma_devices = {};
  std::string rdma_exclude = {};
  // Of RegisterBuffer()ed memory so much is pinned for the NICs at a time, what was used least
  // lately goes first; transfers into the rest pass through 8 MiB of the library's.
  int rdma_registered_mib = 64 * 1024;
  // Pinned per connection that writes: values that are not in registered buffers are put through
  // it.  Larger ones go over tcp.
  int rdma_staging_mib = 16;
  int rdma_sessions = 64;        // most connections that have queue pairs at a time
  // kAuto: buffers may be memory of GPUs, in processes that use CUDA.  kNo: that is an error.  CUDA is
  // left alone until the first such buffer comes.
  enum class GpuChoice { kAuto, kNo };
  GpuChoice gpu = GpuChoice::kAuto;
  // kAuto: over RDMA, values go straight into and out of RegisterBuffer()ed memory of GPUs where NIC,
  // driver and GPU can (dma-buf).  kNo: through pinned memory of the library's, as else.
  GpuChoice gpu_rdma = GpuChoice::kAuto;
};

struct PutOptions {
  bool if_absent = false;
  bool if_present = false;
  int64_t ttl_ms = 0;   // 0: no expiry
  // Tiers in order, "gpu,dram"; empty: the server's choice.  "gpu:<UUID>" is one GPU, "gpu" the one the
  // bytes are on or one near it (NVLink before PCIe), else any.
  std::string prefer = {};
};

struct Stats {
  struct PerTransport {
    uint64_t values_read = 0;
    uint64_t values_written = 0;
    uint64_t bytes_read = 0;
    uint64_t bytes_written = 0;
  };
  PerTransport shm;
  PerTransport rdma;
  PerTransport tcp;
  PerTransport cuda;
  uint64_t inline_values = 0;      // small ones that came with the reply (counted under tcp too)
  uint64_t fallbacks = 0;          // values that went over tcp though shm or rdma was wanted
  uint64_t tcp_by_choice = 0;      // that went over tcp as it was faster than rdma, or to see whether it is
  uint64_t generation_retries = 0; // copies thrown away because the value changed meanwhile
  uint64_t reconnects = 0;
  uint64_t attach_failures = 0;
  uint64_t rdma_failures = 0;      // connections that were to have queue pairs and have none
  uint64_t rdma_registered_bytes = 0;  // of RegisterBuffer()ed memory, now
  uint64_t rdma_staged_values = 0;     // written through staging memory
  std::string rdma_error = {};     // why RDMA cannot be had now; empty: it can, or was not wanted
  uint64_t views = 0;
  uint64_t view_copies = 0;        // views that had to be copies
  uint64_t gathered_calls = 0;     // single calls that shared a batch with others
  uint64_t gpu_values = 0;         // copied by GPUs, whatever the transport
  uint64_t gpu_staged_values = 0;  // of these, through pinned memory of the library's
  uint64_t gpu_unpinned_values = 0;  // out of or into shared memory that could not be pinned: slow,
                                     // and not as moonpool/gpu.h compares generations
  uint64_t gpu_rdma_direct_values = 0;  // that NICs moved into or out of GPUs' memory, not of these
  std::string gpu_rdma_error = {};  // why NICs do not reach RegisterBuffer()ed memory of GPUs, last
  // That GPUs may still read or write although nobody waits for them any more.  With a client that is
  // closed, their memory stays as it is until the process ends.  While batches of this kind are as many
  // as there are connections, what needs a GPU is kTimeout at once.
  uint64_t gpu_parked_values = 0;
  std::string gpu_error = {};      // why device memory of the server's could not be had, last
};

// Read-only bytes of one version of a value, without a copy.  They cannot change while the view
// and its session live; the mapping stays as long as the view.  Movable; any thread, one at a
// time.  Must not outlive the process's use of the library; may outlive the Client.
class MOONPOOL_API View {
 public:
  View();
  View(View&&) noexcept;
  View& operator=(View&&) noexcept;
  ~View();

  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::string_view bytes() const { return {data_, size_}; }
  // False once the session behind the view is lost (server gone, connection cut).  Bytes read
  // without a later check that returns true are not proven to be of one version.
  bool still_valid() const;
  // The view is a private copy: small values, no shared memory, or the server refused the hold.
  bool is_copy() const;

 private:
  friend class ClientImpl;
  struct State;
  const char* data_ = nullptr;
  size_t size_ = 0;
  std::unique_ptr<State> state_;
};

// An operation for Submit().  Keys are copied; buffers must stay until it has completed.
struct Operation {
  enum class Kind { kGetInto, kPutFrom, kExists, kRemove };
  Kind kind = Kind::kGetInto;
  std::vector<std::string> keys = {};
  std::vector<std::vector<Buffer>> into = {};       // kGetInto: pieces per key
  std::vector<std::vector<ConstBuffer>> from = {};  // kPutFrom: pieces per key
  PutOptions put = {};
};

struct Completion {
  uint64_t id = 0;
  std::vector<KeyResult> results;  // one per key
};

class ClientImpl;

class MOONPOOL_API Client {
 public:
  // URL: moonpool://[:password@]host[:port][?option=value&...], or moonpool+unix:///path.sock?...
  // for a Unix socket; redis:// and unix:// are taken too.  IPv6 addresses in brackets.
  static Status Connect(const std::string& url, const Options& options,
                        std::unique_ptr<Client>* client);
  // Waits for submitted operations, then closes everything.  Waits for GPUs too, but not longer than
  // timeout_ms: what they may then still touch of the library's is never freed, and buffers of the
  // caller's must stay until the GPU is at rest.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // --- single keys -------------------------------------------------------------------------
  Status Ping();
  Status Get(std::string_view key, std::string* value);
  Status Set(std::string_view key, std::string_view value, const PutOptions& options = {});
  // kMiss when there was nothing to delete.
  Status Del(std::string_view key);
  // kOk or kMiss.
  Status Exists(std::string_view key);
  // See View.  kMiss when there is no such key.
  Status GetView(std::string_view key, View* view);

  // --- batches: one result per key, in order; one bad key never fails its neighbours ----------
  std::vector<KeyResult> BatchGet(std::span<const std::string_view> keys,
                                  std::vector<std::string>* values);
  std::vector<KeyResult> BatchPut(std::span<const std::string_view> keys,
                                  std::span<const std::string_view> values,
                                  const PutOptions& options = {});
  std::vector<KeyResult> BatchRemove(std::span<const std::string_view> keys);
  // kOk or kMiss per key.
  std::vector<KeyResult> BatchIsExist(std::span<const std::string_view> keys);
  // How many keys, from the first on, are present: a hint, taken without leases.
  Status MatchPrefix(std::span<const std::string_view> keys, size_t* present);

  // Straight between the pool and the caller's buffers, one buffer per key...
  std::vector<KeyResult> BatchGetInto(std::span<const std::string_view> keys,
                                      std::span<const Buffer> buffers);
  std::vector<KeyResult> BatchPutFrom(std::span<const std::string_view> keys,
                                      std::span<const ConstBuffer> buffers,
                                      const PutOptions& options = {});
  // ... or several pieces per key, filled (gathered) in order.
  std::vector<KeyResult> BatchGetIntoMulti(std::span<const std::string_view> keys,
                                           std::span<const std::vector<Buffer>> buffers);
  std::vector<KeyResult> BatchPutFromMulti(std::span<const std::string_view> keys,
                                           std::span<const std::vector<ConstBuffer>> buffers,
                                           const PutOptions& options = {});

  // --- asynchronous ------------------------------------------------------------------------
  // The result appears in Poll(), and event_fd() becomes readable.
  uint64_t Submit(Operation operation);
  // `done` runs on one of the library's threads; it must not block for long.
  uint64_t Submit(Operation operation, std::function<void(Completion)> done);
  std::future<std::vector<KeyResult>> SubmitFuture(Operation operation);
  // Readable while completions wait to be polled; owned by the client.
  int event_fd() const;
  // Takes at most `most` completions; does not block.
  std::vector<Completion> Poll(size_t most = SIZE_MAX);

  // --- buffers -----------------------------------------------------------------------------
  // Faults the memory in and remembers it, so that transfers into it run at full speed from the
  // first byte on, and registers it with the NICs (see rdma_registered_mib): READs land there, and
  // the server takes values from there.  It must stay mapped until it is unregistered.  Ranges must
  // not overlap ones already registered.  Memory of a GPU is registered with the NICs too, where they
  // can (gpu_rdma): it must not be freed before it is unregistered.  What a range is, a GPU's memory or
  // host memory, is remembered: a process that uses CUDA need not ask about it with every call.
  Status RegisterBuffer(void* data, size_t size);
  // Waits for the calls under way; none may use the buffer.
  Status UnregisterBuffer(void* data);

  // --- looking inside ----------------------------------------------------------------------
  Stats stats() const;
  // The transport large values take now.
  Transport transport() const;
  // Any command; the reply's text as redis-cli would print it raw (arrays one element a line).
  Status Command(std::span<const std::string_view> words, std::string* reply);

 private:
  friend struct GpuEntry;  // moonpool/gpu.h
  explicit Client(std::shared_ptr<ClientImpl> impl);
  // The implementation; a new one after fork().
  ClientImpl& impl() const;

  mutable std::shared_ptr<ClientImpl> impl_;
};

}  // namespace moonpool::client
