// Rows of `moonpool-bench rdma` that go through a server process and libmoonpool.
#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/rdma_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;

// Processor time of a process or of a thread of the kernel, in seconds.
double CpuSeconds(pid_t pid) {
  clockid_t clock{};
  timespec time{};
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

struct StatLine {
  char name[64] = {};
  unsigned long flags = 0;
  unsigned long user_ticks = 0;
  unsigned long system_ticks = 0;
};

bool ReadStat(const std::string& pid, StatLine* line) {
  std::FILE* file = std::fopen(("/proc/" + pid + "/stat").c_str(), "re");
  if (file == nullptr) return false;
  const int found =
      std::fscanf(file, "%*d (%63[^)]) %*c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %lu %lu",
                  line->name, &line->flags, &line->user_ticks, &line->system_ticks);
  std::fclose(file);
  return found == 4;
}

// Of all worker threads of the kernel: where soft-RoCE does its work, unless it finds itself in
// somebody else's.
double KernelWorkers() {
  DIR* const folder = opendir("/proc");
  if (folder == nullptr) return 0;
  double seconds = 0;
  while (const dirent* entry = readdir(folder)) {
    StatLine line;
    const bool process = entry->d_name[0] >= '0' && entry->d_name[0] <= '9';
    if (!process || !ReadStat(entry->d_name, &line)) continue;
    if (std::string_view(line.name).starts_with("kworker") ||
        std::string_view(line.name).starts_with("ksoftirqd")) {
      seconds += CpuSeconds(std::atoi(entry->d_name));
    }
  }
  closedir(folder);
  return seconds;
}

struct Spent {
  double server = 0;
  double user_share = 0;  // of what the server spent; by samples of the scheduler's tick
  double workers = 0;
};

}  // namespace

RdmaServerRows::RdmaServerRows(const RdmaModeOptions& options, int reps, RdmaPool& pool,
                               MeasuredRows& rows)
    : options_(options), reps_(reps), pool_(pool), rows_(rows) {}

TestServer& RdmaServerRows::Server(Nics nics) {
  std::unique_ptr<TestServer>& server = servers_[nics == Nics::kOne ? 0 : 1];
  if (server == nullptr) {
    // A client with one NIC would look for ways to the others, too.
    const bool one = nics == Nics::kOne;
    server = TestServer::StartMoonpool(
        FindMoonpoolServer(options_.common.server),
        {"--maxmemory", "320mb", "--region-size", "256mb", "--bulk-threshold", "4kb", "--rdma",
         "yes", "--rdma-devices", one ? pool_.nics().nics()[0].name() : options_.devices,
         "--rdma-exclude", one ? "" : options_.exclude});
    server->WaitUntilPopulated();
  }
  server->RemoveAllKeys();
  return *server;
}

std::string RdmaServerRows::OneNic() const {
  return "transport=rdma&connections=1&rdma_devices=" + pool_.nics().nics()[0].name();
}

void RdmaServerRows::Reads(std::string_view id, uint64_t bytes, size_t batch, size_t values,
                           uint64_t session) {
  if (!rows_.Wants(id)) return;
  const uint64_t batch_bytes = bytes * batch;
  ServerReader reader(Server(Nics::kOne), OneNic(), batch_bytes);
  reader.Fill(bytes, values);
  pool_.Fill(bytes, values);
  const auto batches = Batches(values, batch, 64);
  for (const auto& numbers : batches) {
    reader.Read(numbers);
    if (!reader.Check(numbers)) throw Failure("wrong bytes");
  }
  RawRate raw(pool_, session, batch_bytes, batches, seconds());
  const auto read = [&](size_t count) {
    for (size_t i = 0; i < count; ++i) reader.Read(batches[i % batches.size()]);
  };
  rows_.Measure(
      id, reps_,
      [&] {
        Pair pair;
        pair.ours = GigabytesPerSecond(read, batch_bytes, seconds());
        pair.theirs = raw.Measure(seconds());
        return pair;
      },
      [&] {
        Json details;
        details["raw READ by looking, GB/s"] = raw.looking();
        details["by sleeping"] = raw.sleeping();
        details["read again"] = reader.stats().generation_retries;
        return details;
      });
}

void RdmaServerRows::Writes() {
  if (!rows_.Wants("put-1m")) return;
  constexpr size_t kBatch = 32;
  const TestServer& server = Server(Nics::kOne);
  ServerReader rdma(server, OneNic(), kBatch * kMiB);
  ServerReader tcp(server, "transport=tcp&connections=1", kBatch * kMiB);
  const auto numbers = Batches(kBatch, kBatch, 1).front();
  rdma.Fill(kMiB, kBatch);
  tcp.Fill(kMiB, kBatch);
  const auto rate = [&](ServerReader& writer) {
    return GigabytesPerSecond(
        [&](size_t count) {
          for (size_t i = 0; i < count; ++i) writer.Write(numbers);
        },
        kBatch * kMiB, seconds());
  };
  rdma.Read(numbers);
  tcp.Read(numbers);
  rows_.Measure("put-1m", reps_, [&] { return Pair{rate(rdma), rate(tcp)}; }, {});
  rdma.Read(numbers);
  if (!rdma.Check(numbers)) throw Failure("wrong bytes");
}

