#include "client/client_impl.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "client/async_queue.h"
#include "client/errors.h"
#include "client/gatherer.h"
#include "client/gpu_parked.h"
#include "client/gpu_transfer.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace moonpool::client {

namespace {

// Commands sent before their replies are read.
constexpr size_t kPipeline = 512;

}  // namespace

bool Target::Accept(uint64_t bytes) const {
  if (text != nullptr) {
    text->resize(bytes);
    return true;
  }
  // Pages are filled whole.
  if (pages != nullptr) return bytes == pages->bytes();
  uint64_t room = 0;
  for (const Buffer& piece : pieces) room += piece.size;
  return whole ? bytes == room : bytes <= room;
}

namespace {

int DefaultCopyThreads() {
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cores / 4, 1, 4);
}

}  // namespace

ClientImpl::ClientImpl(Endpoint endpoint, Options options)
    : endpoint_(std::move(endpoint)),
      options_(std::move(options)),
      forks_(ForkCount()),
      copier_(options_.copy_threads > 0 ? options_.copy_threads : DefaultCopyThreads()),
      parked_(std::make_shared<GpuParked>(static_cast<size_t>(options_.connections),
                                          [this] { StartHousekeeper(); })),
      rdma_(NewRdmaTransport(options_)) {}

ClientImpl::~ClientImpl() {
  std::unique_ptr<GpuFinisher> finisher;
  {
    MutexLock lock(async_mu_);
    async_.reset();
    finisher = std::move(finisher_);
  }
  const Clock::time_point deadline = Deadline();
  if (finisher != nullptr) finisher->Stop(deadline);
  gatherer_.reset();
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  std::thread housekeeper;
  {
    MutexLock lock(housekeeper_mu_);
    housekeeper = std::move(housekeeper_);
  }
  if (housekeeper.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_fd_.get(), &one, sizeof(one));
    housekeeper.join();
  }
  if (parked_->WaitUntil(deadline)) return;
  // To unpin memory takes a device that answers.
  std::vector<std::shared_ptr<const void>> memory;
  {
    MutexLock lock(mu_);
    if (memory_ != nullptr) memory = {memory_, memory_->KeepWhatGoes()};
  }
  parked_->Leak(std::move(memory));
}

Status ClientImpl::Start() {
  Status status;
  if (!Borrow(&status)) return status;
  if (options_.gather_us > 0) gatherer_ = std::make_unique<Gatherer>(*this);
  // Over tcp there is nothing to do before a device is given up.
  if (options_.transport != Options::TransportChoice::kTcp) StartHousekeeper();
  return {};
}

void ClientImpl::StartHousekeeper() {
  MutexLock lock(housekeeper_mu_);
  if (wake_fd_) return;
  wake_fd_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  housekeeper_ = std::thread([this] { Housekeep(); });
}

// --- simple commands ---------------------------------------------------------------------------

template <typename Item>
void ClientImpl::Batch<Item>::Done(size_t index, Code code, Transport transport, uint64_t bytes,
                                   std::string message) {
  KeyResult& result = results[index];
  result.code = code;
  result.transport = transport;
  result.bytes = bytes;
  result.message = std::move(message);
  result.elapsed_ns = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>((now ? *now : Clock::now()) - start)
          .count());
}
template struct ClientImpl::Batch<Target>;
template struct ClientImpl::Batch<Source>;

Status ClientImpl::Ping() {
  Status answer;
  const Status status = WithChannel([&](Channel& channel) {
    channel.stream().Begin(1);
    channel.stream().Word("PING");
    ReplyHeader reply;
    if (!channel.stream().Flush() || !channel.stream().Next(&reply)) return false;
    if (reply.is_error()) answer = FromErrorReply(reply.text);
    return true;
  });
  return status.ok() ? answer : status;
}

// One command per key, many at a time; on_reply(header, result) fills in code and bytes.
template <typename Reply>
std::vector<KeyResult> ClientImpl::PerKey(std::span<const std::string_view> keys,
                                          std::string_view command, Reply&& on_reply) {
  std::vector<KeyResult> results(keys.size());
  GetBatch batch{keys, {}, results, {}, Clock::now()};
  size_t done = 0;
  const Status status = WithChannel([&](Channel& channel) {
    RespStream& stream = channel.stream();
    while (done < keys.size()) {
      const size_t count = std::min(kPipeline, keys.size() - done);
      for (size_t i = 0; i < count; ++i) {
        stream.Begin(2);
        stream.Word(command);
        stream.Word(keys[done + i]);
      }
      if (!stream.Flush()) return false;
      for (size_t i = 0; i < count; ++i) {
        ReplyHeader reply;
        if (!stream.Next(&reply)) return false;
        if (reply.is_error()) {
          batch.Error(done, FromErrorReply(reply.text));
        } else if (reply.type != ':') {
          return stream.Unexpected(command);
        } else {
          batch.Done(done, on_reply(reply.value), Transport::kTcp);
        }
        ++done;
      }
    }
    return true;
  });
  for (; done < keys.size(); ++done) batch.Error(done, status);
  return results;
}

