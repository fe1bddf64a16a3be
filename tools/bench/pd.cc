#include "tools/bench/pd.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/histogram.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

// What a model keeps per token and layer, in bf16.
struct Model {
  const char* name;
  int layers;
  uint64_t bytes_per_token;  // in one layer, on one rank
};
constexpr Model kModels[] = {
    {"llama-3-8b", 32, 2 * 8 * 128 * 2},       // K and V, 8 heads of 128
    {"llama-3-70b-tp8", 80, 2 * 1 * 128 * 2},  // one of 8 heads on each of 8 ranks
    {"deepseek-v3", 61, (512 + 64) * 2},       // MLA: one latent and the rotary part
};

struct Shape {
  int layers = 0;
  size_t blocks = 0;  // per layer
  uint64_t block_bytes = 0;
  double layer_seconds = 0;  // of computing one
  uint64_t layer_bytes() const { return blocks * block_bytes; }
  uint64_t request_bytes() const { return layer_bytes() * static_cast<uint64_t>(layers); }
};

// What one phase measured; per layer, over all requests.
struct PhaseFigures {
  std::vector<Histogram> hand_over;
  std::vector<Histogram> read;
  Histogram all;
  Histogram last_layer;  // from the start of a request
  double seconds = 0;
  uint64_t bytes = 0;
};

struct Phase {
  std::string url;
  std::string transport;
  std::string prefix;  // of keys
  int requests = 0;
  bool paced = false;
};

class Exchange {
 public:
  Exchange(const PdOptions& options, const Shape& shape, const Phase& phase)
      : options_(options),
        shape_(shape),
        phase_(phase),
        ready_ns_(static_cast<size_t>(phase.requests * shape.layers)),
        begun_ns_(static_cast<size_t>(phase.requests)),
        read_(static_cast<size_t>(phase.requests)) {
    figures_.hand_over.resize(static_cast<size_t>(shape.layers));
    figures_.read.resize(static_cast<size_t>(shape.layers));
  }

  PhaseFigures Run() {
    std::vector<std::thread> threads;
    std::atomic<int> prepared{0};
    const int parties = options_.writers + options_.readers;
    const auto start = [&](auto method, int number) {
      threads.emplace_back([this, method, number, &prepared, parties] {
        prctl(PR_SET_TIMERSLACK, 1);
        try {
          Party party(*this, method == &Exchange::Write);
          ++prepared;
          while (prepared < parties && !failed_) usleep(1000);
          (this->*method)(party, number);
        } catch (const std::exception& failure) {
          Fail(failure.what());
        }
      });
    };
    for (int i = 0; i < options_.writers; ++i) start(&Exchange::Write, i);
    for (int i = 0; i < options_.readers; ++i) start(&Exchange::Read, i);
    while (prepared < parties && !failed_) usleep(1000);
    const Stopwatch watch;
    for (std::thread& thread : threads) thread.join();
    figures_.seconds = watch.seconds();
    if (failed_) throw Failure(error_);
    figures_.bytes = shape_.request_bytes() * static_cast<uint64_t>(phase_.requests);
    return std::move(figures_);
  }

 private:
  // A writer's or reader's own client and memory: they would be processes of their own.
  struct Party {
    Party(const Exchange& exchange, bool writes)
        : client(ConnectClient(
              exchange.phase_.url +
              (exchange.phase_.url.find('?') == std::string::npos ? "?" : "&") +
              "connections=1&transport=" + exchange.phase_.transport)),
          memory(MemoryBlock::Anonymous(exchange.shape_.request_bytes())),
          bytes(exchange.shape_.block_bytes) {
      const size_t blocks =
          exchange.shape_.blocks * static_cast<size_t>(exchange.shape_.layers);
      for (size_t i = 0; writes && i < blocks; ++i) FillPattern(at(i), bytes, i, 1);
    }
    char* at(size_t block) const { return memory.data() + block * bytes; }

