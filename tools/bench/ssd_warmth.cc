// Rows about hits after a start: a restarted server beside one that starts with nothing.
//
// A trace is cut in two.  The second half runs on a server that has served the first half and was
// restarted, and on one that starts cold.  Steady is what a cache that has served the first half
// and forgets nothing would hit; a server is there with the first request from which on, over a
// window of requests, it has 90 % of that.
#include <algorithm>
#include <string>
#include <unordered_set>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/ssd_rows.h"
#include "tools/bench/trace.h"
#include "tools/bench/trace_generator.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kBlockBytes = 16 * 1024;
constexpr double kShareOfSteady = 0.9;
constexpr double kStopSeconds = 120;
constexpr uint64_t kLeastMemory = 32 << 20;
constexpr size_t kBatch = 256;

struct Served {
  uint64_t hits = 0;  // blocks that were read: the leading ones that were there
  double done_s = 0;  // since the server's start, its start-up included
};

// What `request` asks of an engine's cache: read the leading blocks that are there, write the rest.
class Engine {
 public:
  explicit Engine(const TestServer& server)
      : client_(ConnectClient(server.url("transport=shm"))),
        memory_(MemoryBlock::Anonymous(kBatch * kBlockBytes)) {}

  uint64_t Handle(const TraceRequest& request) {
    names_.clear();
    for (const uint64_t id : request.blocks) names_.push_back("block:" + std::to_string(id));
    keys_.assign(names_.begin(), names_.end());
    size_t present = 0;
    if (const auto status = client_->MatchPrefix(keys_, &present); !status.ok()) {
      throw Failure("MatchPrefix: " + status.message);
    }
    size_t read = 0;
    for (bool missed = false; read < present && !missed;) {
      const size_t count = std::min(kBatch, present - read);
      const auto results = client_->BatchGetInto(Keys(read, count), Buffers<client::Buffer>(count));
      for (const client::KeyResult& result : results) {
        if (!(missed = !result.ok())) ++read;
        if (missed) break;
      }
    }
    for (size_t first = read; first < keys_.size(); first += kBatch) {
      const size_t count = std::min(kBatch, keys_.size() - first);
      client_->BatchPutFrom(Keys(first, count), Buffers<client::ConstBuffer>(count));
    }
    return read;
  }

 private:
  std::span<const std::string_view> Keys(size_t first, size_t count) const {
    return std::span(keys_).subspan(first, count);
  }
  template <typename Buffer>
  std::vector<Buffer> Buffers(size_t count) const {
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < count; ++i)
      buffers.push_back({memory_.data() + i * kBlockBytes, kBlockBytes});
    return buffers;
  }

  const std::unique_ptr<client::Client> client_;
  const MemoryBlock memory_;
  std::vector<std::string> names_;
  std::vector<std::string_view> keys_;
};

std::vector<Served> Replay(const TestServer& server, std::span<const TraceRequest> requests) {
  Engine engine(server);
  std::vector<Served> served;
  const Stopwatch watch;
  for (const TraceRequest& request : requests) {
    const uint64_t hits = engine.Handle(request);
    served.push_back({hits, server.start_seconds() + watch.seconds()});
  }
  return served;
}

// The hits of a cache that forgets nothing, from the second half on.
std::vector<uint64_t> SteadyHits(const Trace& trace, size_t half) {
  std::unordered_set<uint64_t> known;
  std::vector<uint64_t> hits;
  for (size_t i = 0; i < trace.size(); ++i) {
    const auto& blocks = trace[i].blocks;
    const auto miss = std::find_if(blocks.begin(), blocks.end(),
                                   [&](uint64_t id) { return !known.contains(id); });
    if (i >= half) hits.push_back(static_cast<uint64_t>(miss - blocks.begin()));
    known.insert(blocks.begin(), blocks.end());
  }
  return hits;
}

