#include "tools/bench/replay.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <thread>

#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/replay_run.h"
#include "tools/bench/trace_generator.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kGeneratedRequests = 4000;
constexpr uint64_t kQuickRequests = 1500;
// Blocks of a scaled run: large enough to be carried as large values are.
constexpr uint64_t kLeastBlock = 256 << 10;
constexpr uint64_t kLargestBlock = 1 << 20;
constexpr uint64_t kLargestCapacity = 4ull << 30;

Trace LoadTrace(const ReplayOptions& options) {
  uint64_t requests = options.requests;
  if (requests == 0 && options.common.quick) requests = kQuickRequests;
  if (options.trace.empty()) {
    return GenerateTrace({requests != 0 ? requests : kGeneratedRequests, options.seed,
                          options.block_tokens});
  }
  Trace trace = ReadTrace(options.trace);
  if (requests != 0 && requests < trace.size()) trace.resize(requests);
  return trace;
}

std::vector<std::string> Transports(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream text(list);
  for (std::string name; std::getline(text, name, ',');) {
    if (name != "auto" && name != "shm" && name != "rdma" && name != "tcp") {
      throw Failure("--transport: '" + name + "' is not auto, shm, rdma or tcp");
    }
    names.push_back(name);
  }
  if (names.empty()) throw Failure("--transport needs auto, shm, rdma or tcp");
  return names;
}

double SpeedOf(const std::string& text) {
  if (text == "fast") return 0;
  if (text == "realtime") return 1;
  char* end = nullptr;
  const double factor = std::strtod(text.c_str(), &end);
  if (*end != '\0' || factor <= 0) {
    throw Failure("--speed: '" + text + "' is not fast, realtime, or a positive number");
  }
  return factor;
}

// As much memory as a server of our own may take here.
uint64_t Capacity(const ReplayOptions& options) {
  if (!options.capacity.empty()) return ParseBytes(options.capacity);
  std::ifstream file("/proc/meminfo");
  uint64_t available = kLargestCapacity;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("MemAvailable:", 0) == 0) {
      available = std::strtoull(line.c_str() + std::string("MemAvailable:").size(), nullptr, 10)
                  << 10;
    }
  }
  const uint64_t quarter = available / 4 >> 20 << 20;
  return std::min(quarter, options.common.quick ? kLargestCapacity / 2 : kLargestCapacity);
}

// The size of a block in this run, and how many times smaller than real that is.
struct Scaling {
  uint64_t real_bytes;
  uint64_t block_bytes;
  double factor;
};

Scaling Scale(const ReplayOptions& options, const TraceStats& stats, uint64_t capacity) {
  Scaling scaling{options.bytes_per_token * options.block_tokens, 0, 1};
  if (options.scale == "fit") {
    // All distinct blocks at once, if that leaves them large enough.
    const uint64_t fair = capacity / 100 * 85 / std::max<uint64_t>(stats.distinct, 1);
    scaling.block_bytes = kLargestBlock;
    while (scaling.block_bytes > kLeastBlock && scaling.block_bytes > fair) {
      scaling.block_bytes /= 2;
    }
    scaling.block_bytes = std::min(scaling.block_bytes, scaling.real_bytes);
  } else {
    char* end = nullptr;
    const double factor = std::strtod(options.scale.c_str(), &end);
    if (*end != '\0' || factor < 1) {
      throw Failure("--scale: '" + options.scale + "' is neither 'fit' nor a number from 1 on");
    }
    scaling.block_bytes =
        static_cast<uint64_t>(static_cast<double>(scaling.real_bytes) / factor) / 8 * 8;
  }
  scaling.block_bytes = std::max<uint64_t>(scaling.block_bytes, 64);
  scaling.factor =
      static_cast<double>(scaling.real_bytes) / static_cast<double>(scaling.block_bytes);
  return scaling;
}

std::string Percent(uint64_t part, uint64_t whole) {
  return Short(100.0 * static_cast<double>(part) / static_cast<double>(std::max<uint64_t>(whole, 1))) +
         " %";
}

uint64_t MovedBytes(const RunFigures& run) {
  uint64_t moved = 0;
  for (const auto operation : {RunFigures::kRead, RunFigures::kWrite}) {
    for (const OperationFigures& figures : run.operations[operation]) moved += figures.bytes;
  }
  return moved;
}

// By client::Transport.
constexpr std::array<const char*, client::kTransports> kTransportNames = {"-", "shm", "rdma", "tcp",
                                                                        "cuda"};

Row Plain(const std::string& transport, const std::string& name, const std::string& unit,
          double ours, std::optional<double> theirs = std::nullopt) {
  Row row;
  row.id = transport + "-" + name;
  std::replace(row.id.begin(), row.id.end(), ' ', '-');
  row.name = transport + ": " + name;
  row.unit = unit;
  row.ours = ours;
  row.theirs = theirs;
  if (theirs && *theirs != 0) row.ratio = ours / *theirs;
  return row;
}