    std::unique_ptr<client::Client> client;
    MemoryBlock memory;
    uint64_t bytes;
  };

  struct Keys {
    Keys(const Exchange& exchange, int request, int layer) {
      for (size_t i = 0; i < exchange.shape_.blocks; ++i) {
        names.push_back(exchange.phase_.prefix + ":" + std::to_string(request) + ":" +
                        std::to_string(layer) + ":" + std::to_string(i));
      }
      views.assign(names.begin(), names.end());
    }
    std::vector<std::string> names;
    std::vector<std::string_view> views;
  };

  std::atomic<uint64_t>& ready_ns(int request, int layer) {
    return ready_ns_[static_cast<size_t>(request * shape_.layers + layer)];
  }

  void Fail(const std::string& why) {
    const std::lock_guard lock(mu_);
    if (!failed_.exchange(true)) error_ = why;
  }

  void Write(Party& party, int number) {
    for (int request = number; request < phase_.requests; request += options_.writers) {
      // One prompt at a time: the last one has been read.
      while (request >= options_.writers && !failed_ &&
             !read_[static_cast<size_t>(request - options_.writers)]) {
        usleep(50);
      }
      const uint64_t begin_ns = NowNs();
      begun_ns_[static_cast<size_t>(request)] = begin_ns;
      for (int layer = 0; layer < shape_.layers && !failed_; ++layer) {
        const Keys keys(*this, request, layer);
        std::vector<client::ConstBuffer> buffers;
        for (size_t i = 0; i < shape_.blocks; ++i) {
          buffers.push_back(
              {party.at(static_cast<size_t>(layer) * shape_.blocks + i), shape_.block_bytes});
        }
        if (phase_.paced) {
          const uint64_t due_ns = begin_ns + Nanoseconds((layer + 1) * shape_.layer_seconds);
          const uint64_t now_ns = NowNs();
          if (now_ns < due_ns) usleep(static_cast<useconds_t>((due_ns - now_ns) / 1000));
        }
        ready_ns(request, layer) = NowNs();
        ExpectOk(party.client->BatchPutFrom(keys.views, buffers), "writing a layer");
      }
    }
  }

  void Read(Party& party, int number) {
    for (int request = number; request < phase_.requests; request += options_.readers) {
      std::vector<std::string> names;
      for (int layer = 0; layer < shape_.layers && !failed_; ++layer) {
        Keys keys(*this, request, layer);
        std::vector<client::Buffer> buffers;
        for (size_t i = 0; i < shape_.blocks; ++i) {
          buffers.push_back(
              {party.at(static_cast<size_t>(layer) * shape_.blocks + i), shape_.block_bytes});
        }
        WaitFor(*party.client, keys);
        const Stopwatch watch;
        ExpectOk(party.client->BatchGetInto(keys.views, buffers), "reading a layer");
        Record(request, layer, watch.ns());
        names.insert(names.end(), keys.names.begin(), keys.names.end());
      }
      if (failed_) return;
      if (phase_.paced) {
        Check(party);
        std::fill_n(party.memory.data(), shape_.request_bytes(), '\0');
      }
      party.client->BatchRemove(std::vector<std::string_view>(names.begin(), names.end()));
      read_[static_cast<size_t>(request)] = true;
    }
  }

  void WaitFor(client::Client& client, const Keys& keys) {
    for (size_t present = 0; !failed_;) {
      const client::Status status = client.MatchPrefix(keys.views, &present);
      if (!status.ok()) throw Failure("waiting for a layer: " + status.message);
      if (present == keys.views.size()) return;
      if (options_.poll_us > 0) usleep(static_cast<useconds_t>(options_.poll_us));
    }
  }

  void Check(const Party& party) {
    const size_t blocks = shape_.blocks * static_cast<size_t>(shape_.layers);
    for (size_t i = 0; i < blocks; ++i) {
      if (!CheckPattern(party.at(i), shape_.block_bytes, i)) {
        throw Failure("a block arrived with wrong bytes");
      }
    }
  }

