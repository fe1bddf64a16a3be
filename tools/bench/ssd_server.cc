// Rows about what the tier's work costs the rest of the server: latency and memory.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "tools/bench/bare_server.h"
#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/ssd_rows.h"
#include "tools/bench/urgent.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;

// --- latency ---------------------------------------------------------------------------------

// One thread writes values without end, another reads ones that are on the SSD alone.
class DiskLoad {
 public:
  // `old`: values written before, of which the first `old` are on the SSD.
  DiskLoad(client::Client& client, uint64_t old, uint64_t* next)
      : writer_([this, &client, next] {
          GiveWay();
          SsdValues values("disk:", kMiB, kBatch);
          for (; !stop_; *next += kBatch) values.Put(client, *next, kBatch);
        }),
        reader_([this, &client, old] {
          GiveWay();
          SsdValues values("disk:", kMiB, kBatch);
          for (uint64_t first = 0; !stop_; first = (first + kBatch) % old) {
            values.Get(client, first, kBatch);
          }
        }) {}
  ~DiskLoad() {
    stop_ = true;
    writer_.join();
    reader_.join();
  }

  static constexpr size_t kBatch = 16;

 private:
  std::atomic<bool> stop_{false};
  std::thread writer_;
  std::thread reader_;
};

// The same without a cache: one thread writes to the disk without end, and one reads from it, four
// blocks at a time, with the one check and the one copy that a cache's readers cannot do without.
class BareDiskLoad {
 public:
  explicit BareDiskLoad(const std::string& folder)
      : written_(folder + "/bare-written"),
        read_(folder + "/bare-read"),
        writer_([this] {
          GiveWay();
          while (!stop_) written_.Append(kBatchBytes);
        }),
        reader_([this] {
          GiveWay();
          read_.Append(kReadBytes);
          ready_ = true;
          while (!stop_) read_.ReadCheckAndCopy(0, kReadBytes, 4, kBatchBytes);
        }) {
    while (!ready_) usleep(1000);
  }
  ~BareDiskLoad() {
    stop_ = true;
    writer_.join();
    reader_.join();
  }

 private:
  static constexpr uint64_t kBatchBytes = DiskLoad::kBatch * kMiB;
  static constexpr uint64_t kReadBytes = 16 * kBatchBytes;
  std::atomic<bool> stop_{false};
  std::atomic<bool> ready_{false};
  DirectFile written_;
  DirectFile read_;
  std::thread writer_;
  std::thread reader_;
};

void LatencyRow(SsdComparison& comparison) {
  if (!comparison.Wants("p99-disk")) return;
  constexpr size_t kKeys = 1000, kValueBytes = 64;
  constexpr int kConnections = 16;
  const uint64_t memory = 256 * kMiB;
  const auto server = comparison.Server("latency", memory);
  server->WaitUntilPopulated();
  const Requests sets = SetRequests(kKeys, kValueBytes);
  const Requests gets = GetRequests(kKeys, kValueBytes);
  LoadGenerator(server->port(), sets, 1, 1).RunOperations(sets.count);
  for (size_t i = 0; i < kKeys; ++i) {  // in DRAM, whatever is evicted
    server->control().Expect({"KV.PIN", "1", NumberedKey("key:", i), "HARD"});
  }
  uint64_t next = 0;
  // A client that stays: when a session ends, its arenas are emptied into the server's own regions,
  // and the next one's first writes would move all of that memory back.
  const auto client = ConnectClient(server->url("transport=shm&connections=2"));
  {
    SsdValues values("disk:", kMiB, DiskLoad::kBatch);
    for (const uint64_t first = 4 * memory / kMiB; next < first; next += values.batch()) {
      values.Put(*client, next, values.batch());
    }
  }
  // More than memory holds, so that no round of the reader finds what the last one brought up.
  const uint64_t old = 3 * memory / kMiB;
  WaitForDemotions(*server);
  LoadGenerator load(server->port(), gets, kConnections, 1);
  const double seconds = comparison.quick() ? 1.5 : 3;
  // Nor does the row ask for this: how late a loop is here that only receives and sends, beside a
  // disk as busy.
  const BareServer bare(gets.request_bytes, "$" + std::to_string(kValueBytes) + "\r\n" +
                                                std::string(kValueBytes, 'x') + "\r\n");
  LoadGenerator bare_load(bare.port(), gets, kConnections, 1);
  Figures ignored, beside, alone, bare_beside, bare_alone;
  SmallP99(load, seconds / 4, &ignored);
  SmallP99(bare_load, seconds / 4, &ignored);
  comparison.Measure(
      "p99-disk", comparison.reps(),
      [&] {
        Pair pair;
        pair.theirs = SmallP99(load, seconds, &alone);
        {
          const DiskLoad disk(*client, old, &next);
          usleep(300'000);
          const int64_t down = TierNumber(*server, "demoted_bytes");
          const int64_t up = TierNumber(*server, "loaded_bytes");
          const Stopwatch watch;
          pair.ours = SmallP99(load, seconds, &beside);
          const auto rate = [&](int64_t bytes) {
            return static_cast<double>(bytes) / watch.seconds() / 1e9;
          };
          beside.Add("down GB/s", rate(TierNumber(*server, "demoted_bytes") - down));
          beside.Add("up GB/s", rate(TierNumber(*server, "loaded_bytes") - up));
        }
        WaitForDemotions(*server);
        SmallP99(bare_load, seconds, &bare_alone);
        const BareDiskLoad disk(comparison.folder().path());
        SmallP99(bare_load, seconds, &bare_beside);
        return pair;
      },
      [&] {
        return Json{{"ours (disk busy)", beside.Medians()},
                    {"theirs (idle)", alone.Medians()},
                    {"a bare loop, disk busy", bare_beside.Medians()},
                    {"a bare loop, idle", bare_alone.Medians()}};
      });
}

// --- memory ----------------------------------------------------------------------------------

// The process's own memory: neither files nor the pool.
uint64_t AnonymousBytes(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string word; status >> word;) {
    if (word != "RssAnon:") continue;
    uint64_t kilobytes = 0;
    status >> kilobytes;
    return kilobytes << 10;
  }
  throw Failure("cannot read the memory of process " + std::to_string(pid));
}