void AddRows(const std::string& wanted, const RunFigures& run, const TraceStats& stats,
             std::vector<Row>* rows) {
  static constexpr const char* kNames[] = {"match", "read", "exists", "write"};
  for (size_t operation = 0; operation < run.operations.size(); ++operation) {
    for (size_t t = 0; t < kTransportNames.size(); ++t) {
      const OperationFigures& figures = run.operations[operation][t];
      if (figures.calls.count() == 0) continue;
      // What only asks for values that turned out to be gone moved nothing.
      if (t == 0 && (operation == RunFigures::kRead || operation == RunFigures::kWrite)) continue;
      std::string name = kNames[operation];
      if (t > 0) name += std::string(" over ") + kTransportNames[t];
      if (figures.bytes > 0) {
        rows->push_back(Plain(wanted, name, "GB/s per client", figures.GbPerSecond()));
      }
      Row row = Plain(wanted, name + " p50", "us/call", figures.calls.PercentileUs(50));
      row.details = {{"p50 us", figures.calls.PercentileUs(50)},
                     {"p90 us", figures.calls.PercentileUs(90)},
                     {"p99 us", figures.calls.PercentileUs(99)},
                     {"calls", figures.calls.count()},
                     {"blocks", figures.blocks},
                     {"bytes", figures.bytes}};
      rows->push_back(std::move(row));
    }
  }
  const auto share = [&](uint64_t part) {
    return static_cast<double>(part) / static_cast<double>(std::max<uint64_t>(run.accesses, 1));
  };
  rows->push_back(Plain(wanted, "prefix hit ratio vs infinite cache", "of blocks",
                        share(run.prefix_hits), stats.infinite_hit_ratio));
  rows->push_back(Plain(wanted, "block hit ratio vs infinite cache", "of blocks",
                        share(run.prefix_hits + run.stranded_hits), stats.infinite_hit_ratio));
  rows->push_back(Plain(wanted, "all clients together", "GB/s",
                        static_cast<double>(MovedBytes(run)) / run.seconds / 1e9));
  rows->push_back(Plain(wanted, "requests", "1/s",
                        static_cast<double>(run.requests) / run.seconds));
  rows->push_back(Plain(wanted, "verified", "bytes", static_cast<double>(run.verified_bytes)));
  rows->push_back(Plain(wanted, "wrong blocks", "", static_cast<double>(run.wrong_blocks)));
  rows->push_back(Plain(wanted, "errors", "", static_cast<double>(run.errors)));
  rows->push_back(
      Plain(wanted, "fallbacks", "", static_cast<double>(run.library.fallbacks)));
}

std::string Summary(const std::string& wanted, const RunFigures& run, const RunSettings& settings,
                    const TraceStats& stats) {
  std::string text = "transport " + wanted + ": " + std::to_string(run.requests) +
                     " requests in " + Short(run.seconds) + " s, " +
                     Short(static_cast<double>(MovedBytes(run)) / run.seconds / 1e9) +
                     " GB/s read and written by " + std::to_string(settings.clients) +
                     " clients together\n"
                     "  call    over    blocks  GB/s per client  p50 ms  p90 ms  p99 ms\n";
  const auto line = [&](const char* name, RunFigures::Operation operation) {
    for (size_t t = 0; t < kTransportNames.size(); ++t) {
      const OperationFigures& figures = run.operations[operation][t];
      if (figures.calls.count() == 0 || (figures.bytes == 0 && operation != RunFigures::kMatch)) {
        continue;
      }
      const auto ms = [&](double percentile) {
        return Short(figures.calls.PercentileUs(percentile) / 1000);
      };
      char row[200];
      std::snprintf(row, sizeof(row), "  %-6s  %-4s %9s  %15s %7s %7s %7s\n", name,
                    kTransportNames[t], Short(static_cast<double>(figures.blocks)).c_str(),
                    figures.bytes == 0 ? "-" : Short(figures.GbPerSecond()).c_str(),
                    ms(50).c_str(), ms(90).c_str(), ms(99).c_str());
      text += row;
    }
  };
  line("match", RunFigures::kMatch);
  line("read", RunFigures::kRead);
  line("write", RunFigures::kWrite);
  text += "  hit ratio: " + Percent(run.prefix_hits, run.accesses) + " of blocks (" +
          Short(100 * stats.infinite_hit_ratio) + " % with endless memory); " +
          Percent(run.stranded_hits, run.accesses) + " more present, but behind a missing block\n";
  if (settings.verify) {
    text += "  verified: " + Short(static_cast<double>(run.verified_bytes)) + "B, every byte read; " +
            std::to_string(run.wrong_blocks) + " wrong blocks\n";
  }
  text += "  errors: " + std::to_string(run.errors) + ", fallbacks to tcp: " +
          std::to_string(run.library.fallbacks) + ", reads repeated because the value changed: " +
          std::to_string(run.library.generation_retries) + ", evicted between match and read: " +
          std::to_string(run.lost) + "\n";
  if (!run.first_error.empty()) text += "  first error: " + run.first_error + "\n";
  if (run.late.count() > 0) {
    text += "  behind the trace's time: p50 " + Short(run.late.PercentileUs(50)) + " us, p99 " +
            Short(run.late.PercentileUs(99)) + " us\n";
  }
  return text;
}

