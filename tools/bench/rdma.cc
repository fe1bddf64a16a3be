#include "tools/bench/rdma.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/rdma_pool.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPoolBytes = 256 * kMiB;

const std::vector<Row>& RdmaRowTable() {
  using enum Row::Better;
  using enum Row::Judged;
  static const std::vector<Row> rows = {
      RowTemplate("read-1m", "batches of 32 values of 1 MiB vs raw READ", "GB/s", kHigher, 0.85,
                  0.97, kRatio),
      RowTemplate("read-4k", "batches of 128 values of 4 KiB vs raw READ", "GB/s", kHigher, 0.7,
                  0.95, kRatio),
      RowTemplate("latency-4k", "one value of 4 KiB vs one raw READ", "us", kLower, std::nullopt,
                  std::nullopt, kRatio),
      RowTemplate("two-nics", "values of 16 MiB over two NICs vs over one", "GB/s", kHigher,
                  std::nullopt, 1.9, kRatio),
      RowTemplate("recovery", "to full speed after one of two NICs fails", "s", kLower, 2, 0.2,
                  kOurs),
  };
  return rows;
}

// Batches of random values: neighbours in the pool are rarely neighbours in a batch.
std::vector<std::vector<uint32_t>> Batches(size_t values, size_t batch, size_t count) {
  std::mt19937 engine(42);
  std::vector<uint32_t> order(values);
  for (uint32_t i = 0; i < values; ++i) order[i] = i;
  std::vector<std::vector<uint32_t>> batches;
  for (size_t b = 0; b < count; ++b) {
    std::shuffle(order.begin(), order.end(), engine);
    batches.emplace_back(order.begin(), order.begin() + static_cast<ptrdiff_t>(batch));
  }
  return batches;
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
    RawReader raw(pool_, ++session_, bytes * batch);
    const auto batches = Batches(values, batch, 64);
    for (const auto& numbers : batches) {
      reader.Read(numbers);
      if (!reader.Check(numbers)) throw Failure("wrong bytes");
    }
    const double seconds = options_.common.quick ? 0.5 : 2;
    const auto per_second = [&](const std::function<void(size_t)>& read, double target) {
      // As many batches as took that long before: the clock itself may cost more than a batch.
      size_t count = 4;
      for (;;) {
        const Stopwatch watch;
        read(count);
        const double took = watch.seconds();
        if (took >= target / 2) return static_cast<double>(count * batch * bytes) / took / 1e9;
        count = std::max(count * 2, static_cast<size_t>(static_cast<double>(count) * target /
                                                        std::max(took, 1e-6)));
      }
    };
    const auto ours = [&](size_t count) {
      for (size_t i = 0; i < count; ++i) reader.Read(batches[i % batches.size()]);
    };
    const auto theirs = [&](RawReader::Waits waits) {
      return [&, waits](size_t count) {
        for (size_t i = 0; i < count; ++i) raw.Read(batches[i % batches.size()], waits);
        raw.Finish(waits);
      };
    };
    // The device's figure is the better of two ways to wait.
    const double looking = per_second(theirs(RawReader::Waits::kLooks), seconds / 2);
    const double sleeping = per_second(theirs(RawReader::Waits::kSleeps), seconds / 2);
    const auto waits = looking > sleeping ? RawReader::Waits::kLooks : RawReader::Waits::kSleeps;
    rows_.Measure(
        id, reps_,
        [&] {
          Pair pair;
          pair.ours = per_second(ours, seconds);
          pair.theirs = per_second(theirs(waits), seconds);
          return pair;
        },
        [&] {
          const rdma::EngineCounters& counters = reader.endpoint().counters();
          Json details;
          details["raw READ by looking, GB/s"] = looking;
          details["by sleeping"] = sleeping;
          details["slices"] = counters.slices;
          details["generation reads"] = counters.generation_reads;
          details["fenced"] = counters.fenced_reads;
          return details;
        });
  }

  void Latency() {
    if (!rows_.Wants("latency-4k")) return;
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
    rows_.Measure("latency-4k", reps_,
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

  void TwoNics() {
    if (!rows_.Wants("two-nics") || pool_.nics().nics().size() < 2) return;
    constexpr uint64_t kBytes = 16 * kMiB;
    pool_.Fill(kBytes, 4);
    PoolReader one(pool_, *one_nic_, ++session_, 4 * kBytes);
    PoolReader two(pool_, pool_.nics(), ++session_, 4 * kBytes);
    two.WaitForLanes(2);
    const std::vector<uint32_t> numbers = {0, 1, 2, 3};
    const auto per_second = [&](PoolReader& reader) {
      const int times = options_.common.quick ? 1 : 3;
      const Stopwatch watch;
      for (int i = 0; i < times; ++i) reader.Read(numbers);
      return static_cast<double>(4 * kBytes) * times / watch.seconds() / 1e9;
    };
    per_second(one);
    per_second(two);
    rows_.Measure(
        "two-nics", reps_,
        [&] {
          Pair pair;
          pair.ours = per_second(two);
          pair.theirs = per_second(one);
          return pair;
        },
        [&] {
          Json details;
          for (const rdma::LaneInfo& lane : two.endpoint().lanes()) {
            details[lane.pair] = static_cast<double>(lane.bytes) / 1e9;
          }
          return details;
        });
    if (!two.Check(numbers)) throw Failure("wrong bytes");
  }

  // Reads 4 MiB at a time; from the failure on, until they take no longer than they do over the
  // NIC that is left.
  void Recovery() {
    if (!rows_.Wants("recovery") || options_.fail_nic.empty()) return;
    if (pool_.nics().nics().size() < 2) throw Failure("--fail-nic needs two NICs");
    constexpr uint64_t kBytes = 4 * kMiB;
    pool_.Fill(kBytes, 4);
    PoolReader two(pool_, pool_.nics(), ++session_, kBytes);
    two.WaitForLanes(2);
    const std::vector<uint32_t> numbers = {0};
    std::vector<std::pair<uint64_t, uint64_t>> reads;  // begun, ended
    std::atomic<uint64_t> failed_ns{0};
    std::thread failure([&] {
      usleep(300'000);
      failed_ns = NowNs();
      if (std::system(("ip link set " + options_.fail_nic + " down").c_str()) != 0) failed_ns = 1;
    });
    const Stopwatch watch;
    while (watch.seconds() < 4) {
      const uint64_t start = NowNs();
      two.Read(numbers);
      reads.emplace_back(start, NowNs());
    }
    failure.join();
    if (!two.Check(numbers)) throw Failure("wrong bytes");
    if (failed_ns == 1) throw Failure("cannot take " + options_.fail_nic + " down");
    std::vector<double> after;
    for (const auto& [start, end] : reads) {
      if (start > failed_ns + Nanoseconds(2)) after.push_back(Seconds(end - start));
    }
    // Full speed: within a half of what a read takes when all is over.
    const double usual = Median(after);
    double recovery = 0;
    for (const auto& [start, end] : reads) {
      if (end > failed_ns && start < failed_ns + Nanoseconds(2) &&
          Seconds(end - start) > 1.5 * usual) {
        recovery = std::max(recovery, Seconds(end - std::max<uint64_t>(start, failed_ns)));
      }
    }
    Json details;
    details["a read afterwards, ms"] = usual * 1e3;
    details["open lanes"] = two.open_lanes();
    rows_.Add("recovery", {Pair{recovery, {}}}, details);
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
  rows.Throughput("read-1m", kMiB, 32, 128);
  rows.Throughput("read-4k", 4096, 128, 8192);
  rows.Latency();
  rows.TwoNics();
  rows.Recovery();
  const Report report = rows.Finish();
  Print(options.common, Describe(report.machine) + "\n" + topology + "\n" + Table(report.rows) +
                            "\n" + DetailTable(report.rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