  void Record(int request, int layer, uint64_t read_ns) {
    const uint64_t now_ns = NowNs();
    const uint64_t took_ns = now_ns - ready_ns(request, layer);
    const std::lock_guard lock(mu_);
    figures_.hand_over[static_cast<size_t>(layer)].Record(took_ns);
    figures_.read[static_cast<size_t>(layer)].Record(read_ns);
    figures_.all.Record(took_ns);
    if (layer + 1 == shape_.layers) {
      figures_.last_layer.Record(now_ns - begun_ns_[static_cast<size_t>(request)]);
    }
  }

  const PdOptions& options_;
  const Shape& shape_;
  const Phase& phase_;
  std::vector<std::atomic<uint64_t>> ready_ns_;
  std::vector<std::atomic<uint64_t>> begun_ns_;
  std::vector<std::atomic<bool>> read_;
  std::atomic<bool> failed_{false};
  std::mutex mu_;
  std::string error_;     // guarded by mu_
  PhaseFigures figures_;  // guarded by mu_ while threads run
};

// One transport: throughput, latency, and what follows for the first token.
struct Outcome {
  double gb_per_s = 0;
  PhaseFigures paced;
  double layered_ms = 0;
  double afterwards_ms = 0;
  double reads_ms = 0;
};

Outcome Evaluate(const Shape& shape, const PhaseFigures& fast, PhaseFigures paced, double scale) {
  Outcome outcome;
  outcome.gb_per_s = static_cast<double>(fast.bytes) / fast.seconds / 1e9;
  double done_ms = 0;
  double sum_ms = 0;
  const double layer_ms = shape.layer_seconds * 1e3;
  for (int layer = 0; layer < shape.layers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    // Smaller blocks than real ones take proportionally less time.
    const double x_ms = paced.hand_over[l].PercentileUs(50) / 1e3 * scale;
    done_ms = std::max((layer + 1) * layer_ms, done_ms) + x_ms;
    sum_ms += x_ms;
    outcome.reads_ms += paced.read[l].PercentileUs(50) / 1e3 * scale;
  }
  outcome.layered_ms = done_ms;
  outcome.afterwards_ms = shape.layers * layer_ms + sum_ms;
  outcome.paced = std::move(paced);
  return outcome;
}

Shape ShapeOf(const PdOptions& options) {
  const auto* model = std::find_if(std::begin(kModels), std::end(kModels), [&](const Model& m) {
    return options.model == m.name;
  });
  if (model == std::end(kModels)) {
    throw Failure("--model: '" + options.model +
                  "' is not llama-3-8b, llama-3-70b-tp8 or deepseek-v3");
  }
  Shape shape;
  shape.layers = options.layers > 0 ? options.layers : model->layers;
  shape.blocks = (options.tokens + options.block_tokens - 1) / options.block_tokens;
  shape.block_bytes = static_cast<uint64_t>(
      static_cast<double>(options.block_tokens * model->bytes_per_token) / options.scale);
  shape.block_bytes = std::max<uint64_t>(shape.block_bytes / 8 * 8, 64);
  shape.layer_seconds =
      static_cast<double>(options.tokens) / options.prefill_tokens_per_s / shape.layers;
  return shape;
}

Row Compared(const char* id, const std::string& name, const char* unit, double ours, double theirs,
             Row::Better better) {
  Row row;
  row.id = id;
  row.name = name;
  row.unit = unit;
  row.better = better;
  SetFromPairs({{ours, theirs}}, &row);
  row.ratio_min = row.ratio_max = std::nullopt;
  return row;
}

}  // namespace

