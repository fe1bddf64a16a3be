// Rows about what compression makes of KV caches in bf16, and what it costs.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <random>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/requests.h"
#include "tools/bench/ssd_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr size_t kHeadSize = 128;  // channels of one head
constexpr size_t kBatch = 16;
constexpr double kStopSeconds = 60;

// 16 MiB of keys of an attention layer as they lie in a cache: for each token and channel a number
// around the channel's mean, whose spread differs from channel to channel (as measured by KIVI,
// arXiv 2402.02750), rounded to bf16.
void FillBf16(char* to, uint64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  float mean[kHeadSize], spread[kHeadSize];
  for (size_t i = 0; i < kHeadSize; ++i) {
    spread[i] = std::exp(normal(random) * 0.7f);
    mean[i] = normal(random) * 2 * spread[i];
  }
  for (uint64_t at = 0; at < bytes; at += 2) {
    const size_t channel = at / 2 % kHeadSize;
    const float number = mean[channel] + spread[channel] * normal(random);
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    const auto half = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    std::memcpy(to + at, &half, sizeof(half));
  }
}

void CompressionRow(SsdComparison& comparison, const std::string& codec) {
  const std::string id = "bf16-" + codec;
  if (!comparison.Wants(id)) return;
  const uint64_t memory = 256 * kMiB;
  const uint64_t count = comparison.quick() ? 768 : 1536;
  const MemoryBlock source = MemoryBlock::Anonymous(kBatch * kMiB);
  const MemoryBlock target = MemoryBlock::Anonymous(kBatch * kMiB);
  FillBf16(source.data(), kBatch * kMiB, 1);
  Figures figures;
  comparison.Measure(
      id, comparison.reps(),
      [&] {
        const auto server = comparison.Server(id, memory, {"--ssd-compression", codec});
        server->WaitUntilPopulated();
        const auto client = ConnectClient(server->url("transport=shm&connections=1"));
        const auto for_each_batch = [&](uint64_t values, const auto& act) {
          for (uint64_t first = 0; first < values; first += kBatch) {
            std::vector<std::string> names;
            for (size_t i = 0; i < kBatch; ++i) names.push_back(NumberedKey("bf16:", first + i));
            act(std::vector<std::string_view>(names.begin(), names.end()));
          }
        };
        const auto measure = [&](const char* way, uint64_t values, const auto& act) {
          const double cpu_s = server->CpuSeconds();
          const Stopwatch watch;
          for_each_batch(values, act);
          if (way == std::string_view("down")) WaitForDemotions(*server);
          const double gb = static_cast<double>(values * kMiB) / 1e9;
          figures.Add(std::string(way) + " GB/s", gb / watch.seconds());
          figures.Add(std::string(way) + " CPU s/GB", (server->CpuSeconds() - cpu_s) / gb);
        };
        measure("down", count, [&](const std::vector<std::string_view>& keys) {
          std::vector<client::ConstBuffer> sources;
          for (size_t i = 0; i < kBatch; ++i) sources.push_back({source.data() + i * kMiB, kMiB});
          ExpectOk(client->BatchPutFrom(keys, sources), "BatchPutFrom");
        });
        // What was written first, and is in memory no more.
        measure("up", count - 2 * memory / kMiB, [&](const std::vector<std::string_view>& keys) {
          std::vector<client::Buffer> targets;
          for (size_t i = 0; i < kBatch; ++i) targets.push_back({target.data() + i * kMiB, kMiB});
          ExpectOk(client->BatchGetInto(keys, targets), "BatchGetInto");
          if (std::memcmp(source.data(), target.data(), kBatch * kMiB) != 0) {
            throw Failure("wrong bytes came up from the SSD");
          }
        });
        // Which writes what only memory has.
        server->StopCleanly(kStopSeconds);
        uint64_t bytes = 0;
        for (const auto& file :
             std::filesystem::recursive_directory_iterator(comparison.folder().path() + "/" + id)) {
          if (file.is_regular_file()) bytes += file.file_size();
        }
        comparison.RemoveDirectory(id);
        Pair pair;
        pair.ours = static_cast<double>(bytes) / static_cast<double>(count * kMiB);
        return pair;
      },
      [&] { return Json{{"ours", figures.Medians()}}; });
}

}  // namespace

void SsdCompressionRows(SsdComparison& comparison) {
  for (const char* codec : {"none", "lz4", "zstd"}) CompressionRow(comparison, codec);
}

}  // namespace moonpool::bench
