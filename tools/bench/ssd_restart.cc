// Rows about what a clean restart keeps, and how long it takes.
#include <algorithm>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/requests.h"
#include "tools/bench/ssd_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kMillion = 1'000'000;
constexpr double kStopSeconds = 120;

void KeysRow(SsdComparison& comparison) {
  if (!comparison.Wants("restart-keys")) return;
  constexpr uint64_t kValueBytes = 256 * 1024;
  constexpr size_t kBatch = 32, kSmallBytes = 64;
  const uint64_t large = comparison.quick() ? 1024 : 4096;
  const size_t small = comparison.quick() ? 10'000 : 100'000;
  const uint64_t memory = 128 * kMiB;
  const Requests sets = SetRequests(small, kSmallBytes);
  Figures figures;
  comparison.Measure(
      "restart-keys", comparison.reps(),
      [&] {
        comparison.RemoveDirectory("keys");
        SsdValues values("large:", kValueBytes, kBatch);
        {
          const auto server = comparison.Server("keys", memory);
          const auto client = ConnectClient(server->url("transport=shm"));
          for (uint64_t i = 0; i < large; i += kBatch) values.Put(*client, i, kBatch);
          LoadGenerator(server->port(), sets, 16, 16).RunOperations(small);
          figures.Add("bytes on SSD before", static_cast<double>(TierNumber(*server, "bytes")));
          figures.Add("stop s", server->StopCleanly(kStopSeconds));
        }
        const auto server = comparison.Server("keys", memory);
        figures.Add("start s", server->start_seconds());
        const auto client = ConnectClient(server->url("transport=shm"));
        uint64_t served = 0;
        // Small values first: they are dropped, not demoted, when large ones want memory.
        for (size_t i = 0; i < small; ++i) {
          const ReplyPtr reply = server->control().Command({"GET", NumberedKey("key:", i)});
          served += reply->type == REDIS_REPLY_STRING && reply->len == kSmallBytes ? 1 : 0;
        }
        const uint64_t small_served = served;
        figures.Add("small values missing", static_cast<double>(small - served));
        for (uint64_t i = 0; i < large; i += kBatch) served += values.Get(*client, i, kBatch, true);
        figures.Add("large values missing", static_cast<double>(large - (served - small_served)));
        Pair pair;
        pair.ours = static_cast<double>(served) / static_cast<double>(large + small);
        return pair;
      },
      [&] {
        return Json{{"large values", large}, {"small values", small}, {"ours", figures.Medians()}};
      });
}

void StartRow(SsdComparison& comparison) {
  if (!comparison.Wants("start-1m")) return;
  constexpr uint64_t kValueBytes = 4096;
  constexpr size_t kBatch = 256, kSample = 8192;
  const uint64_t keys = comparison.quick() ? 50'176 : (kMillion + kBatch - 1) / kBatch * kBatch;
  const uint64_t memory = 256 * kMiB;
  const std::vector<std::string> flags = {"--bulk-threshold", "4096"};
  SsdValues values("start:", kValueBytes, kBatch);
  Figures figures;
  double empty_s = 0;
  {
    const auto server = comparison.Server("start", memory, flags);
    empty_s = server->start_seconds();
    Progress("writing " + std::to_string(keys) + " values of 4 KiB");
    const auto client = ConnectClient(server->url("transport=shm"));
    const Stopwatch watch;
    for (uint64_t i = 0; i < keys; i += kBatch) values.Put(*client, i, kBatch);
    figures.Add("keys written/s", static_cast<double>(keys) / watch.seconds());
    figures.Add("stop s", server->StopCleanly(kStopSeconds));
  }
  comparison.Measure(
      "start-1m", comparison.reps(),
      [&] {
        const auto server = comparison.Server("start", memory, flags);
        const double start_s = server->start_seconds();
        figures.Add("start s", start_s);
        figures.Add("keys on SSD", static_cast<double>(TierNumber(*server, "versions")));
        const auto client = ConnectClient(server->url("transport=shm"));
        uint64_t served = 0;
        for (uint64_t i = 0; i < kSample; i += kBatch) {
          served += values.Get(*client, i * (keys / kSample) / kBatch * kBatch, kBatch);
        }
        figures.Add("share of a sample served",
                    static_cast<double>(served) / static_cast<double>(kSample));
        figures.Add("second stop s", server->StopCleanly(kStopSeconds));
        Pair pair;
        // What fewer keys took beyond an empty start, as often as a million has them.
        const double times = static_cast<double>(kMillion) / static_cast<double>(keys);
        pair.ours = start_s + std::max(times - 1, 0.0) * std::max(start_s - empty_s, 0.0);
        return pair;
      },
      [&] {
        return Json{{"ours", figures.Medians()},
                    {"keys", keys},
                    {"scaled to a million", keys >= kMillion ? "no" : "yes"},
                    {"start of an empty one, s", empty_s}};
      });
}

}  // namespace

void SsdRestartRows(SsdComparison& comparison) {
  KeysRow(comparison);
  comparison.RemoveDirectory("keys");
  StartRow(comparison);
  comparison.RemoveDirectory("start");
}

}  // namespace moonpool::bench