int HandOver(const PdOptions& options) {
  const Shape shape = ShapeOf(options);
  const int requests = options.requests > 0 ? options.requests : options.common.quick ? 2 : 8;
  Report report = NewReport(options.common, "pd");
  report.settings["model"] = options.model;
  report.settings["layers"] = shape.layers;
  report.settings["blocks_per_layer"] = shape.blocks;
  report.settings["block_bytes"] = shape.block_bytes;
  report.settings["scale"] = options.scale;
  report.settings["writers"] = options.writers;
  report.settings["readers"] = options.readers;
  report.settings["requests"] = requests;
  report.settings["prefill_tokens_per_s"] = options.prefill_tokens_per_s;
  std::unique_ptr<TestServer> server;
  std::string url = options.common.url;
  if (url.empty()) {
    // Every writer's prompt twice (one being read, one being written), and room to spare.
    const uint64_t bytes = std::max<uint64_t>(
        shape.request_bytes() * static_cast<uint64_t>(options.writers) * 8, 2ull << 30);
    server = TestServer::StartMoonpool(FindMoonpoolServer(options.common.server),
                                       {"--maxmemory", std::to_string(bytes)});
    url = server->url();
    report.versions["moonpool"] = server->version();
  }
  Print(options.common,
        options.model + ": " + std::to_string(options.tokens) + " tokens = " +
            std::to_string(shape.layers) + " layers x " + std::to_string(shape.blocks) +
            " blocks x " + Short(static_cast<double>(shape.block_bytes) / 1024) + " KiB; " +
            std::to_string(options.writers) + " writers, " + std::to_string(options.readers) +
            " readers; prefill " + Short(options.prefill_tokens_per_s) + " tokens/s = " +
            Short(shape.layer_seconds * 1e3) + " ms per layer\n\n");
  const auto measure = [&](const std::string& transport) {
    const std::string prefix = "pd-" + std::to_string(getpid()) + "-" + transport;
    const auto run = [&](const char* name, int count, bool paced) {
      Progress("handing over through " + transport + ", " + name);
      return Exchange(options, shape, {url, transport, prefix + "-" + name, count, paced}).Run();
    };
    run("warm-up", 2 * options.writers, false);
    if (server != nullptr) server->WaitUntilPopulated();
    const PhaseFigures fast = run("as fast as possible", requests, false);
    return Evaluate(shape, fast, run("paced", requests, true), options.scale);
  };
  const Outcome shm = measure("shm");
  const Outcome tcp = measure("tcp");
  using enum Row::Better;
  const double prefill_ms = shape.layers * shape.layer_seconds * 1e3;
  std::vector<Row>& rows = report.rows;
  rows.push_back(Compared("throughput", "hand-over, shm vs plain RESP", "GB/s", shm.gb_per_s,
                          tcp.gb_per_s, kHigher));
  rows.push_back(Compared("layer-p50", "hand-over of a layer, p50", "us",
                          shm.paced.all.PercentileUs(50), tcp.paced.all.PercentileUs(50), kLower));
  rows.push_back(Compared("layer-p99", "hand-over of a layer, p99", "us",
                          shm.paced.all.PercentileUs(99), tcp.paced.all.PercentileUs(99), kLower));
  rows.push_back(Compared("measured", "measured: start to last layer", "ms",
                          shm.paced.last_layer.PercentileUs(50) / 1e3,
                          tcp.paced.last_layer.PercentileUs(50) / 1e3, kLower));
  rows.push_back(Compared("ttft-layered", "modelled first token, layer by layer", "ms",
                          shm.layered_ms, tcp.layered_ms, kLower));
  rows.push_back(Compared("ttft-afterwards", "modelled first token, moved after prefill", "ms",
                          shm.afterwards_ms, tcp.afterwards_ms, kLower));
  rows.push_back(Compared("ttft-pool", "prompt found in the pool, shm vs plain RESP", "ms",
                          shm.reads_ms, tcp.reads_ms, kLower));
  rows.push_back(Compared("ttft-recompute", "prompt found in the pool vs recomputed", "ms",
                          shm.reads_ms, prefill_ms, kLower));
  Print(options.common, Table(rows));
  Finish(options.common, report);
  return 0;
}

}  // namespace moonpool::bench
