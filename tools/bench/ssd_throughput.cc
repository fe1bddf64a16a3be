// Rows about bytes per second, up from the SSD and down to it.
#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/ssd_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr int kDepths[] = {1, 8};  // of the disk's own reads; the row takes the faster one
constexpr int kClients = 2;

// Every value from `first` on once, by two clients' threads, so that the disk works while one of
// them copies.
double ReadAll(client::Client& client, std::vector<SsdValues>& readers, uint64_t first,
               uint64_t count) {
  std::atomic<uint64_t> next{first};
  std::atomic<uint64_t> good{0};
  std::exception_ptr failure;
  const Stopwatch watch;
  std::vector<std::thread> threads;
  for (SsdValues& values : readers) {
    threads.emplace_back([&] {
      try {
        for (uint64_t at; (at = next.fetch_add(values.batch())) < first + count;) {
          good += values.Get(client, at, std::min<uint64_t>(values.batch(), first + count - at));
        }
      } catch (const Failure&) {
        failure = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = watch.seconds();
  if (failure) std::rethrow_exception(failure);
  if (good != count) {
    throw Failure(std::to_string(count - good) + " of " + std::to_string(count) +
                  " values are gone from the SSD");
  }
  return static_cast<double>(count * kMiB) / seconds / 1e9;
}

void ReadRow(SsdComparison& comparison) {
  if (!comparison.Wants("read-1m")) return;
  const uint64_t memory = 256 * kMiB;
  // Values read in one pass: of half a second or more, beside which its first and last batch, when
  // the disk or the clients have nothing to do, count for little.
  const uint64_t slice = comparison.quick() ? 192 : 1536;
  constexpr uint64_t kWarmUps = 2;
  const auto passes = static_cast<uint64_t>(comparison.reps()) + kWarmUps;
  constexpr size_t kBatch = 32;
  const auto server = comparison.Server("read", memory);
  server->WaitUntilPopulated();
  const auto client =
      ConnectClient(server->url("transport=shm&connections=" + std::to_string(kClients)));
  Progress("writing " + std::to_string(slice * passes) + " MiB to be read");
  std::vector<SsdValues> readers;
  for (int i = 0; i < kClients; ++i) readers.emplace_back("read:", kMiB, kBatch);
  // What comes last stays in memory, or in RocksDB's; nobody asks for it.
  const uint64_t behind = 2 * memory / kMiB;
  // In turns with the reference, so that neither is fresher in a cache below us.
  DirectFile file(comparison.folder().path() + "/read-reference");
  for (uint64_t first = 0; first < slice * passes + behind; first += kBatch) {
    readers[0].Put(*client, first, kBatch);
    file.Append(2 * kBatch * kMiB);
  }
  WaitForDemotions(*server);
  uint64_t pass = 0, file_at = 0;
  const auto next_of_file = [&] { return std::exchange(file_at, file_at + slice / 2 * kMiB); };
  int depth = kDepths[0];
  Figures ours, theirs;
  const auto measure = [&] {
    const int64_t loaded = TierNumber(*server, "loaded_bytes");
    const double cpu_s = server->CpuSeconds();
    Pair pair;
    // Before and after ours: a disk that is shared, or lent in bursts, changes within seconds.
    const uint64_t half = slice / 2 * kMiB;
    const double before = file.Read(next_of_file(), half, depth);
    try {
      pair.ours = ReadAll(*client, readers, pass * slice, slice);
    } catch (const Failure& failure) {
      throw Failure(std::string(failure.what()) + "\n" + server->control().Info("tiers"));
    }
    ours.Add("server CPU s/GB",
             (server->CpuSeconds() - cpu_s) / static_cast<double>(slice * kMiB) * 1e9);
    ours.Add("share from SSD", static_cast<double>(TierNumber(*server, "loaded_bytes") - loaded) /
                                   static_cast<double>(slice * kMiB));
    const double after = file.Read(next_of_file(), half, depth);
    pair.theirs = 2 / (1 / before + 1 / after);
    // Not what the row asks for, but more than that no cache can reach that verifies checksums and
    // whose clients have their own memory: as much memory as their batches, and one copy.
    const double copied = file.ReadCheckAndCopy(next_of_file(), half, kDepths[1],
                                                kClients * kBatch * kMiB);
    theirs.Add("GB/s checked and copied", copied);
    ours.Add("of theirs checked and copied", pair.ours / copied);
    ++pass;
    return pair;
  };
  // Warms both up; what was the writer's memory becomes the readers'.
  Figures by_depth;
  for (uint64_t i = 0; i < kWarmUps; ++i) {
    measure();
    for (const int each : kDepths) {
      by_depth.Add(std::to_string(each), file.Read(next_of_file(), slice / 4 * kMiB, each));
    }
  }
  const Json rates = by_depth.Medians();
  for (const int each : kDepths) {
    if (rates[std::to_string(each)] > rates[std::to_string(depth)]) depth = each;
  }
  ours = theirs = Figures();
  comparison.Measure("read-1m", comparison.reps(), measure, [&] {
    return Json{{"ours", ours.Medians()}, {"theirs", theirs.Medians()}, {"values per pass", slice},
                {"theirs: depth", depth}, {"GB/s in warming up, by depth", rates}};
  });
}

void DemoteRow(SsdComparison& comparison) {
  if (!comparison.Wants("demote-1m")) return;
  const uint64_t memory = 256 * kMiB;
  const uint64_t slice = comparison.quick() ? 512 : 1024;
  // Written before the clock starts: memory is full then, and the queue to the disk too.
  const uint64_t run_up = 128;
  constexpr size_t kBatch = 16;
  const auto server = comparison.Server("demote", memory);
  server->WaitUntilPopulated();
  const auto client = ConnectClient(server->url("transport=shm&connections=1"));
  SsdValues values("demote:", kMiB, kBatch);
  uint64_t next = 0;
  const auto write = [&](uint64_t count) {
    for (const uint64_t end = next + count; next < end; next += kBatch) {
      values.Put(*client, next, kBatch);
    }
  };
  write(2 * memory / kMiB);
  WaitForDemotions(*server);
  Figures ours;
  comparison.Measure(
      "demote-1m", comparison.reps(),
      [&] {
        Pair pair;
        write(run_up);
        const int64_t before = TierNumber(*server, "demoted_bytes");
        const double cpu_s = server->CpuSeconds();
        const Stopwatch watch;
        write(slice);
        const auto bytes = static_cast<double>(TierNumber(*server, "demoted_bytes") - before);
        pair.ours = bytes / watch.seconds() / 1e9;
        ours.Add("server CPU s/GB", (server->CpuSeconds() - cpu_s) / bytes * 1e9);
        ours.Add("written GB/s", static_cast<double>(slice * kMiB) / watch.seconds() / 1e9);
        WaitForDemotions(*server);
        DirectFile file(comparison.folder().path() + "/write-reference");
        pair.theirs = file.Append(slice * kMiB);
        return pair;
      },
      [&] {
        return Json{{"ours", ours.Medians()},
                    {"write amplification",
                     InfoField(server->control().Info("tiers"), "tier_ssd_write_amplification")},
                    {"dropped for a disk too slow", TierNumber(*server, "drops_refused")}};
      });
}

}  // namespace

void SsdThroughputRows(SsdComparison& comparison) {
  ReadRow(comparison);
  comparison.RemoveDirectory("read");
  DemoteRow(comparison);
  comparison.RemoveDirectory("demote");
}

}  // namespace moonpool::bench
