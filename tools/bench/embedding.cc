#include "tools/bench/embedding.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"
#include "tools/bench/requests.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kPageBytes = 1 << 20;
// More would make redis-server's replies, and hiredis's, needlessly large.
constexpr size_t kMgetKeys = 1000;
constexpr size_t kWriteBatch = 1024;

// A table of rows of one size on the servers, and the gathers from it.
class Gather {
 public:
  Gather(const EmbeddingOptions& options, uint64_t table_rows, uint64_t row_bytes,
         TestServer& moonpool, TestServer* redis)
      : row_bytes_(row_bytes),
        rows_per_page_(std::max<uint64_t>(kPageBytes / row_bytes, 1)),
        moonpool_(ConnectClient(moonpool.url("connections=1"))),
        redis_(redis),
        target_(MemoryBlock::Anonymous(options.gather_rows * row_bytes)) {
    std::mt19937_64 random(1);
    for (uint64_t i = 0; i < options.gather_rows; ++i) {
      rows_.push_back(random() % table_rows);
      names_.push_back(NumberedKey("row:", rows_.back()));
      buffers_.push_back({at(i), row_bytes});
    }
    keys_.assign(names_.begin(), names_.end());
    WriteRows(table_rows);
    WritePages(table_rows);
  }

  // Each gathers all rows into the target; rows per second.
  double ByKey() {
    return Timed([&] { ExpectOk(moonpool_->BatchGetInto(keys_, buffers_), "gathering"); });
  }

  double ByView() {
    return Timed([&] {
      std::vector<client::View> views(pages_);
      for (size_t page = 0; page < pages_; ++page) {
        const client::Status status = moonpool_->GetView(PageKey(page), &views[page]);
        if (!status.ok()) throw Failure("viewing a page: " + status.message);
      }
      for (size_t i = 0; i < rows_.size(); ++i) {
        const client::View& view = views[rows_[i] / rows_per_page_];
        std::memcpy(at(i), view.data() + rows_[i] % rows_per_page_ * row_bytes_, row_bytes_);
      }
      for (const client::View& view : views) {
        if (!view.still_valid()) throw Failure("a view was lost while rows were read from it");
      }
    });
  }

  double ByMget() {
    return Timed([&] {
      for (size_t first = 0; first < keys_.size(); first += kMgetKeys) {
        const size_t end = std::min(first + kMgetKeys, keys_.size());
        std::vector<std::string_view> words = {"MGET"};
        words.insert(words.end(), keys_.begin() + static_cast<ptrdiff_t>(first),
                     keys_.begin() + static_cast<ptrdiff_t>(end));
        const ReplyPtr reply = redis_->control().Expect(words);
        for (size_t i = first; i < end; ++i) {
          const redisReply& element = *reply->element[i - first];
          if (element.len != row_bytes_) throw Failure("MGET: a row is missing");
          std::memcpy(at(i), element.str, row_bytes_);
        }
      }
    });
  }

  void Check() const {
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!CheckPattern(at(i), row_bytes_, rows_[i])) throw Failure("a row has wrong bytes");
    }
  }
  void Clear() { std::fill_n(target_.data(), target_.size(), '\0'); }

 private:
  char* at(size_t i) const { return target_.data() + i * row_bytes_; }
  static std::string PageKey(size_t page) { return NumberedKey("page", page); }

  template <typename Work>
  double Timed(Work&& work) {
    const Stopwatch watch;
    work();
    return static_cast<double>(rows_.size()) / watch.seconds();
  }

  void WriteRows(uint64_t table_rows) {
    std::string memory(kWriteBatch * row_bytes_, '\0');
    for (uint64_t first = 0; first < table_rows; first += kWriteBatch) {
      const uint64_t end = std::min<uint64_t>(first + kWriteBatch, table_rows);
      std::vector<std::string> names;
      std::vector<std::string_view> values;
      for (uint64_t row = first; row < end; ++row) {
        char* const bytes = memory.data() + (row - first) * row_bytes_;
        FillPattern(bytes, row_bytes_, row, 1);
        names.push_back(NumberedKey("row:", row));
        values.emplace_back(bytes, row_bytes_);
      }
      const std::vector<std::string_view> keys(names.begin(), names.end());
      ExpectOk(moonpool_->BatchPut(keys, values), "writing rows");
      if (redis_ == nullptr) continue;
      std::vector<std::string_view> words = {"MSET"};
      for (size_t i = 0; i < keys.size(); ++i) {
        words.push_back(keys[i]);
        words.push_back(values[i]);
      }
      redis_->control().Expect(words);
    }
  }

  void WritePages(uint64_t table_rows) {
    pages_ = (table_rows + rows_per_page_ - 1) / rows_per_page_;
    std::string page(rows_per_page_ * row_bytes_, '\0');
    for (size_t number = 0; number < pages_; ++number) {
      for (uint64_t i = 0; i < rows_per_page_; ++i) {
        FillPattern(page.data() + i * row_bytes_, row_bytes_, number * rows_per_page_ + i, 1);
      }
      const client::Status status = moonpool_->Set(PageKey(number), page);
      if (!status.ok()) throw Failure("writing a page: " + status.message);
    }
  }

  const uint64_t row_bytes_;
  const uint64_t rows_per_page_;
  std::unique_ptr<client::Client> moonpool_;
  TestServer* const redis_;
  MemoryBlock target_;
  size_t pages_ = 0;
  std::vector<uint64_t> rows_;
  std::vector<std::string> names_;
  std::vector<std::string_view> keys_;
  std::vector<client::Buffer> buffers_;
};

}  // namespace