// What a run left on a server that others use; all gone, and its memory free, when this returns.
void RemoveKeys(client::Client& client, const Trace& trace, const std::string& prefix) {
  for (const TraceRequest& request : trace) {
    std::vector<std::string> names;
    for (const uint64_t id : request.blocks) names.push_back(prefix + ":" + std::to_string(id));
    client.BatchRemove(std::vector<std::string_view>(names.begin(), names.end()));
  }
}

}  // namespace

int Replay(const ReplayOptions& options) {
  const std::vector<std::string> transports = Transports(options.transport);
  RunSettings settings;
  settings.speed = SpeedOf(options.speed);
  settings.verify = options.verify;
  settings.clients = options.clients > 0
                         ? options.clients
                         : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const Trace trace = LoadTrace(options);
  const TraceStats stats = StatsOf(trace);
  Report report = NewReport(options.common, "replay");
  const std::string source =
      options.trace.empty() ? "generated, seed " + std::to_string(options.seed) : options.trace;
  report.settings["trace"] = source;
  report.settings["trace_stats"] = ToJson(stats);
  Print(options.common, "trace: " + source + "\n" + Describe(stats) + "\n");
  if (!options.save_trace.empty()) {
    std::ofstream file(options.save_trace);
    WriteTrace(trace, file);
    if (!file.flush()) throw Failure("cannot write " + options.save_trace);
  }
  if (options.dry_run) {
    Finish(options.common, report);
    return 0;
  }
  const bool own = options.common.url.empty();
  const std::string server_path = own ? FindMoonpoolServer(options.common.server) : "";
  int status = 0;
  for (const std::string& transport : transports) {
    std::unique_ptr<TestServer> server;
    std::unique_ptr<client::Client> control;
    uint64_t capacity = 0;
    if (own) {
      capacity = Capacity(options);
      Progress("starting " + server_path + " with " + Short(static_cast<double>(capacity)) + "B");
      server = TestServer::StartMoonpool(server_path,
                                         {"--maxmemory", std::to_string(capacity)});
      server->WaitUntilPopulated();
      settings.url = server->url();
    } else {
      settings.url = options.common.url;
    }
    control = ConnectClient(settings.url);
    std::string info;
    const std::string_view ask[] = {"INFO", "all"};
    control->Command(ask, &info);
    if (capacity == 0) capacity = std::strtoull(InfoField(info, "maxmemory").c_str(), nullptr, 10);
    report.versions["moonpool"] = InfoField(info, "moonpool_version");
    const Scaling scaling = Scale(options, stats, capacity);
    settings.block_bytes = scaling.block_bytes;
    settings.transport = transport;
    settings.key_prefix = options.model;
    // A server that others use keeps their keys, and must not have ours from an earlier run.
    if (!own) settings.key_prefix += "-replay-" + std::to_string(getpid()) + "-" + transport;
    settings.warm_bytes = own && options.warm ? capacity / 10 * 9 : 0;
    if (!own && options.warm_url) {
      settings.warm_bytes = std::min(capacity / 10 * 9, stats.distinct * scaling.block_bytes);
    }
    report.settings["block_bytes"] = scaling.block_bytes;
    report.settings["real_block_bytes"] = scaling.real_bytes;
    report.settings["scale"] = scaling.factor;
    report.settings["capacity_bytes"] = capacity;
    report.settings["clients"] = settings.clients;
    report.settings["speed"] = options.speed;
    Print(options.common,
          "blocks of " + std::to_string(options.block_tokens) + " tokens x " +
              Short(static_cast<double>(options.bytes_per_token) / 1024) + " KiB = " +
              Short(static_cast<double>(scaling.real_bytes) / 1048576) + " MiB, scaled to 1/" +
              Short(scaling.factor) + ": " + Short(static_cast<double>(scaling.block_bytes) / 1024) +
              " KiB; the server's " + Short(static_cast<double>(capacity) / 1073741824) +
              " GiB stand for " +
              Short(static_cast<double>(capacity) * scaling.factor / 1073741824) + " GiB; " +
              std::to_string(settings.clients) + " clients\n");
    if (settings.warm_bytes > 0) Progress("faulting the pool in");
    const RunFigures run = RunTrace(trace, settings, [&](uint64_t done, uint64_t total) {
      Progress("replaying over " + transport + ": " + std::to_string(done) + " of " +
               std::to_string(total) + " requests");
    });
    if (!own) RemoveKeys(*control, trace, settings.key_prefix);
    Print(options.common, Summary(transport, run, settings, stats) + "\n");
    AddRows(transport, run, stats, &report.rows);
    if (run.wrong_blocks > 0 || run.errors > 0) status = 1;
  }
  Finish(options.common, report);
  return status;
}

}  // namespace moonpool::bench