// The first request from which on the hits of a window are near the steady ones.
size_t WarmFrom(const std::vector<Served>& served, const std::vector<uint64_t>& steady,
                size_t window) {
  for (size_t first = 0; first + window <= served.size(); ++first) {
    uint64_t ours = 0, wanted = 0;
    for (size_t i = first; i < first + window; ++i) {
      ours += served[i].hits;
      wanted += steady[i];
    }
    if (static_cast<double>(ours) >= kShareOfSteady * static_cast<double>(wanted)) return first;
  }
  return served.size() - 1;
}

double HitRatio(const std::vector<Served>& served, std::span<const TraceRequest> requests) {
  uint64_t hits = 0, accesses = 0;
  for (size_t i = 0; i < served.size(); ++i) {
    hits += served[i].hits;
    accesses += requests[i].blocks.size();
  }
  return static_cast<double>(hits) / static_cast<double>(accesses);
}

}  // namespace

void SsdWarmthRows(SsdComparison& comparison) {
  if (!comparison.WantsAny({"warm-seconds", "warm-requests"})) return;
  GeneratorOptions generator;
  generator.requests = comparison.quick() ? 1600 : 8000;
  Trace trace = comparison.options().trace.empty() ? GenerateTrace(generator)
                                                   : ReadTrace(comparison.options().trace);
  if (comparison.quick() && trace.size() > generator.requests) trace.resize(generator.requests);
  const size_t half = trace.size() / 2;
  const size_t window = comparison.quick() ? 100 : 200;
  if (half <= window) throw Failure("the trace is too short to be cut in two");
  const std::span<const TraceRequest> first(trace.data(), half);
  const std::span<const TraceRequest> second(trace.data() + half, trace.size() - half);
  const TraceStats stats = StatsOf(trace);
  const std::vector<uint64_t> steady = SteadyHits(trace, half);
  const uint64_t memory = std::max(stats.distinct * kBlockBytes / 20, kLeastMemory);
  const std::vector<std::string> flags = {"--bulk-threshold", "4096"};
  std::vector<Pair> seconds, requests;
  Figures warm_figures, cold_figures;
  for (int rep = 0; rep < comparison.reps(); ++rep) {
    const auto run = [&](const std::string& name, Figures* figures) {
      const auto server = comparison.Server(name, memory, flags);
      const auto served = Replay(*server, second);
      const size_t from = WarmFrom(served, steady, window);
      const double at_s = from == 0 ? server->start_seconds() : served[from - 1].done_s;
      figures->Add("requests", static_cast<double>(from));
      figures->Add("seconds", at_s);
      figures->Add("start-up s", server->start_seconds());
      figures->Add("replay s", served.back().done_s - server->start_seconds());
      figures->Add("prefix hit ratio", HitRatio(served, second));
      return std::pair(at_s, static_cast<double>(from + 1));
    };
    {
      const auto server = comparison.Server("warm", memory, flags);
      Replay(*server, first);
      warm_figures.Add("stop s", server->StopCleanly(kStopSeconds));
    }
    const auto warm = run("warm", &warm_figures);
    comparison.RemoveDirectory("warm");
    const auto cold = run("cold", &cold_figures);
    comparison.RemoveDirectory("cold");
    seconds.push_back({warm.first, cold.first});
    requests.push_back({warm.second, cold.second});
    Progress("90 % of steady hits after " + Short(warm.first) + " s, cold " + Short(cold.first) +
             " s; requests: " + Short(warm.second) + ", cold " + Short(cold.second));
  }
  uint64_t hits = 0, accesses = 0;
  for (size_t i = 0; i < steady.size(); ++i) {
    hits += steady[i];
    accesses += second[i].blocks.size();
  }
  comparison.Add(
      "warm-seconds", seconds,
      {{"ours (restarted)", warm_figures.Medians()},
       {"theirs (cold)", cold_figures.Medians()},
       {"steady prefix hit ratio", static_cast<double>(hits) / static_cast<double>(accesses)},
       {"requests", second.size()},
       {"window", window},
       {"distinct blocks", stats.distinct},
       {"DRAM share of them",
        static_cast<double>(memory) / static_cast<double>(stats.distinct * kBlockBytes)}});
  comparison.Add("warm-requests", requests, Json::object());
}

}  // namespace moonpool::bench