void RdmaServerRows::Processor() {
  if (!rows_.Wants("server-cpu")) return;
  constexpr size_t kValues = 128;
  constexpr size_t kBatch = 32;
  const TestServer& server = Server(Nics::kOne);
  ServerReader rdma(server, OneNic(), kBatch * kMiB);
  ServerReader tcp(server, "transport=tcp&connections=1", kBatch * kMiB);
  rdma.Fill(kMiB, kValues);
  tcp.Use(kMiB);
  const auto batches = Batches(kValues, kBatch, 64);
  const std::string pid = std::to_string(server.pid());
  // Per GB read.
  const auto spent = [&](ServerReader& reader, size_t count) {
    StatLine before, after;
    ReadStat(pid, &before);
    const double server_before = CpuSeconds(server.pid());
    const double workers_before = KernelWorkers();
    for (size_t i = 0; i < count; ++i) reader.Read(batches[i % batches.size()]);
    const double gigabytes = static_cast<double>(count * kBatch * kMiB) / 1e9;
    Spent result;
    result.server = (CpuSeconds(server.pid()) - server_before) / gigabytes;
    result.workers = (KernelWorkers() - workers_before) / gigabytes;
    ReadStat(pid, &after);
    const auto user = static_cast<double>(after.user_ticks - before.user_ticks);
    const auto system = static_cast<double>(after.system_ticks - before.system_ticks);
    result.user_share = user + system > 0 ? user / (user + system) : 0;
    return result;
  };
  // Ten milliseconds are the least that some kernels tell apart (soft-RoCE beside User-Mode Linux).
  const size_t count = options_.common.quick ? 10 : 100;
  const size_t rdma_count = count * 5 / 2;
  spent(rdma, 4);
  spent(tcp, 4);
  Spent over_rdma, over_tcp;
  rows_.Measure(
      "server-cpu", reps_,
      [&] {
        over_rdma = spent(rdma, rdma_count);
        over_tcp = spent(tcp, count);
        return Pair{over_rdma.server, over_tcp.server};
      },
      [&] {
        Json details;
        details["rdma: user, s/GB"] = over_rdma.server * over_rdma.user_share;
        details["rdma: kernel, s/GB"] = over_rdma.server * (1 - over_rdma.user_share);
        details["rdma: the kernel's workers (soft-RoCE, both sides), s/GB"] = over_rdma.workers;
        details["tcp: user, s/GB"] = over_tcp.server * over_tcp.user_share;
        details["tcp: kernel, s/GB"] = over_tcp.server * (1 - over_tcp.user_share);
        details["tcp: the kernel's workers, s/GB"] = over_tcp.workers;
        return details;
      });
}

void RdmaServerRows::TwoNics() {
  if (!rows_.Wants("two-nics") || pool_.nics().nics().size() < 2) return;
  constexpr uint64_t kBytes = 16 * kMiB;
  ServerReader one(Server(Nics::kOne), OneNic(), 4 * kBytes);
  ServerReader two(Server(Nics::kAll), "transport=rdma&connections=1", 4 * kBytes);
  one.Fill(kBytes, 4);
  two.Fill(kBytes, 4);
  const std::vector<uint32_t> numbers = {0, 1, 2, 3};
  const auto per_second = [&](ServerReader& reader) {
    const int times = options_.common.quick ? 1 : 3;
    const Stopwatch watch;
    for (int i = 0; i < times; ++i) reader.Read(numbers);
    return static_cast<double>(4 * kBytes) * times / watch.seconds() / 1e9;
  };
  per_second(one);
  per_second(two);
  rows_.Measure("two-nics", reps_, [&] { return Pair{per_second(two), per_second(one)}; }, {});
  if (!two.Check(numbers)) throw Failure("wrong bytes");
}

// Reads 4 MiB at a time; from the failure on, until they take no longer than they do over the NIC
// that is left.
void RdmaServerRows::Recovery() {
  if (!rows_.Wants("recovery") || options_.fail_nic.empty()) return;
  if (pool_.nics().nics().size() < 2) throw Failure("--fail-nic needs two NICs");
  constexpr uint64_t kBytes = 4 * kMiB;
  ServerReader two(Server(Nics::kAll), "transport=rdma&connections=1", kBytes);
  two.Fill(kBytes, 1);
  two.Tolerate();
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
  details["values that went over tcp"] = two.stats().fallbacks;
  rows_.Add("recovery", {Pair{recovery, {}}}, details);
}

}  // namespace moonpool::bench
