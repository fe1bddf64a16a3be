#include "tools/bench/comparison.h"

#include <algorithm>

#include "tools/bench/failure.h"
#include "tools/bench/plot.h"

namespace moonpool::bench {

const std::vector<Row>& RowTable() {
  using enum Row::Better;
  constexpr auto kOurs = Row::Judged::kOurs;
  static const std::vector<Row> rows = {
      RowTemplate("get-p1", "GET 64 B, one loop, -P 1", "ops/CPU s", kHigher, 1.0, 1.15),
      RowTemplate("set-p1", "SET 64 B, one loop, -P 1", "ops/CPU s", kHigher, 1.0, 1.15),
      RowTemplate("get-p16", "GET 64 B, one loop, -P 16", "ops/CPU s", kHigher, 1.15, 1.5),
      RowTemplate("set-p16", "SET 64 B, one loop, -P 16", "ops/CPU s", kHigher, 1.15, 1.5),
      RowTemplate("get-million", "GET, -P 16, a million keys", "ops/CPU s", kHigher, 1.3, 2),
      RowTemplate("set-million", "SET, -P 16, a million keys", "ops/CPU s", kHigher, 1.3, 2),
      RowTemplate("get-p128", "GET 64 B, one loop, -P 128", "ops/CPU s", kHigher, 1.5, 2.5),
      RowTemplate("set-p128", "SET 64 B, one loop, -P 128", "ops/CPU s", kHigher, 1.5, 2.5),
      RowTemplate("loops-p1", "CPU of two loops vs one, -P 1", "CPU us/op", kLower, 1.2, 1.05),
      RowTemplate("loops-p16", "CPU of two loops vs one, -P 16", "CPU us/op", kLower, 1.2, 1.05),
      RowTemplate("p99-streaming", "p99 of GETs beside 100 MB GETs vs alone", "us", kLower, 2, 1.2),
      RowTemplate("clients-1000", "1,000 clients vs 50, -P 1", "ops/s", kHigher, 0.8, 0.95),
      RowTemplate("resp-get-1m", "GET 1 MiB over RESP", "CPU s/GB", kLower, 1.0, 0.8),
      RowTemplate("resp-set-1m", "SET 1 MiB over RESP", "CPU s/GB", kLower, 1.0, 0.8),
      RowTemplate("resp-get-16m", "GET 16 MiB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      RowTemplate("resp-set-16m", "SET 16 MiB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      RowTemplate("resp-get-100m", "GET 100 MB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      RowTemplate("resp-set-100m", "SET 100 MB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      RowTemplate("tcp-get-1m", "batch_get_into over tcp vs a raw stream", "GB/s", kHigher, 0.8,
               0.95),
      RowTemplate("shm-get-1m", "batch_get_into over shm vs memory copy", "GB/s", kHigher, 0.85,
               0.97),
      RowTemplate("shm-redis-1m", "batch_get_into 1 MiB vs redis + hiredis", "GB/s", kHigher, 6, 9),
      RowTemplate("shm-redis-16m", "batch_get_into 16 MiB vs redis + hiredis", "GB/s", kHigher, 10,
               16),
      RowTemplate("shm-redis-100m", "batch_get_into 100 MB vs redis + hiredis", "GB/s", kHigher, 16,
               27),
      RowTemplate("shm-put-1m", "batch_put_from over shm vs memory copy", "GB/s", kHigher, 0.6, 0.9),
      RowTemplate("view-1m", "get_view of 1 MiB vs PING, p50", "us", kLower, 1.5, 1.0),
      RowTemplate("view-100m", "get_view of 100 MB vs PING, p50", "us", kLower, 1.5, 1.0),
      RowTemplate("locate-128", "KV.LOCATE of 128 keys", "keys/CPU s", kHigher, 1.5e6, 4e6, kOurs),
      RowTemplate("batch-128", "128 x 4 KiB: a batch vs single calls", "batches/s", kHigher, 5, 20),
      RowTemplate("batch-128-inline", "the same below bulk-threshold", "batches/s", kHigher,
               std::nullopt, std::nullopt),
      RowTemplate("memory", "memory per key beyond key and value", "bytes", kLower, 0.6, 0.35),
      RowTemplate("memory-ttl", "the same, keys with TTL", "bytes", kLower, 0.6, 0.35),
      RowTemplate("churn", "live share of regions at the first OOM", "share", kHigher, 0.88, 0.97,
               kOurs),
      RowTemplate("churn-arenas", "the same, written through shm arenas", "share", kHigher,
               std::nullopt, std::nullopt, kOurs),
  };
  return rows;
}

void Figures::Add(const std::string& name, double value) {
  for (auto& [known, values] : by_name_) {
    if (known == name) {
      values.push_back(value);
      return;
    }
  }
  by_name_.emplace_back(name, std::vector<double>{value});
}

Json Figures::Medians() const {
  Json json = Json::object();
  for (const auto& [name, values] : by_name_) json[name] = Median(values);
  return json;
}

Comparison::Comparison(const CompareOptions& options)
    : options_(options),
      moonpool_path_(FindMoonpoolServer(options.common.server)),
      reps_(options.reps > 0 ? options.reps : options.common.quick ? 1 : 5),
      rows_(RowTable(), options.rows),
      report_(NewReport(options.common, "compare")) {
  report_.settings["reps"] = reps_;
  report_.settings["moonpool_maxmemory"] = options.memory;
}

std::unique_ptr<TestServer> Comparison::Moonpool(const std::vector<std::string>& flags) {
  std::vector<std::string> all = {"--maxmemory", options_.memory};
  all.insert(all.end(), flags.begin(), flags.end());
  auto server = TestServer::StartMoonpool(moonpool_path_, all);
  report_.versions["moonpool"] = server->version();
  server->WaitUntilPopulated();
  return server;
}

std::unique_ptr<TestServer> Comparison::Redis() {
  auto server = TestServer::StartRedis();
  report_.versions["redis"] = server->version();
  return server;
}

void Comparison::Row(std::string_view id, const std::function<double()>& ours,
                     const std::function<double()>& theirs,
                     const std::function<Json()>& details) {
  Row(id, reps_, [&] {
    Pair pair;
    pair.ours = ours();
    if (theirs) pair.theirs = theirs();
    return pair;
  }, details);
}

Report Comparison::Finish() {
  report_.rows = rows_.Ordered();
  return report_;
}

std::unique_ptr<client::Client> ConnectClient(const std::string& url) {
  std::unique_ptr<client::Client> client;
  const client::Status status = client::Client::Connect(url, {}, &client);
  if (!status.ok()) {
    throw Failure("cannot connect to " + url + ": " + status.message + " (" +
                  std::string(CodeCure(status.code)) + ")");
  }
  return client;
}

void ExpectOk(const std::vector<client::KeyResult>& results, std::string_view what) {
  for (const client::KeyResult& result : results) {
    if (result.ok()) continue;
    throw Failure(std::string(what) + ": " + std::string(CodeName(result.code)) + " " +
                  result.message);
  }
}

int Compare(const CompareOptions& options) {
  if (options.list) {
    std::string text;
    for (const Row& row : RowTable()) text += row.id + "\t" + row.name + "\n";
    Print(options.common, text);
    return 0;
  }
  Comparison comparison(options);
  const auto& all = RowTable();
  if (std::none_of(all.begin(), all.end(), [&](const Row& r) { return comparison.Wants(r.id); })) {
    throw Failure("--rows '" + options.rows + "' matches no row; compare --list names them");
  }
  Progress("comparing, " + std::to_string(comparison.reps()) + " times each");
  for (const auto group : {SmallOperationRows, LoopRows, FairnessRows, LargeRespRows,
                           TcpTransportRows, SharedMemoryRows, ViewRows, DescriptorRows,
                           KeyMemoryRows, ChurnRows}) {
    group(comparison);
  }
  const Report report = comparison.Finish();
  std::string text = Describe(report.machine) + "\n" + "moonpool " +
                     report.versions.value("moonpool", "-") + ", redis-server " +
                     report.versions.value("redis", "-") + ", medians of " +
                     std::to_string(comparison.reps()) + "\n\n" + Table(report.rows) + "\n" +
                     DetailTable(report.rows);
  Print(options.common, text);
  if (!options.plot.empty()) {
    PlotComparison(options.plot, report.rows, Describe(report.machine));
    Progress("drew " + options.plot);
  }
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
