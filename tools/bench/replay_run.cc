#include "tools/bench/replay_run.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

// Blocks are read and written in pieces of at most this many bytes per client.
constexpr uint64_t kPieceBytes = 32ull << 20;

}  // namespace

void OperationFigures::Merge(const OperationFigures& other) {
  calls.Merge(other.calls);
  blocks += other.blocks;
  bytes += other.bytes;
  busy_ns += other.busy_ns;
}

double OperationFigures::GbPerSecond() const {
  return busy_ns == 0 ? 0 : static_cast<double>(bytes) / static_cast<double>(busy_ns);
}

void RunFigures::Merge(const RunFigures& other) {
  for (size_t i = 0; i < operations.size(); ++i) {
    for (size_t t = 0; t < operations[i].size(); ++t) {
      operations[i][t].Merge(other.operations[i][t]);
    }
  }
  requests += other.requests;
  accesses += other.accesses;
  prefix_hits += other.prefix_hits;
  stranded_hits += other.stranded_hits;
  lost += other.lost;
  verified_bytes += other.verified_bytes;
  wrong_blocks += other.wrong_blocks;
  errors += other.errors;
  if (first_error.empty()) first_error = other.first_error;
  late.Merge(other.late);
}

struct TraceRun::State {
  State(const Trace& t, const RunSettings& s)
      : trace(t), settings(s), client(ConnectClient(s.url + UrlOptions(s))) {}

  static std::string UrlOptions(const RunSettings& s) {
    return (s.url.find('?') == std::string::npos ? "?" : "&") + ("transport=" + s.transport) +
           "&connections=" + std::to_string(s.clients);
  }

  void Work(RunFigures* figures);

  const Trace& trace;
  const RunSettings settings;
  const std::unique_ptr<client::Client> client;
  uint64_t start_ns = 0;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  std::mutex mu;
  std::condition_variable worker_ended;
  int running = 0;  // guarded by mu
  std::vector<RunFigures> figures;
  std::vector<std::thread> threads;
};

namespace {

// One client: its buffers and its figures.
class Replayer {
 public:
  Replayer(client::Client& client, const RunSettings& settings, RunFigures* figures)
      : client_(client),
        settings_(settings),
        figures_(*figures),
        piece_blocks_(std::max<size_t>(kPieceBytes / settings.block_bytes, 1)),
        memory_(MemoryBlock::Anonymous(piece_blocks_ * settings.block_bytes)) {}

  void Handle(const TraceRequest& request, uint64_t version) {
    names_.clear();
    for (const uint64_t id : request.blocks) {
      names_.push_back(settings_.key_prefix + ":" + std::to_string(id));
    }
    keys_.assign(names_.begin(), names_.end());
    const size_t present = Match();
    const size_t read = Read(request, present);
    Write(request, read, version);
    ++figures_.requests;
    figures_.accesses += request.blocks.size();
    figures_.prefix_hits += read;
  }

  // Writes `bytes` under names nobody else has, and removes them.
  void Warm(uint64_t bytes, int number) {
    const uint64_t blocks = bytes / settings_.block_bytes;
    for (uint64_t first = 0; first < blocks; first += piece_blocks_) {
      names_.clear();
      for (uint64_t i = first; i < std::min(blocks, first + piece_blocks_); ++i) {
        names_.push_back(settings_.key_prefix + ":warm:" + std::to_string(number) + ":" +
                         std::to_string(i));
      }
      keys_.assign(names_.begin(), names_.end());
      client_.BatchPutFrom(keys_, Buffers<client::ConstBuffer>(keys_.size()));
      warmed_.insert(warmed_.end(), names_.begin(), names_.end());
    }
    keys_.assign(warmed_.begin(), warmed_.end());
    client_.BatchRemove(keys_);
    warmed_.clear();
  }

 private:
  char* at(size_t i) const { return memory_.data() + i * settings_.block_bytes; }

  template <typename Buffer>
  std::vector<Buffer> Buffers(size_t count) const {
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < count; ++i) buffers.push_back({at(i), settings_.block_bytes});
    return buffers;
  }

  std::span<const std::string_view> Keys(size_t first, size_t count) const {
    return std::span(keys_).subspan(first, count);
  }

  void Error(const client::KeyResult& result, const char* what) {
    ++figures_.errors;
    if (!figures_.first_error.empty()) return;
    figures_.first_error =
        std::string(what) + ": " + std::string(CodeName(result.code)) + " " + result.message;
  }

  void Record(RunFigures::Operation operation, client::Transport transport, uint64_t ns,
              uint64_t blocks, uint64_t bytes) {
    OperationFigures& figures =
        figures_.operations[operation][static_cast<size_t>(transport)];
    figures.calls.Record(ns);
    figures.busy_ns += ns;
    figures.blocks += blocks;
    figures.bytes += bytes;
  }

  // The transport that moved the first value of a call; calls do not mix them but in a fallback.
  static client::Transport TransportOf(const std::vector<client::KeyResult>& results) {
    for (const client::KeyResult& result : results) {
      if (result.ok()) return result.transport;
    }
    return client::Transport::kNone;
  }

  size_t Match() {
    size_t present = 0;
    const Stopwatch watch;
    const client::Status status = client_.MatchPrefix(keys_, &present);
    Record(RunFigures::kMatch, client::Transport::kNone, watch.ns(), keys_.size(), 0);
    if (!status.ok()) Error({status.code, client::Transport::kNone, 0, 0, status.message}, "match");
    return status.ok() ? present : 0;
  }

