// Rows about libmoonpool over shared memory: reads, writes and views.
#include <algorithm>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/histogram.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"
#include "tools/bench/requests.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;

// Values of one size, their keys, and buffers in the caller's memory for all of them.  Get() reads
// them in batches of `batch` into the buffers of the first batch, as an engine with a staging
// buffer does; a batch of all of them uses every buffer.
class ValueSet {
 public:
  ValueSet(std::string_view prefix, size_t values, uint64_t bytes, size_t batch)
      : bytes_(bytes), batch_(batch), step_((bytes + 4095) / 4096 * 4096), memory_(MemoryBlock::Anonymous(values * step_)) {
    for (size_t i = 0; i < values; ++i) {
      names_.push_back(NumberedKey(prefix, i));
      buffers_.push_back({at(i), bytes});
      sources_.push_back({at(i), bytes});
    }
    keys_.assign(names_.begin(), names_.end());
    Fill();
  }

  void Fill() {
    for (size_t i = 0; i < keys_.size(); ++i) FillPattern(at(i), bytes_, i, 1);
  }
  void Clear() { std::fill_n(memory_.data(), memory_.size(), '\0'); }

  char* at(size_t i) const { return memory_.data() + i * step_; }
  const std::vector<std::string_view>& keys() const { return keys_; }
  uint64_t total_bytes() const { return bytes_ * keys_.size(); }
  uint64_t value_bytes() const { return bytes_; }
  size_t step() const { return step_; }

  void Put(client::Client& client) const {
    ExpectOk(client.BatchPutFrom(keys_, sources_), "BatchPutFrom over shm");
  }
  void Get(client::Client& client, bool check = false) const {
    for (size_t first = 0; first < keys_.size(); first += batch_) {
      const size_t count = std::min(batch_, keys_.size() - first);
      ExpectOk(client.BatchGetInto(std::span(keys_).subspan(first, count),
                                   std::span(buffers_).first(count)),
               "BatchGetInto over shm");
      for (size_t i = 0; check && i < count; ++i) {
        if (!CheckPattern(at(i), bytes_, first + i)) throw Failure("wrong bytes in " + names_[first + i]);
      }
    }
  }

 private:
  uint64_t bytes_;
  size_t batch_;
  size_t step_;
  MemoryBlock memory_;
  std::vector<std::string> names_;
  std::vector<std::string_view> keys_;
  std::vector<client::Buffer> buffers_;
  std::vector<client::ConstBuffer> sources_;
};

// GB/s of `pass`, which moves `bytes`, repeated for about `seconds`.
template <typename Pass>
double Rate(uint64_t bytes, double seconds, Pass&& pass) {
  const Stopwatch watch;
  uint64_t moved = 0;
  do {
    pass();
    moved += bytes;
  } while (watch.seconds() < seconds);
  return static_cast<double>(moved) / watch.seconds() / 1e9;
}

// The better of two ways to copy all values between `file` and the set's buffers.
double BestCopy(const ValueSet& set, const MemoryBlock& file, bool out, double seconds,
                Figures* figures) {
  double best = 0;
  for (const CopyMethod method : {CopyMethod::kFastString, CopyMethod::kMemcpy}) {
    const double rate = Rate(set.total_bytes(), seconds / 2, [&] {
      for (size_t i = 0; i < set.keys().size(); ++i) {
        char* const there = file.data() + i * set.step();
        CopyBy(method, out ? set.at(i) : there, out ? there : set.at(i), set.value_bytes());
      }
    });
    figures->Add(std::string(NameOf(method)) + " GB/s", rate);
    best = std::max(best, rate);
  }
  return best;
}

void RequireSharedMemory(const client::Client& client) {
  const client::Stats stats = client.stats();
  if (stats.fallbacks != 0 || stats.tcp.values_read != 0 || stats.tcp.values_written != 0) {
    throw Failure("values that should have gone over shared memory went over tcp");
  }
}

size_t ValuesBeyondCache() {
  return std::max<size_t>((4 * ThisMachine().l3_bytes + kMiB - 1) / kMiB, 64);
}

void CopyRows(Comparison& comparison) {
  const auto moonpool = comparison.Moonpool();
  const auto client = ConnectClient(moonpool->url("transport=shm&connections=1"));
  ValueSet set("shm:", ValuesBeyondCache(), kMiB, ValuesBeyondCache());
  const double seconds = comparison.seconds(1, 0.2);
  // Several times: write arenas are made, and mapped page by page, as they are first used.
  for (int i = 0; i < (comparison.quick() ? 2 : 4); ++i) {
    set.Put(*client);
    moonpool->WaitUntilPopulated();
  }
  const MemoryBlock file = MemoryBlock::SharedFile(set.keys().size() * set.step());
  if (comparison.Wants("shm-put-1m")) {
    Figures copies, warm_up;
    Rate(set.total_bytes(), seconds / 2, [&] { set.Put(*client); });
    BestCopy(set, file, false, seconds / 2, &warm_up);
    comparison.Row(
        "shm-put-1m",
        [&] { return Rate(set.total_bytes(), seconds, [&] { set.Put(*client); }); },
        [&] { return BestCopy(set, file, false, seconds, &copies); },
        [&] { return Json{{"theirs", copies.Medians()}}; });
  }
  if (comparison.Wants("shm-get-1m")) {
    Figures copies, warm_up;
    set.Clear();
    set.Get(*client, true);
    BestCopy(set, file, false, 0, &warm_up);
    BestCopy(set, file, true, seconds / 2, &warm_up);
    comparison.Row(
        "shm-get-1m",
        [&] { return Rate(set.total_bytes(), seconds, [&] { set.Get(*client); }); },
        [&] { return BestCopy(set, file, true, seconds, &copies); },
        [&] {
          return Json{{"theirs", copies.Medians()}, {"set bytes", set.total_bytes()}};
        });
    set.Get(*client, true);
  }
  RequireSharedMemory(*client);
}

