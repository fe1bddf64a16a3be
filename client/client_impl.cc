#include "client/client_impl.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "client/async_queue.h"
#include "client/errors.h"
#include "client/gatherer.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace moonpool::client {

namespace {

// Shared memory that could not be attached is tried again after these.
constexpr std::chrono::milliseconds kFirstAttachPause{500};
constexpr std::chrono::milliseconds kLongestAttachPause{60000};
constexpr int kHousekeepingMs = 100;
// Commands sent before their replies are read.
constexpr size_t kPipeline = 512;

}  // namespace

bool Target::Accept(uint64_t bytes) const {
  if (text != nullptr) {
    text->resize(bytes);
    return true;
  }
  uint64_t room = 0;
  for (const Buffer& piece : pieces) room += piece.size;
  return bytes <= room;
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
      copier_(options_.copy_threads > 0 ? options_.copy_threads : DefaultCopyThreads()) {}

ClientImpl::~ClientImpl() {
  {
    MutexLock lock(async_mu_);
    async_.reset();
  }
  gatherer_.reset();
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  if (housekeeper_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_fd_.get(), &one, sizeof(one));
    housekeeper_.join();
  }
}

Status ClientImpl::Start() {
  Status status;
  if (!Borrow(&status)) return status;
  if (options_.gather_us > 0) gatherer_ = std::make_unique<Gatherer>(*this);
  if (options_.transport != Options::TransportChoice::kTcp) {
    wake_fd_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    housekeeper_ = std::thread([this] { Housekeep(); });
  }
  return {};
}

// --- channels ----------------------------------------------------------------------------------

ClientImpl::Borrowed ClientImpl::Borrow(Status* status) {
  std::shared_ptr<NodeMemory> memory;
  Options options = options_;
  const auto deadline = Clock::now() + std::chrono::milliseconds(options_.timeout_ms);
  {
    MutexLock lock(mu_);
    for (;;) {
      if (!idle_.empty()) {
        std::shared_ptr<Channel> channel = std::move(idle_.back());
        idle_.pop_back();
        // Without shared memory only because of a failure: try again now and then.
        const bool retry = !channel->shm() && !channel->plain() &&
                           options_.transport == Options::TransportChoice::kAuto &&
                           !channel->attach_error().empty() && attach_pause_.count() > 0 &&
                           Clock::now() >= attach_after_;
        if (!retry) return Borrowed(this, std::move(channel));
        --open_;
        break;
      }
      if (open_ < options_.connections) break;
      const auto left = deadline - Clock::now();
      if (left <= Clock::duration::zero() || !channel_free_.WaitFor(mu_, left)) {
        *status = {Code::kTimeout, "every connection stayed in use; raise connections"};
        return Borrowed(this, nullptr);
      }
    }
    ++open_;
    memory = memory_;
    if (options.transport == Options::TransportChoice::kAuto && attach_pause_.count() > 0 &&
        Clock::now() < attach_after_) {
      options.transport = Options::TransportChoice::kTcp;
    }
  }
  std::unique_ptr<Channel> opened;
  *status = Channel::Open(endpoint_, options, &memory, &opened);
  MutexLock lock(mu_);
  if (!status->ok()) {
    --open_;
    channel_free_.NotifyOne();
    return Borrowed(this, nullptr);
  }
  std::shared_ptr<Channel> channel(std::move(opened));
  all_.push_back(channel);
  if (channel->shm()) {
    memory_ = memory;
    attach_pause_ = std::chrono::milliseconds(0);
    using_shm_ = true;
  } else if (options.transport == Options::TransportChoice::kAuto && !channel->plain()) {
    counters_.attach_failures.fetch_add(1, std::memory_order_relaxed);
    attach_pause_ = std::clamp(attach_pause_ * 2, kFirstAttachPause, kLongestAttachPause);
    attach_after_ = Clock::now() + attach_pause_;
    using_shm_ = false;
  }
  return Borrowed(this, std::move(channel));
}