  // How many leading blocks were read.
  size_t Read(const TraceRequest& request, size_t present) {
    for (size_t first = 0; first < present; first += piece_blocks_) {
      const size_t count = std::min(piece_blocks_, present - first);
      const auto buffers = Buffers<client::Buffer>(count);
      const Stopwatch watch;
      const auto results = client_.BatchGetInto(Keys(first, count), buffers);
      const uint64_t ns = watch.ns();
      size_t good = 0;
      while (good < count && results[good].ok()) ++good;
      Record(RunFigures::kRead, TransportOf(results), ns, good, good * settings_.block_bytes);
      for (size_t i = 0; i < good; ++i) Verify(results[i], request.blocks[first + i], i);
      if (good == count) continue;
      if (results[good].code == client::Code::kMiss) {
        ++figures_.lost;
      } else {
        Error(results[good], "read");
      }
      return first + good;
    }
    return present;
  }

  void Verify(const client::KeyResult& result, uint64_t id, size_t i) {
    if (!settings_.verify) return;
    if (result.bytes == settings_.block_bytes && CheckPattern(at(i), result.bytes, id)) {
      figures_.verified_bytes += result.bytes;
    } else {
      ++figures_.wrong_blocks;
    }
  }

  // Writes the blocks from `first` on that are not there.
  void Write(const TraceRequest& request, size_t first, uint64_t version) {
    std::vector<size_t> missing;
    if (first < keys_.size()) {
      const Stopwatch watch;
      const auto results = client_.BatchIsExist(Keys(first, keys_.size() - first));
      Record(RunFigures::kExists, client::Transport::kNone, watch.ns(), results.size(), 0);
      for (size_t i = 0; i < results.size(); ++i) {
        if (results[i].ok()) {
          ++figures_.stranded_hits;
        } else {
          missing.push_back(first + i);
        }
      }
    }
    for (size_t from = 0; from < missing.size(); from += piece_blocks_) {
      const size_t count = std::min(piece_blocks_, missing.size() - from);
      std::vector<std::string_view> keys;
      for (size_t i = 0; i < count; ++i) {
        keys.push_back(keys_[missing[from + i]]);
        FillPattern(at(i), settings_.block_bytes, request.blocks[missing[from + i]], version);
      }
      const auto buffers = Buffers<client::ConstBuffer>(count);
      const Stopwatch watch;
      const auto results = client_.BatchPutFrom(keys, buffers);
      const uint64_t ns = watch.ns();
      uint64_t written = 0;
      for (const client::KeyResult& result : results) {
        if (result.ok()) {
          ++written;
        } else {
          Error(result, "write");
        }
      }
      Record(RunFigures::kWrite, TransportOf(results), ns, written,
             written * settings_.block_bytes);
    }
  }

  client::Client& client_;
  const RunSettings& settings_;
  RunFigures& figures_;
  const size_t piece_blocks_;
  const MemoryBlock memory_;
  std::vector<std::string> names_;
  std::vector<std::string> warmed_;
  std::vector<std::string_view> keys_;
};

}  // namespace

void TraceRun::State::Work(RunFigures* out) {
  Replayer replayer(*client, settings, out);
  for (;;) {
    const size_t index = next.fetch_add(1);
    if (index >= trace.size()) return;
    const TraceRequest& request = trace[index];
    if (settings.speed > 0) {
      const double seconds =
          static_cast<double>(request.timestamp_ms - trace[0].timestamp_ms) / 1e3;
      const uint64_t due_ns = start_ns + Nanoseconds(seconds / settings.speed);
      const uint64_t now_ns = NowNs();
      if (now_ns < due_ns) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(due_ns - now_ns));
      }
      out->late.Record(NowNs() - std::min(due_ns, NowNs()));
    }
    // A block's content follows from its id and the request that wrote it.
    replayer.Handle(request, index + 1);
    done.fetch_add(1, std::memory_order_relaxed);
  }
}

TraceRun::TraceRun(const Trace& trace, const RunSettings& settings)
    : state_(std::make_unique<State>(trace, settings)) {
  if (settings.block_bytes < kLeastPatternBytes) throw Failure("the blocks are too small");
}

TraceRun::~TraceRun() {
  state_->next = state_->trace.size();
  for (std::thread& thread : state_->threads) {
    if (thread.joinable()) thread.join();
  }
}

void TraceRun::Warm() {
  if (state_->settings.warm_bytes == 0) return;
  std::vector<std::thread> threads;
  const int clients = state_->settings.clients;
  for (int i = 0; i < clients; ++i) {
    threads.emplace_back([this, i, clients] {
      RunFigures ignored;
      Replayer(*state_->client, state_->settings, &ignored)
          .Warm(state_->settings.warm_bytes / static_cast<uint64_t>(clients), i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void TraceRun::Start() {
  State& state = *state_;
  state.figures.resize(static_cast<size_t>(state.settings.clients));
  state.running = state.settings.clients;
  state.start_ns = NowNs();
  for (RunFigures& figures : state.figures) {
    state.threads.emplace_back([&state, &figures] {
      state.Work(&figures);
      const std::lock_guard lock(state.mu);
      --state.running;
      state.worker_ended.notify_all();
    });
  }
}

bool TraceRun::Wait() {
  std::unique_lock lock(state_->mu);
  return state_->worker_ended.wait_for(lock, std::chrono::seconds(1),
                                       [this] { return state_->running == 0; });
}

uint64_t TraceRun::done() const { return state_->done.load(std::memory_order_relaxed); }

RunFigures TraceRun::Finish() {
  RunFigures total;
  total.seconds = Seconds(NowNs() - state_->start_ns);
  for (std::thread& thread : state_->threads) thread.join();
  for (const RunFigures& figures : state_->figures) total.Merge(figures);
  total.library = state_->client->stats();
  return total;
}

}  // namespace moonpool::bench