void HiredisRows(Comparison& comparison) {
  struct Size {
    const char* id;
    uint64_t bytes;
    size_t values;
    size_t batch;
  };
  // Warm sets of about a tenth of a gigabyte; both sides read into memory they use again.  Two
  // threads copy, as on any machine of eight cores; what one does alone is in the details.
  const Size sizes[] = {{"shm-redis-1m", kMiB, 64, 4},
                        {"shm-redis-16m", 16 * kMiB, 8, 1},
                        {"shm-redis-100m", 100'000'000, 2, 1}};
  for (const Size& size : sizes) {
    if (!comparison.Wants(size.id)) continue;
    const auto moonpool = comparison.Moonpool();
    const auto redis = comparison.Redis();
    const std::string url = moonpool->url("transport=shm&connections=1&copy_threads=");
    const auto client = ConnectClient(url + "2");
    const auto one_thread = ConnectClient(url + "1");
    ValueSet set("red:", size.values, size.bytes, size.batch);
    set.Put(*client);
    for (size_t i = 0; i < size.values; ++i) {
      redis->control().Expect({"SET", set.keys()[i], {set.at(i), size.bytes}});
    }
    moonpool->WaitUntilPopulated();
    set.Clear();
    set.Get(*client, true);
    const auto redis_pass = [&](bool check) {
      for (size_t i = 0; i < size.values; ++i) {
        const ReplyPtr reply = redis->control().Expect({"GET", set.keys()[i]});
        if (reply->len != size.bytes || (check && !CheckPattern(reply->str, size.bytes, i))) {
          throw Failure("redis-server: wrong bytes");
        }
      }
    };
    redis_pass(true);
    const double seconds = comparison.seconds(1, 0.2);
    Figures figures;
    comparison.Row(
        size.id,
        [&] {
          figures.Add("one thread GB/s",
                      Rate(set.total_bytes(), seconds / 2, [&] { set.Get(*one_thread); }));
          return Rate(set.total_bytes(), seconds, [&] { set.Get(*client); });
        },
        [&] { return Rate(set.total_bytes(), seconds, [&] { redis_pass(false); }); },
        [&] { return Json{{"ours", figures.Medians()}}; });
    RequireSharedMemory(*client);
    RequireSharedMemory(*one_thread);
  }
}

}  // namespace

void SharedMemoryRows(Comparison& comparison) {
  if (comparison.WantsAny({"shm-get-1m", "shm-put-1m"})) CopyRows(comparison);
  HiredisRows(comparison);
}

void ViewRows(Comparison& comparison) {
  if (!comparison.WantsAny({"view-1m", "view-100m"})) return;
  const auto moonpool = comparison.Moonpool();
  const auto client = ConnectClient(moonpool->url("transport=shm&connections=1"));
  const std::pair<const char*, uint64_t> sizes[] = {{"view-1m", kMiB}, {"view-100m", 100'000'000}};
  for (const auto& [id, bytes] : sizes) {
    if (!comparison.Wants(id)) continue;
    ValueSet set("view:", 1, bytes, 1);
    set.Put(*client);
    moonpool->WaitUntilPopulated();
    const auto view_once = [&, bytes = bytes] {
      client::View view;
      const client::Status status = client->GetView(set.keys()[0], &view);
      if (!status.ok() || view.is_copy() || view.size() != bytes) {
        throw Failure("GetView did not give a view: " + status.message);
      }
      return view;
    };
    if (!CheckPattern(view_once().data(), bytes, 0)) throw Failure("a view has wrong bytes");
    Figures figures;
    // In short turns, so that whatever else the machine does meets all three alike.
    const int turns = comparison.quick() ? 10 : 50;
    comparison.Row(id, comparison.reps(), [&] {
      constexpr int kCalls = 40;
      Histogram views, pings, own_pings;
      for (int turn = 0; turn < turns; ++turn) {
        for (int i = 0; i < kCalls; ++i) {
          const Stopwatch watch;
          view_once();
          views.Record(watch.ns());
        }
        for (int i = 0; i < kCalls; ++i) {
          const Stopwatch watch;
          moonpool->control().Command({"PING"});
          pings.Record(watch.ns());
        }
        for (int i = 0; i < kCalls; ++i) {
          const Stopwatch watch;
          client->Ping();
          own_pings.Record(watch.ns());
        }
      }
      figures.Add("view p99 us", views.PercentileUs(99));
      figures.Add("hiredis PING p99 us", pings.PercentileUs(99));
      figures.Add("libmoonpool Ping p50 us", own_pings.PercentileUs(50));
      return Pair{views.PercentileUs(50), pings.PercentileUs(50)};
    }, [&] { return figures.Medians(); });
  }
}

}  // namespace moonpool::bench
