#include "tools/bench/ssd.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/pattern.h"
#include "tools/bench/requests.h"
#include "tools/bench/ssd_rows.h"

namespace moonpool::bench {

namespace {

constexpr double kMemorySeconds = 60;  // how long a write is tried again after -OOM
constexpr double kDemotionSeconds = 120;
constexpr uint64_t kPageBytes = 4096;

// How large KV caches in bf16 are on the SSD; nothing is asked of it.
Row SizeTemplate(const std::string& codec) {
  Row row;
  row.id = "bf16-" + codec;
  row.name = "bf16 on the SSD, ssd-compression " + codec;
  row.unit = "of its size";
  row.better = Row::Better::kLower;
  row.judged = Row::Judged::kOurs;
  return row;
}

}  // namespace

const std::vector<Row>& SsdRowTable() {
  using enum Row::Better;
  using enum Row::Judged;
  static const std::vector<Row> rows = {
      RowTemplate("read-1m", "batch_get_into 1 MiB from SSD vs the disk's read", "GB/s", kHigher, 0.7,
               0.95, kRatio),
      RowTemplate("demote-1m", "demotion of 1 MiB values vs the disk's write", "GB/s", kHigher, 0.5,
               0.9, kRatio),
      RowTemplate("p99-disk", "p99 of small GETs, disk flat out vs idle", "us", kLower, 3, 1.5,
               kRatio),
      RowTemplate("memory-512m", "extra memory for a 512 MB value down and up", "MB", kLower, 64, 8,
               kOurs),
      RowTemplate("restart-keys", "keys served after a clean restart", "share", kHigher, 0.99, 1,
               kOurs),
      RowTemplate("start-1m", "start-up with a million keys on SSD", "s", kLower, 5, 1, kOurs),
      RowTemplate("warm-seconds", "to 90 % of steady hits, restart vs cold", "s", kLower, 0.4, 0.1,
               kRatio),
      RowTemplate("warm-requests", "the same in requests", "requests", kLower, 0.4, 0.1, kRatio),
      SizeTemplate("none"),
      SizeTemplate("lz4"),
      SizeTemplate("zstd"),
  };
  return rows;
}

SsdComparison::SsdComparison(const SsdModeOptions& options)
    : options_(options),
      moonpool_path_(FindMoonpoolServer(options.common.server)),
      reps_(options.reps > 0       ? options.reps
            : options.common.quick ? 1
                                   : 5),
      folder_(options.directory),
      rows_(SsdRowTable(), options.rows),
      report_(NewReport(options.common, "ssd")) {
  report_.settings["reps"] = reps_;
  report_.settings["file_system"] = folder_.file_system();
}

std::unique_ptr<TestServer> SsdComparison::Server(const std::string& name, uint64_t memory_bytes,
                                                  const std::vector<std::string>& flags) {
  std::vector<std::string> all = {"--maxmemory",     std::to_string(memory_bytes),
                                  "--ssd-directory", folder_.path() + "/" + name,
                                  "--ssd-capacity",  "1tb"};
  all.insert(all.end(), flags.begin(), flags.end());
  auto server = TestServer::StartMoonpool(moonpool_path_, all);
  report_.versions["moonpool"] = server->version();
  return server;
}

void SsdComparison::RemoveDirectory(const std::string& name) const {
  std::error_code ignored;
  std::filesystem::remove_all(folder_.path() + "/" + name, ignored);
}

Report SsdComparison::Finish() {
  report_.rows = rows_.Ordered();
  return report_;
}

SsdValues::SsdValues(std::string prefix, uint64_t bytes, size_t batch)
    : prefix_(std::move(prefix)),
      bytes_(bytes),
      batch_(batch),
      memory_(MemoryBlock::Anonymous(bytes * batch)) {}

void SsdValues::Name(uint64_t first, size_t count) {
  names_.clear();
  for (size_t i = 0; i < count; ++i) names_.push_back(NumberedKey(prefix_, first + i));
  keys_.assign(names_.begin(), names_.end());
}

void SsdValues::Put(client::Client& client, uint64_t first, size_t count) {
  Name(first, count);
  std::vector<client::ConstBuffer> sources;
  for (size_t i = 0; i < count; ++i) {
    FillPattern(at(i), bytes_, first + i, 1);
    sources.push_back({at(i), bytes_});
  }
  const Stopwatch watch;
  for (;;) {
    const auto results = client.BatchPutFrom(keys_, sources);
    std::vector<std::string_view> refused;
    std::vector<client::ConstBuffer> left;
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].ok()) continue;
      if (results[i].code != client::Code::kOutOfMemory || watch.seconds() > kMemorySeconds) {
        ExpectOk({results[i]}, "BatchPutFrom");
      }
      refused.push_back(keys_[i]);
      left.push_back(sources[i]);
    }
    if (refused.empty()) return;
    keys_ = std::move(refused);
    sources = std::move(left);
  }
}

size_t SsdValues::Get(client::Client& client, uint64_t first, size_t count, bool all) {
  Name(first, count);
  std::vector<client::Buffer> buffers;
  for (size_t i = 0; i < count; ++i) buffers.push_back({at(i), bytes_});
  const auto results = client.BatchGetInto(keys_, buffers);
  size_t good = 0;
  for (size_t i = 0; i < count; ++i) {
    if (results[i].code == client::Code::kMiss) continue;
    ExpectOk({results[i]}, "BatchGetInto");
    if (!CheckPattern(at(i), all ? bytes_ : std::min(bytes_, kPageBytes), first + i)) {
      throw Failure("wrong bytes in " + names_[i]);
    }
    ++good;
  }
  return good;
}

int64_t TierNumber(TestServer& server, const std::string& field) {
  return server.control().InfoNumber("tiers", "tier_ssd_" + field);
}

void WaitForDemotions(TestServer& server) {
  const Stopwatch watch;
  while (TierNumber(server, "demotion_queue") > 0) {
    if (watch.seconds() > kDemotionSeconds) throw Failure("values do not reach the SSD");
    usleep(10000);
  }
}

int Ssd(const SsdModeOptions& options) {
  if (options.list) {
    std::string text;
    for (const Row& row : SsdRowTable()) text += row.id + "\t" + row.name + "\n";
    Print(options.common, text);
    return 0;
  }
  SsdComparison comparison(options);
  const auto& all = SsdRowTable();
  if (std::none_of(all.begin(), all.end(), [&](const Row& r) { return comparison.Wants(r.id); })) {
    throw Failure("--rows '" + options.rows + "' matches no row; ssd --list names them");
  }
  Progress("measuring in " + comparison.folder().path() + " (" + comparison.folder().file_system() +
           ")");
  for (const auto group : {SsdThroughputRows, SsdServerRows, SsdRestartRows, SsdWarmthRows,
                           SsdCompressionRows}) {
    group(comparison);
  }
  const Report report = comparison.Finish();
  Print(options.common, Describe(report.machine) + "\n" + "moonpool " +
                            report.versions.value("moonpool", "-") + ", " +
                            comparison.folder().file_system() + ", direct I/O, medians of " +
                            std::to_string(comparison.reps()) + "\n\n" + Table(report.rows) + "\n" +
                            DetailTable(report.rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
