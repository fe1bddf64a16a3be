#include "tools/bench/rdma.h"

#include <algorithm>
#include <string>
#include <vector>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/rdma_pool.h"
#include "tools/bench/rdma_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPoolBytes = 256 * kMiB;

const std::vector<Row>& RdmaRowTable() {
  using enum Row::Better;
  using enum Row::Judged;
  static const std::vector<Row> rows = {
      RowTemplate("get-1m", "batch_get_into, 32 values of 1 MiB vs raw READ", "GB/s", kHigher, 0.85,
                  0.97, kRatio),
      RowTemplate("get-4k", "batch_get_into, 128 values of 4 KiB vs raw READ", "GB/s", kHigher, 0.7,
                  0.95, kRatio),
      RowTemplate("put-1m", "batch_put_from, 32 values of 1 MiB vs tcp", "GB/s", kHigher,
                  std::nullopt, std::nullopt, kRatio),
      RowTemplate("server-cpu", "CPU of the server process per GB read vs tcp", "s/GB", kLower, 0.1,
                  0.01, kRatio),
      RowTemplate("engine-1m", "transfers alone, 32 values of 1 MiB vs raw READ", "GB/s", kHigher,
                  std::nullopt, std::nullopt, kRatio),
      RowTemplate("engine-4k", "transfers alone, 128 values of 4 KiB vs raw READ", "GB/s", kHigher,
                  std::nullopt, std::nullopt, kRatio),
      RowTemplate("engine-latency", "a transfer of one value of 4 KiB vs one raw READ", "us", kLower,
                  std::nullopt, std::nullopt, kRatio),
      RowTemplate("two-nics", "values of 16 MiB over two NICs vs over one", "GB/s", kHigher,
                  std::nullopt, 1.9, kRatio),
      RowTemplate("recovery", "to full speed after one of two NICs fails", "s", kLower, 2, 0.2,
                  kOurs),
  };
  return rows;
}

class RdmaRows {
 public:
  explicit RdmaRows(const RdmaModeOptions& options)
      : options_(options),
        reps_(options.reps > 0       ? options.reps
              : options.common.quick ? 3
                                     : 5),
        rows_(RdmaRowTable(), options.rows),
        report_(NewReport(options.common, "rdma")),
        pool_(options.devices, options.exclude, kPoolBytes),
        one_nic_(pool_.OpenNic(0)) {
    report_.settings["reps"] = reps_;
    Json nics = Json::array();
    for (const rdma::Nic& nic : pool_.nics().nics()) nics.push_back(rdma::Describe(nic));
    report_.settings["nics"] = nics;
  }

  // The NICs, who talks to whom and why, and what was left out.
  std::string Topology() {
    std::string text;
    for (const rdma::Nic& nic : pool_.nics().nics()) text += rdma::Describe(nic) + "\n";
    for (const auto& left_out : pool_.nics().left_out()) {
      text += left_out.name + " is not used: " + left_out.why + "\n";
    }
    for (const rdma::NicPair& pair : rdma::PairNics(pool_.nics().nics(), pool_.told())) {
      text += pair.why + "\n";
    }
    return text;
  }

  void Throughput(std::string_view id, uint64_t bytes, size_t batch, size_t values) {
    if (!rows_.Wants(id)) return;
    pool_.Fill(bytes, values);
    PoolReader reader(pool_, *one_nic_, ++session_, bytes * batch);
    const auto batches = Batches(values, batch, 64);
    for (const auto& numbers : batches) {
      reader.Read(numbers);
      if (!reader.Check(numbers)) throw Failure("wrong bytes");
    }
    const double seconds = options_.common.quick ? 0.5 : 2;
    RawRate raw(pool_, ++session_, bytes * batch, batches, seconds);
    const auto read = [&](size_t count) {
      for (size_t i = 0; i < count; ++i) reader.Read(batches[i % batches.size()]);
    };
    rows_.Measure(
        id, reps_,
        [&] {
          Pair pair;
          pair.ours = GigabytesPerSecond(read, bytes * batch, seconds);
          pair.theirs = raw.Measure(seconds);
          return pair;
        },
        [&] {
          const rdma::EngineCounters& counters = reader.endpoint().counters();
          Json details;
          details["raw READ by looking, GB/s"] = raw.looking();
          details["by sleeping"] = raw.sleeping();
          details["slices"] = counters.slices;
          details["generation reads"] = counters.generation_reads;
          details["fenced"] = counters.fenced_reads;
          return details;
        });
  }

  void Latency() {
    if (!rows_.Wants("engine-latency")) return;
    pool_.Fill(4096, 1024);
    PoolReader reader(pool_, *one_nic_, ++session_, 4096);
    RawReader raw(pool_, ++session_, 4096);
    const auto batches = Batches(1024, 1, 1024);
    const size_t count = options_.common.quick ? 2000 : 10000;
    const auto mean_us = [&](const std::function<void(const std::vector<uint32_t>&)>& read) {
      const Stopwatch watch;
      for (size_t i = 0; i < count; ++i) read(batches[i % batches.size()]);
      return watch.seconds() / static_cast<double>(count) * 1e6;
    };
    rows_.Measure("engine-latency", reps_,
                  [&] {
                    Pair pair;
                    pair.ours = mean_us([&](const auto& numbers) { reader.Read(numbers); });
                    pair.theirs = mean_us([&](const auto& numbers) {
                      raw.Read(numbers, RawReader::Waits::kSleeps);
                      raw.Finish(RawReader::Waits::kSleeps);
                    });
                    return pair;
                  },
                  {});
  }

  // Through a server process.
  void Server() {
    RdmaServerRows server(options_, reps_, pool_, rows_);
    server.Reads("get-1m", kMiB, 32, 128, ++session_);
    server.Reads("get-4k", 4096, 128, 8192, ++session_);
    server.Writes();
    server.Processor();
    server.TwoNics();
    server.Recovery();
  }

  Report Finish() {
    report_.rows = rows_.Ordered();
    return report_;
  }
  bool WantsAny() const {
    const auto& all = RdmaRowTable();
    return std::any_of(all.begin(), all.end(), [&](const Row& row) { return rows_.Wants(row.id); });
  }

 private:
  const RdmaModeOptions options_;
  const int reps_;
  MeasuredRows rows_;
  Report report_;
  RdmaPool pool_;
  const std::unique_ptr<rdma::NicSet> one_nic_;
  uint64_t session_ = 0;
};

}  // namespace

int Rdma(const RdmaModeOptions& options) {
  if (options.list) {
    std::string text;
    for (const Row& row : RdmaRowTable()) text += row.id + "\t" + row.name + "\n";
    Print(options.common, text);
    return 0;
  }
  RdmaRows rows(options);
  if (!rows.WantsAny()) {
    throw Failure("--rows '" + options.rows + "' matches no row; rdma --list names them");
  }
  const std::string topology = rows.Topology();
  rows.Throughput("engine-1m", kMiB, 32, 128);
  rows.Throughput("engine-4k", 4096, 128, 8192);
  rows.Latency();
  rows.Server();
  const Report report = rows.Finish();
  Print(options.common, Describe(report.machine) + "\n" + topology + "\n" + Table(report.rows) +
                            "\n" + DetailTable(report.rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