int Embedding(const EmbeddingOptions& options) {
  const int reps = options.reps > 0 ? options.reps : options.common.quick ? 1 : 5;
  const uint64_t table_rows =
      options.table_rows > 0 ? options.table_rows : 2 * options.gather_rows;
  const std::string server_path = FindMoonpoolServer(options.common.server);
  Report report = NewReport(options.common, "embedding");
  report.settings["gather_rows"] = options.gather_rows;
  report.settings["table_rows"] = table_rows;
  report.settings["reps"] = reps;
  const bool with_redis = !FindInPath("redis-server").empty();
  if (!with_redis) Progress("redis-server is not installed: nothing to compare with");
  for (const uint64_t bytes : options.sizes) {
    const std::string size = std::to_string(bytes) + " B";
    Progress("a table of " + std::to_string(table_rows) + " rows of " + size);
    const uint64_t memory = std::max<uint64_t>(table_rows * bytes * 4, 1ull << 30);
    const auto moonpool =
        TestServer::StartMoonpool(server_path, {"--maxmemory", std::to_string(memory)});
    const auto redis = with_redis ? TestServer::StartRedis() : nullptr;
    report.versions["moonpool"] = moonpool->version();
    if (redis != nullptr) report.versions["redis"] = redis->version();
    Gather gather(options, table_rows, bytes, *moonpool, redis.get());
    moonpool->WaitUntilPopulated();
    std::vector<Pair> by_key, by_view;
    for (int rep = -1; rep < reps; ++rep) {  // the first time is for warming up and checking
      const auto measure = [&](double (Gather::*method)()) {
        if (rep < 0) gather.Clear();
        const double rate = (gather.*method)();
        if (rep < 0) gather.Check();
        return rate;
      };
      const double keys = measure(&Gather::ByKey);
      const std::optional<double> mget =
          redis != nullptr ? std::optional(measure(&Gather::ByMget)) : std::nullopt;
      const double views = measure(&Gather::ByView);
      if (rep < 0) continue;
      by_key.push_back({keys, mget});
      by_view.push_back({views, mget});
    }
    for (const bool views : {false, true}) {
      Row row;
      row.id = (views ? "views-" : "keys-") + std::to_string(bytes);
      row.name = size + (views ? ", rows in 1 MiB values vs MGET" : ", a key per row vs MGET");
      row.unit = "rows/s";
      row.better = Row::Better::kHigher;
      SetFromPairs(views ? by_view : by_key, &row);
      const double to_gb = static_cast<double>(bytes) / 1e9;
      row.details["GB/s"] = *row.ours * to_gb;
      if (row.theirs) row.details["GB/s of MGET"] = *row.theirs * to_gb;
      report.rows.push_back(std::move(row));
    }
  }
  Print(options.common, "gathers of " + std::to_string(options.gather_rows) +
                            " random rows, medians of " + std::to_string(reps) + "\n\n" +
                            Table(report.rows) + "\n" + DetailTable(report.rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
