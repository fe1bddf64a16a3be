#include "tools/bench/comparison.h"

#include <algorithm>
#include <regex>

#include "tools/bench/failure.h"
#include "tools/bench/plot.h"

namespace moonpool::bench {

namespace {

Row Template(std::string id, std::string name, std::string unit, Row::Better better,
             std::optional<double> at_least, std::optional<double> aim,
             Row::Judged judged = Row::Judged::kRatio) {
  Row row;
  row.id = std::move(id);
  row.name = std::move(name);
  row.unit = std::move(unit);
  row.better = better;
  row.at_least = at_least;
  row.aim = aim;
  row.judged = judged;
  return row;
}

const Row& TemplateOf(std::string_view id) {
  for (const Row& row : RowTable()) {
    if (row.id == id) return row;
  }
  throw Failure("no row is called " + std::string(id));
}

bool Matches(const std::string& pattern, const Row& row) {
  if (pattern.empty()) return true;
  const std::regex expression(pattern, std::regex::icase);
  return std::regex_search(row.id, expression) || std::regex_search(row.name, expression);
}

}  // namespace

const std::vector<Row>& RowTable() {
  using enum Row::Better;
  constexpr auto kOurs = Row::Judged::kOurs;
  static const std::vector<Row> rows = {
      Template("get-p1", "GET 64 B, one loop, -P 1", "ops/CPU s", kHigher, 1.0, 1.15),
      Template("set-p1", "SET 64 B, one loop, -P 1", "ops/CPU s", kHigher, 1.0, 1.15),
      Template("get-p16", "GET 64 B, one loop, -P 16", "ops/CPU s", kHigher, 1.15, 1.5),
      Template("set-p16", "SET 64 B, one loop, -P 16", "ops/CPU s", kHigher, 1.15, 1.5),
      Template("get-million", "GET, -P 16, a million keys", "ops/CPU s", kHigher, 1.3, 2),
      Template("set-million", "SET, -P 16, a million keys", "ops/CPU s", kHigher, 1.3, 2),
      Template("get-p128", "GET 64 B, one loop, -P 128", "ops/CPU s", kHigher, 1.5, 2.5),
      Template("set-p128", "SET 64 B, one loop, -P 128", "ops/CPU s", kHigher, 1.5, 2.5),
      Template("loops-p1", "CPU of two loops vs one, -P 1", "CPU us/op", kLower, 1.2, 1.05),
      Template("loops-p16", "CPU of two loops vs one, -P 16", "CPU us/op", kLower, 1.2, 1.05),
      Template("p99-streaming", "p99 of GETs beside 100 MB GETs vs alone", "us", kLower, 2, 1.2),
      Template("clients-1000", "1,000 clients vs 50, -P 1", "ops/s", kHigher, 0.8, 0.95),
      Template("resp-get-1m", "GET 1 MiB over RESP", "CPU s/GB", kLower, 1.0, 0.8),
      Template("resp-set-1m", "SET 1 MiB over RESP", "CPU s/GB", kLower, 1.0, 0.8),
      Template("resp-get-16m", "GET 16 MiB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      Template("resp-set-16m", "SET 16 MiB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      Template("resp-get-100m", "GET 100 MB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      Template("resp-set-100m", "SET 100 MB over RESP", "CPU s/GB", kLower, 0.5, 0.25),
      Template("tcp-get-1m", "batch_get_into over tcp vs a raw stream", "GB/s", kHigher, 0.8,
               0.95),
      Template("shm-get-1m", "batch_get_into over shm vs memory copy", "GB/s", kHigher, 0.85,
               0.97),
      Template("shm-redis-1m", "batch_get_into 1 MiB vs redis + hiredis", "GB/s", kHigher, 6, 9),
      Template("shm-redis-16m", "batch_get_into 16 MiB vs redis + hiredis", "GB/s", kHigher, 10,
               16),
      Template("shm-redis-100m", "batch_get_into 100 MB vs redis + hiredis", "GB/s", kHigher, 16,
               27),
      Template("shm-put-1m", "batch_put_from over shm vs memory copy", "GB/s", kHigher, 0.6, 0.9),
      Template("view-1m", "get_view of 1 MiB vs PING, p50", "us", kLower, 1.5, 1.0),
      Template("view-100m", "get_view of 100 MB vs PING, p50", "us", kLower, 1.5, 1.0),
      Template("locate-128", "KV.LOCATE of 128 keys", "keys/CPU s", kHigher, 1.5e6, 4e6, kOurs),
      Template("batch-128", "128 x 4 KiB: a batch vs single calls", "batches/s", kHigher, 5, 20),
      Template("batch-128-inline", "the same below bulk-threshold", "batches/s", kHigher,
               std::nullopt, std::nullopt),
      Template("memory", "memory per key beyond key and value", "bytes", kLower, 0.6, 0.35),
      Template("memory-ttl", "the same, keys with TTL", "bytes", kLower, 0.6, 0.35),
      Template("churn", "live share of regions at the first OOM", "share", kHigher, 0.88, 0.97,
               kOurs),
      Template("churn-arenas", "the same, written through shm arenas", "share", kHigher,
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
      report_(NewReport(options.common, "compare")) {
  report_.settings["reps"] = reps_;
  report_.settings["moonpool_maxmemory"] = options.memory;
}

bool Comparison::Wants(std::string_view id) const {
  return Matches(options_.rows, TemplateOf(id));
}

bool Comparison::WantsAny(std::initializer_list<std::string_view> ids) const {
  return std::any_of(ids.begin(), ids.end(), [this](std::string_view id) { return Wants(id); });
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

void Comparison::Row(std::string_view id, int reps, const std::function<Pair()>& measure,
                     const std::function<Json()>& details) {
  if (!Wants(id)) return;
  std::vector<Pair> pairs;
  for (int rep = 0; rep < reps; ++rep) {
    pairs.push_back(measure());
    const Pair& pair = pairs.back();
    std::string text = TemplateOf(id).name + ": " + Short(pair.ours);
    if (pair.theirs) text += " / " + Short(*pair.theirs);
    Progress(text + " " + TemplateOf(id).unit);
  }
  Emit(id, pairs, details ? details() : Json::object());
}

void Comparison::Emit(std::string_view id, const std::vector<Pair>& pairs, Json details) {
  bench::Row row = TemplateOf(id);
  SetFromPairs(pairs, &row);
  row.details = std::move(details);
  report_.rows.push_back(std::move(row));
}

Report Comparison::Finish() {
  std::vector<bench::Row> ordered;
  for (const bench::Row& known : RowTable()) {
    for (const bench::Row& row : report_.rows) {
      if (row.id == known.id) ordered.push_back(row);
    }
  }
  report_.rows = std::move(ordered);
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