void ClientImpl::GiveBack(std::shared_ptr<Channel> channel) {
  const bool usable = channel->usable();
  {
    MutexLock lock(mu_);
    if (usable) {
      idle_.push_back(std::move(channel));
    } else {
      --open_;
      std::erase_if(all_, [](const std::weak_ptr<Channel>& c) { return c.expired(); });
    }
  }
  channel_free_.NotifyOne();
}

Status ClientImpl::WithChannel(const std::function<bool(Channel&)>& work) {
  Status status;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (attempt > 0) {
      counters_.reconnects.fetch_add(1, std::memory_order_relaxed);
      // The others are most likely of the same dead server.
      std::vector<std::shared_ptr<Channel>> stale;
      MutexLock lock(mu_);
      open_ -= static_cast<int>(idle_.size());
      stale.swap(idle_);
    }
    const Borrowed channel = Borrow(&status);
    if (!channel) return status;
    if (channel->has_releases()) channel->BeginReleases();
    if (work(*channel)) return {};
    status = channel->stream().failure();
    // A server that answers too slowly is not cured by asking it again.
    if (status.code != Code::kUnavailable) return status;
  }
  return status;
}

void ClientImpl::Housekeep() {
  std::vector<pollfd> polls;
  std::vector<std::shared_ptr<Channel>> channels;
  for (;;) {
    channels.clear();
    polls.assign(1, {wake_fd_.get(), POLLIN, 0});
    {
      MutexLock lock(mu_);
      if (stop_) return;
      for (const auto& weak : all_) {
        std::shared_ptr<Channel> channel = weak.lock();
        if (channel == nullptr || !channel->shm()) continue;
        polls.push_back({channel->attach_fd(), POLLIN, 0});
        channels.push_back(std::move(channel));
      }
    }
    poll(polls.data(), polls.size(), kHousekeepingMs);
    for (size_t i = 0; i < channels.size(); ++i) {
      if (polls[i + 1].revents != 0) channels[i]->Pump();
    }
    channels.clear();
    // What readers are done with must not wait for the next call.
    for (;;) {
      std::shared_ptr<Channel> owing;
      {
        MutexLock lock(mu_);
        const auto found = std::find_if(idle_.begin(), idle_.end(),
                                        [](const auto& channel) { return channel->has_releases(); });
        if (found == idle_.end()) break;
        owing = std::move(*found);
        idle_.erase(found);
      }
      owing->BeginReleases();
      owing->stream().Flush();
      GiveBack(std::move(owing));
    }
  }
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
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
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
  {
    MutexLock lock(mu_);
    for (const Buffer& other : registered_) {
      const auto other_begin = reinterpret_cast<uintptr_t>(other.data);
      if (begin < other_begin + other.size && other_begin < begin + size) {
        return {Code::kInvalidArgument, "the buffer overlaps one that is registered already"};
      }
    }
    registered_.push_back({data, size});
  }
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
  MutexLock lock(mu_);
  const size_t removed =
      std::erase_if(registered_, [data](const Buffer& buffer) { return buffer.data == data; });
  if (removed == 0) return {Code::kInvalidArgument, "the buffer is not registered"};
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
  stats.tcp = per_transport(Transport::kTcp);
  stats.inline_values = get(counters_.inline_values);
  stats.fallbacks = get(counters_.fallbacks);
  stats.generation_retries = get(counters_.generation_retries);
  stats.reconnects = get(counters_.reconnects);
  stats.attach_failures = get(counters_.attach_failures);
  stats.views = get(counters_.views);
  stats.view_copies = get(counters_.view_copies);
  stats.gathered_calls = get(counters_.gathered_calls);
  return stats;
}

Transport ClientImpl::transport() const {
  return using_shm_.load(std::memory_order_relaxed) ? Transport::kShm : Transport::kTcp;
}

}  // namespace moonpool::client