// The most that was seen while it lived.
class MemoryWatch {
 public:
  explicit MemoryWatch(pid_t pid)
      : thread_([this, pid] {
          while (!stop_) {
            most_ = std::max<uint64_t>(most_, AnonymousBytes(pid));
            usleep(1000);
          }
        }) {}
  ~MemoryWatch() { Stop(); }
  uint64_t Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return most_;
  }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> most_{0};
  std::thread thread_;
};

void MemoryRow(SsdComparison& comparison) {
  if (!comparison.Wants("memory-512m")) return;
  constexpr uint64_t kValueBytes = 512'000'000;
  Figures figures;
  comparison.Measure(
      "memory-512m", comparison.reps(),
      [&] {
        // Room for one such value, so that a second one sends the first one down.
        const auto server = comparison.Server("memory", 640 * kMiB,
                                              {"--region-size", "512mb", "--memory-wait", "60000"});
        server->WaitUntilPopulated();
        const auto client = ConnectClient(server->url());
        SsdValues values("large:", kValueBytes, 1);
        values.Put(*client, 0, 1);
        usleep(200'000);
        const uint64_t before = AnonymousBytes(server->pid());
        MemoryWatch down(server->pid());
        values.Put(*client, 1, 1);
        WaitForDemotions(*server);
        const uint64_t most_down = down.Stop();
        const int64_t loaded = TierNumber(*server, "loaded_bytes");
        MemoryWatch up(server->pid());
        if (values.Get(*client, 0, 1, true) != 1)
          throw Failure("a value of 512 MB is gone; " + server->control().Info("tiers"));
        const uint64_t most_up = up.Stop();
        if (TierNumber(*server, "demoted_bytes") < static_cast<int64_t>(kValueBytes) ||
            TierNumber(*server, "loaded_bytes") - loaded < static_cast<int64_t>(kValueBytes)) {
          throw Failure("a value of 512 MB did not go to the SSD and come back");
        }
        const auto extra = [&](uint64_t most) {
          return (static_cast<double>(most) - static_cast<double>(before)) / 1e6;
        };
        figures.Add("down MB", extra(most_down));
        figures.Add("up MB", extra(most_up));
        figures.Add("before MB", static_cast<double>(before) / 1e6);
        Pair pair;
        pair.ours = std::max(extra(most_down), extra(most_up));
        return pair;
      },
      [&] {
        return Json{{"ours", figures.Medians()}};
      });
}

}  // namespace

void SsdServerRows(SsdComparison& comparison) {
  LatencyRow(comparison);
  comparison.RemoveDirectory("latency");
  MemoryRow(comparison);
  comparison.RemoveDirectory("memory");
}

}  // namespace moonpool::bench