std::vector<KeyResult> ClientImpl::Remove(std::span<const std::string_view> keys) {
  return PerKey(keys, "DEL", [](int64_t n) { return n > 0 ? Code::kOk : Code::kMiss; });
}

std::vector<KeyResult> ClientImpl::Exist(std::span<const std::string_view> keys) {
  return PerKey(keys, "EXISTS", [](int64_t n) { return n > 0 ? Code::kOk : Code::kMiss; });
}

Status ClientImpl::MatchPrefix(std::span<const std::string_view> keys, size_t* present) {
  *present = 0;
  Status answer;
  const Status status = WithChannel([&](Channel& channel) {
    RespStream& stream = channel.stream();
    *present = 0;
    answer = {};
    while (*present < keys.size()) {
      const size_t count = std::min(channel.limits().max_batch_keys, keys.size() - *present);
      stream.Begin(2 + count);
      stream.Word("KV.MATCH");
      stream.Word(static_cast<int64_t>(count));
      for (size_t i = 0; i < count; ++i) stream.Word(keys[*present + i]);
      ReplyHeader reply;
      if (!stream.Flush() || !stream.Next(&reply)) return false;
      if (reply.is_error()) {
        answer = FromErrorReply(reply.text);
        return true;
      }
      if (reply.type != ':') return stream.Unexpected("KV.MATCH");
      *present += static_cast<size_t>(reply.value);
      if (static_cast<size_t>(reply.value) < count) break;
    }
    return true;
  });
  return status.ok() ? answer : status;
}

Status ClientImpl::Command(std::span<const std::string_view> words, std::string* text) {
  if (words.empty()) return {Code::kInvalidArgument, "an empty command"};
  Status answer;
  const Status status = WithChannel([&](Channel& channel) {
    RespStream& stream = channel.stream();
    stream.Begin(words.size());
    for (const std::string_view word : words) stream.Word(word);
    ReplyHeader reply;
    if (!stream.Flush() || !stream.Next(&reply)) return false;
    if (reply.is_error()) {
      answer = FromErrorReply(reply.text);
      return true;
    }
    text->clear();
    return stream.AppendText(reply, text);
  });
  return status.ok() ? answer : status;
}

// --- the rest ----------------------------------------------------------------------------------

AsyncQueue& ClientImpl::async() {
  MutexLock lock(async_mu_);
  if (async_ == nullptr) async_ = std::make_unique<AsyncQueue>(*this);
  return *async_;
}

Status ClientImpl::RegisterBuffer(void* data, size_t size) {
  if (data == nullptr || size == 0) return {Code::kInvalidArgument, "an empty buffer"};
  const auto begin = reinterpret_cast<uintptr_t>(data);
  gpu::Device* device = nullptr;
  if (DeviceMemoryPossible()) {
    MemoryLookup lookup(options_.gpu, {});
    if (Status found = lookup.DeviceOf(data, &device); !found.ok()) return found;
  }
  {
    MutexLock lock(mu_);
    for (const KnownMemory& other : *registered_) {
      if (begin < other.end && other.begin < begin + size) {
        return {Code::kInvalidArgument, "the buffer overlaps one that is registered already"};
      }
    }
    auto next = std::make_shared<KnownMemories>(*registered_);
    const auto behind = std::find_if(next->begin(), next->end(), [begin](const KnownMemory& other) {
      return other.begin > begin;
    });
    next->insert(behind, {begin, begin + size, device});
    registered_ = std::move(next);
  }
  if (device != nullptr) {
    const bool direct = options_.gpu_rdma != Options::GpuChoice::kNo;
    if (direct && device->info().dmabuf) rdma_->Declare(data, size, device);
    return {};
  }
  rdma_->Declare(data, size, nullptr);
  // Whole pages inside the buffer; the kernel faults them in without changing a byte.  Kernels
  // before 5.14 cannot, and then the first transfer does it.
  const uintptr_t first = (begin + 4095) & ~uintptr_t{4095};
  const uintptr_t last = (begin + size) & ~uintptr_t{4095};
  if (last > first) {
    [[maybe_unused]] const int advised =
        madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_WRITE);
  }
  return {};
}

