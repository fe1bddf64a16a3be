// Rows about small values: operations per second of server processor, loops, fairness.
#include <algorithm>
#include <atomic>
#include <thread>

#include "tools/bench/bare_server.h"
#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/stall_watch.h"
#include "tools/bench/urgent.h"
#include "tools/bench/value_socket.h"

namespace moonpool::bench {

namespace {

constexpr int kClients = 50;
constexpr size_t kValueBytes = 64;
constexpr size_t kMillion = 1'000'000;

struct Measured {
  double operations_per_cpu_s = 0;
  double cpu_us_per_operation = 0;
  double rate = 0;
};

// The server is idle before and after, so that its threads' clocks are exact.
Measured Measure(const TestServer& server, LoadGenerator& load, double seconds, double rate,
                 Figures* figures) {
  const double before = server.CpuSeconds();
  const LoadResult result = rate > 0 ? load.RunAtRate(seconds, rate) : load.Run(seconds);
  const double cpu_s = server.CpuSeconds() - before;
  const auto operations = static_cast<double>(result.operations);
  figures->Add("ops/s", result.rate());
  figures->Add("p50 us", result.latency.PercentileUs(50));
  figures->Add("p99 us", result.latency.PercentileUs(99));
  figures->Add("CPU s/M ops", cpu_s / operations * 1e6);
  figures->Add("cores busy", cpu_s / result.seconds);
  return {operations / cpu_s, cpu_s / operations * 1e6, result.rate()};
}

void CompareOperation(Comparison& comparison, std::string_view id, const TestServer& moonpool,
                      const TestServer& redis, const Requests& requests, int pipeline) {
  if (!comparison.Wants(id)) return;
  LoadGenerator ours(moonpool.port(), requests, kClients, pipeline);
  LoadGenerator theirs(redis.port(), requests, kClients, pipeline);
  const double seconds = comparison.seconds(1.5, 0.3);
  ours.Run(seconds / 4);
  theirs.Run(seconds / 4);
  Figures our_figures, their_figures;
  comparison.Row(
      id,
      [&] {
        return Measure(moonpool, ours, seconds, 0, &our_figures).operations_per_cpu_s;
      },
      [&] { return Measure(redis, theirs, seconds, 0, &their_figures).operations_per_cpu_s; },
      [&] { return Json{{"ours", our_figures.Medians()}, {"theirs", their_figures.Medians()}}; });
}

}  // namespace

double SmallP99(LoadGenerator& load, double seconds, Figures* figures) {
  constexpr double kRate = 5000;
  const Urgent urgent;
  StallWatch watch;
  const LoadResult result = load.RunAtRate(seconds, kRate);
  const std::vector<Stall> stalls = watch.Stop();
  uint64_t stalled_ns = 0;
  for (const Stall& stall : stalls) stalled_ns += stall.end_ns - stall.begin_ns;
  // What was due or under way in none of them.
  Histogram others;
  for (const LoadResult::Times& times : result.times) {
    if (std::none_of(stalls.begin(), stalls.end(), [&](const Stall& stall) {
          return times.due_ns < stall.end_ns && times.reply_ns > stall.begin_ns;
        })) {
      others.Record(times.reply_ns - times.due_ns);
    }
  }
  figures->Add("p50 us", result.latency.PercentileUs(50));
  figures->Add("p99 us", result.latency.PercentileUs(99));
  figures->Add("p99.9 us", result.latency.PercentileUs(99.9));
  figures->Add("machine stalled ms/s", static_cast<double>(stalled_ns) / 1e6 / result.seconds);
  figures->Add("p99 us without stalls", others.PercentileUs(99));
  return result.latency.PercentileUs(99);
}

void SmallOperationRows(Comparison& comparison) {
  if (!comparison.WantsAny({"get-p1", "set-p1", "get-p16", "set-p16", "get-million",
                            "set-million", "get-p128", "set-p128"})) {
    return;
  }
  const auto moonpool = comparison.Moonpool({"--io-threads", "1"});
  const auto redis = comparison.Redis();
  // One key, as redis-benchmark without -r has it.
  const Requests sets = SetRequests(1, kValueBytes);
  const Requests gets = GetRequests(1, kValueBytes);
  for (const TestServer* server : {moonpool.get(), redis.get()}) {
    LoadGenerator(server->port(), sets, 1, 1).RunOperations(1);
  }
  CompareOperation(comparison, "get-p1", *moonpool, *redis, gets, 1);
  CompareOperation(comparison, "set-p1", *moonpool, *redis, sets, 1);
  CompareOperation(comparison, "get-p16", *moonpool, *redis, gets, 16);
  CompareOperation(comparison, "set-p16", *moonpool, *redis, sets, 16);
  CompareOperation(comparison, "get-p128", *moonpool, *redis, gets, 128);
  CompareOperation(comparison, "set-p128", *moonpool, *redis, sets, 128);
  if (!comparison.WantsAny({"get-million", "set-million"})) return;
  const Requests million_sets = SetRequests(kMillion, kValueBytes);
  const Requests million_gets = GetRequests(kMillion, kValueBytes);
  for (const TestServer* server : {moonpool.get(), redis.get()}) {
    LoadGenerator(server->port(), million_sets, kClients, 16).RunOperations(kMillion);
  }
  // Moonpool begins to prefetch at its next look at the number of keys.
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CompareOperation(comparison, "get-million", *moonpool, *redis, million_gets, 16);
  CompareOperation(comparison, "set-million", *moonpool, *redis, million_sets, 16);
}

void LoopRows(Comparison& comparison) {
  if (!comparison.WantsAny({"loops-p1", "loops-p16"})) return;
  const auto one = comparison.Moonpool({"--io-threads", "1"});
  const auto two = comparison.Moonpool({"--io-threads", "2"});
  const Requests sets = SetRequests(1, kValueBytes);
  const Requests gets = GetRequests(1, kValueBytes);
  for (const TestServer* server : {one.get(), two.get()}) {
    LoadGenerator(server->port(), sets, 1, 1).RunOperations(1);
  }
  for (const int pipeline : {1, 16}) {
    const std::string id = "loops-p" + std::to_string(pipeline);
    if (!comparison.Wants(id)) continue;
    LoadGenerator to_one(one->port(), gets, kClients, pipeline);
    LoadGenerator to_two(two->port(), gets, kClients, pipeline);
    const double seconds = comparison.seconds(2, 0.4);
    to_two.Run(seconds / 4);
    // What one loop can do sets the rate that both are offered.
    const double rate = 0.6 * to_one.Run(seconds / 2).rate();
    Figures figures_one, figures_two;
    comparison.Row(
        id,
        [&] {
          return Measure(*two, to_two, seconds, rate, &figures_two).cpu_us_per_operation;
        },
        [&] {
          return Measure(*one, to_one, seconds, rate, &figures_one).cpu_us_per_operation;
        },
        [&] {
          return Json{{"offered ops/s", rate},
                      {"two loops", figures_two.Medians()},
                      {"one loop", figures_one.Medians()}};
        });
  }
}

namespace {

constexpr uint64_t kStreamedBytes = 100'000'000;

// Reads 100 MB values, one after the other, until it goes.
class Streaming {
 public:
  explicit Streaming(int port) : thread_([this, port] {
      GiveWay();
      ValueSocket socket(port, 64 * 1024);  // as most Redis clients read
      while (!stop_) {
        socket.Get("large", kStreamedBytes);
        ++values_;
      }
    }) {}
  ~Streaming() {
    stop_ = true;
    thread_.join();
  }
  uint64_t values() const { return values_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> values_{0};
  std::thread thread_;
};

double StreamingP99(const TestServer& server, LoadGenerator& load, double seconds,
                    Figures* figures) {
  const Streaming streaming(server.port());
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const uint64_t before = streaming.values();
  const Stopwatch watch;
  const double p99 = SmallP99(load, seconds, figures);
  figures->Add("streamed GB/s", static_cast<double>((streaming.values() - before) *
                                                    kStreamedBytes) / watch.seconds() / 1e9);
  return p99;
}

void StreamingRow(Comparison& comparison) {
  const Requests sets = SetRequests(1, kValueBytes);
  const Requests gets = GetRequests(1, kValueBytes);
  constexpr int kFew = 16;
  const auto moonpool = comparison.Moonpool();
  const auto redis = comparison.Redis();
  for (const TestServer* server : {moonpool.get(), redis.get()}) {
    LoadGenerator(server->port(), sets, 1, 1).RunOperations(1);
    ValueSocket(server->port()).Set("large", kStreamedBytes);
  }
  LoadGenerator load(moonpool->port(), gets, kFew, 1);
  const double seconds = comparison.seconds(3, 1);
  SmallP99(load, seconds / 4, std::make_unique<Figures>().get());
  Figures beside, alone, redis_beside, redis_alone;
  comparison.Row(
      "p99-streaming", [&] { return StreamingP99(*moonpool, load, seconds, &beside); },
      [&] { return SmallP99(load, seconds, &alone); },
      [&] {
        LoadGenerator redis_load(redis->port(), gets, kFew, 1);
        SmallP99(redis_load, seconds, &redis_alone);
        StreamingP99(*redis, redis_load, seconds, &redis_beside);
        return Json{{"ours (beside)", beside.Medians()},
                    {"theirs (alone)", alone.Medians()},
                    {"redis beside, once", redis_beside.Medians()},
                    {"redis alone, once", redis_alone.Medians()}};
      });
}

}  // namespace

void FairnessRows(Comparison& comparison) {
  if (comparison.Wants("p99-streaming")) StreamingRow(comparison);
  if (!comparison.Wants("clients-1000")) return;
  const auto moonpool = comparison.Moonpool({"--io-threads", "1"});
  const Requests sets = SetRequests(1, kValueBytes);
  const Requests gets = GetRequests(1, kValueBytes);
  LoadGenerator(moonpool->port(), sets, 1, 1).RunOperations(1);
  LoadGenerator many(moonpool->port(), gets, 1000, 1);
  LoadGenerator few(moonpool->port(), gets, kClients, 1);
  const double seconds = comparison.seconds(1.5, 0.4);
  many.Run(seconds / 4);
  few.Run(seconds / 4);
  // Nobody asks for it, but what the kernel alone makes of so many sockets no server can undo.
  std::string reply = "$64\r\n" + std::string(kValueBytes, 'x') + "\r\n";
  const BareServer bare(gets.request_bytes, reply);
  LoadGenerator bare_many(bare.port(), gets, 1000, 1), bare_few(bare.port(), gets, kClients, 1);
  Figures many_figures, few_figures, bare_figures;
  comparison.Row(
      "clients-1000", [&] { return Measure(*moonpool, many, seconds, 0, &many_figures).rate; },
      [&] {
        const double rate = Measure(*moonpool, few, seconds, 0, &few_figures).rate;
        const double bare_rate = bare_many.Run(seconds).rate();
        bare_figures.Add("1,000 clients ops/s", bare_rate);
        bare_figures.Add("1,000 vs 50", bare_rate / bare_few.Run(seconds).rate());
        return rate;
      },
      [&] {
        return Json{{"1,000 clients", many_figures.Medians()},
                    {"50 clients", few_figures.Medians()},
                    {"a loop that only receives and sends", bare_figures.Medians()}};
      });
}

}  // namespace moonpool::bench
