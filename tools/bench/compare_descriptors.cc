// Rows about descriptors and batches: what KV.LOCATE costs, and what one call for many keys saves.
#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"
#include "tools/bench/requests.h"

namespace moonpool::bench {

namespace {

constexpr size_t kBatch = 128;
constexpr uint64_t kValueBytes = 4096;

// `count` values under "key:...", written in batches.
void Populate(const TestServer& server, size_t count) {
  const auto client = ConnectClient(server.url("transport=tcp&connections=1"));
  std::string value(kValueBytes, '\0');
  for (size_t first = 0; first < count; first += 1024) {
    const size_t end = std::min(first + 1024, count);
    std::vector<std::string> names, values;
    for (size_t i = first; i < end; ++i) {
      names.push_back(NumberedKey("key:", i));
      FillPattern(value.data(), value.size(), i, 1);
      values.push_back(value);
    }
    const std::vector<std::string_view> keys(names.begin(), names.end());
    const std::vector<std::string_view> views(values.begin(), values.end());
    ExpectOk(client->BatchPut(keys, views), "BatchPut");
  }
}

void LocateRow(Comparison& comparison) {
  const size_t keys = comparison.quick() ? 10'000 : 50'000;
  const auto moonpool =
      comparison.Moonpool({"--io-threads", "1", "--bulk-threshold", std::to_string(kValueBytes)});
  Populate(*moonpool, keys);
  moonpool->WaitUntilPopulated();
  const Requests requests = LocateRequests(keys, kBatch, 2000);
  // Several sessions: each has a limit on the leases it may hold at one time.
  LoadGenerator load(moonpool->port(), requests, 8, 1);
  const double seconds = comparison.seconds(2, 0.4);
  load.Run(seconds / 2);
  Figures figures;
  comparison.Row(
      "locate-128",
      [&] {
        const double before = moonpool->CpuSeconds();
        const LoadResult result = load.Run(seconds);
        const double cpu_s = moonpool->CpuSeconds() - before;
        const double located = static_cast<double>(result.operations * kBatch);
        figures.Add("keys/s", located / result.seconds);
        figures.Add("CPU ns/key", cpu_s / located * 1e9);
        figures.Add("p50 us", result.latency.PercentileUs(50));
        figures.Add("p99 us", result.latency.PercentileUs(99));
        return located / cpu_s;
      },
      {}, [&] { return Json{{"ours", figures.Medians()}}; });
  const int64_t granted = moonpool->control().MapNumber("KV.STATS", "leases");
  const int64_t described = moonpool->control().MapNumber("KV.STATS", "descriptors");
  if (granted < described / 2) {
    Progress("KV.LOCATE: only " + std::to_string(granted) + " of " + std::to_string(described) +
             " descriptors carried a lease");
  }
}

void BatchRow(Comparison& comparison, std::string_view id, uint64_t bulk_threshold) {
  if (!comparison.Wants(id)) return;
  const auto moonpool = comparison.Moonpool({"--bulk-threshold", std::to_string(bulk_threshold)});
  Populate(*moonpool, kBatch);
  moonpool->WaitUntilPopulated();
  const auto client = ConnectClient(moonpool->url("connections=1"));
  const MemoryBlock memory = MemoryBlock::Anonymous(kBatch * kValueBytes);
  std::vector<std::string> names;
  std::vector<client::Buffer> buffers;
  for (size_t i = 0; i < kBatch; ++i) {
    names.push_back(NumberedKey("key:", i));
    buffers.push_back({memory.data() + i * kValueBytes, kValueBytes});
  }
  const std::vector<std::string_view> keys(names.begin(), names.end());
  const auto batch = [&] { ExpectOk(client->BatchGetInto(keys, buffers), "BatchGetInto"); };
  std::string value;
  const auto singles = [&] {
    for (const std::string_view key : keys) {
      if (!client->Get(key, &value).ok() || value.size() != kValueBytes) {
        throw Failure("Get: no value");
      }
    }
  };
  batch();
  singles();
  for (size_t i = 0; i < kBatch; ++i) {
    if (!CheckPattern(buffers[i].data, kValueBytes, i)) throw Failure("a batch has wrong bytes");
  }
  const auto rate = [&](const auto& work) {
    const double seconds = comparison.seconds(0.5, 0.1);
    const Stopwatch watch;
    int count = 0;
    do {
      work();
      ++count;
    } while (watch.seconds() < seconds);
    return count / watch.seconds();
  };
  comparison.Row(id, [&] { return rate(batch); }, [&] { return rate(singles); });
}

}  // namespace

void DescriptorRows(Comparison& comparison) {
  if (comparison.Wants("locate-128")) LocateRow(comparison);
  BatchRow(comparison, "batch-128", kValueBytes);
  BatchRow(comparison, "batch-128-inline", 64 << 10);
}

}  // namespace moonpool::bench