Status ClientImpl::UnregisterBuffer(void* data) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  KnownMemory found;
  {
    MutexLock lock(mu_);
    for (const KnownMemory& memory : *registered_) {
      if (memory.begin == begin) found = memory;
    }
  }
  if (found.begin == 0) return {Code::kInvalidArgument, "the buffer is not registered"};
  // Servers know it by their sessions.
  VisitQueuePairs([&](RdmaSession& rdma) { rdma.Forget(data, found.end - found.begin); });
  rdma_->Withdraw(data);
  MutexLock lock(mu_);
  auto rest = std::make_shared<KnownMemories>(*registered_);
  std::erase_if(*rest, [begin](const KnownMemory& memory) { return memory.begin == begin; });
  registered_ = std::move(rest);
  return {};
}

Stats ClientImpl::stats() const {
  const auto get = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  const auto per_transport = [&](Transport transport) {
    const auto t = static_cast<size_t>(transport);
    return Stats::PerTransport{get(counters_.values_read[t]), get(counters_.values_written[t]),
                               get(counters_.bytes_read[t]), get(counters_.bytes_written[t])};
  };
  Stats stats;
  stats.shm = per_transport(Transport::kShm);
  stats.rdma = per_transport(Transport::kRdma);
  stats.tcp = per_transport(Transport::kTcp);
  stats.cuda = per_transport(Transport::kCuda);
  stats.inline_values = get(counters_.inline_values);
  stats.fallbacks = get(counters_.fallbacks);
  stats.tcp_by_choice = get(counters_.tcp_by_choice);
  stats.generation_retries = get(counters_.generation_retries);
  stats.reconnects = get(counters_.reconnects);
  stats.attach_failures = get(counters_.attach_failures);
  stats.rdma_failures = get(counters_.rdma_failures);
  stats.rdma_registered_bytes = rdma_->registered_bytes();
  stats.rdma_staged_values = get(counters_.rdma_staged_values);
  stats.rdma_error = rdma_->error();
  stats.views = get(counters_.views);
  stats.view_copies = get(counters_.view_copies);
  stats.gathered_calls = get(counters_.gathered_calls);
  stats.gpu_values = get(counters_.gpu_values);
  stats.gpu_staged_values = get(counters_.gpu_staged_values);
  stats.gpu_unpinned_values = get(counters_.gpu_unpinned_values);
  stats.gpu_rdma_direct_values = get(counters_.gpu_rdma_direct_values);
  stats.gpu_rdma_error = rdma_->device_memory_error();
  parked_->Look();
  stats.gpu_parked_values = parked_->values();
  MutexLock lock(mu_);
  stats.gpu_error = memory_ != nullptr ? memory_->import_error() : std::string();
  return stats;
}

Transport ClientImpl::transport() const {
  const Transport in_use = in_use_.load(std::memory_order_relaxed);
  const bool open = options_.transport == Options::TransportChoice::kAuto;
  return in_use == Transport::kRdma && open ? read_pace_.preferred() : in_use;
}

// --- RDMA or tcp -------------------------------------------------------------------------------

Transport ClientImpl::ChooseFor(Pace& pace, uint64_t bytes) {
  if (options_.transport != Options::TransportChoice::kAuto) return Transport::kRdma;
  return pace.Choose(bytes);
}

template <typename Item>
void ClientImpl::Learn(Pace& pace, Transport chosen, uint64_t bytes, const Batch<Item>& batch) {
  const uint64_t threshold = bulk_threshold_.load(std::memory_order_relaxed);
  uint64_t moved = 0;
  uint64_t values = 0;
  for (const KeyResult& result : batch.results) {
    if (!result.ok() || result.bytes < threshold) continue;
    moved += result.bytes;
    ++values;
  }
  if (chosen == Transport::kTcp) {
    counters_.tcp_by_choice.fetch_add(values, std::memory_order_relaxed);
  }
  if (options_.transport != Options::TransportChoice::kAuto) return;
  pace.Took(chosen, bytes, moved, Clock::now() - batch.start);
}
template void ClientImpl::Learn(Pace&, Transport, uint64_t, const Batch<Target>&);
template void ClientImpl::Learn(Pace&, Transport, uint64_t, const Batch<Source>&);

}  // namespace moonpool::client
