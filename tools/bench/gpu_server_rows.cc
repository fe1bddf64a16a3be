#include "tools/bench/gpu_server_rows.h"

#include <moonpool/gpu.h>

#include <algorithm>
#include <span>
#include <utility>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu_timing.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

using client::Transport;

// Versions of the bytes that a value has: what lies in the server, and what measured puts write.
constexpr uint64_t kFilled = 1;
constexpr uint64_t kPut = 2;

std::unique_ptr<client::Client> Connect(const std::string& url) {
  std::unique_ptr<client::Client> client;
  if (const client::Status status = client::Client::Connect(url, {}, &client); !status.ok()) {
    throw Failure("connecting to " + url + ": " + status.message);
  }
  return client;
}

template <typename Results>
void ExpectOver(const Results& results, Transport transport, std::string_view what) {
  for (const client::KeyResult& result : results) {
    if (!result.ok()) {
      throw Failure(std::string(what) + ": " + std::string(client::CodeName(result.code)) + ": " +
                    result.message);
    }
    if (result.transport != transport) {
      throw Failure(std::string(what) + ": a value went another way (" +
                    (result.transport == Transport::kCuda  ? "GPU memory"
                     : result.transport == Transport::kShm ? "the host pool"
                                                           : "a connection") +
                    ")");
    }
  }
}

}  // namespace

const std::vector<Row>& GpuServerRowTable() {
  using enum Row::Better;
  using enum Row::Judged;
  static const std::vector<Row> rows = {
      RowTemplate("pull-1m", "pull of 64 x 1 MiB out of VRAM, on a stream", "GB/s", kHigher, 0.85,
                  0.98),
      RowTemplate("pull-16m", "the same, 8 x 16 MiB", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("pull-100m", "the same, 100 MB", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("get-1m", "batch_get_into of 64 x 1 MiB out of VRAM, each waited for", "GB/s",
                  kHigher, 0.85, 0.98),
      RowTemplate("get-16m", "the same, 8 x 16 MiB", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("get-100m", "the same, 100 MB", "GB/s", kHigher, 0.85, 0.98),
      RowTemplate("put-1m", "batch_put_from of 64 x 1 MiB into VRAM, each waited for", "GB/s",
                  kHigher, std::nullopt, std::nullopt),
      RowTemplate("put-100m", "the same, 100 MB", "GB/s", kHigher, std::nullopt, std::nullopt),
      RowTemplate("to-device-1m", "host pool to device, 64 x 1 MiB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-device-100m", "the same, 100 MB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-host-1m", "device to host pool, 64 x 1 MiB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("to-host-100m", "the same, 100 MB", "GB/s", kHigher, 0.9, 0.99),
      RowTemplate("added-64", "added per 1 MiB get out of VRAM, batches of 64", "us", kLower, 30, 3,
                  kOurs),
      RowTemplate("added-1", "added per 1 MiB get out of VRAM, single, server asked", "us", kLower,
                  30, 8, kOurs),
      RowTemplate("server-cpu", "server CPU, gets out of VRAM vs tcp", "CPU s/GB", kLower,
                  std::nullopt, std::nullopt),
  };
  return rows;
}

// Values of one size, the batches they move in, and where their bytes are in buffers of this
// process.
class GpuServerRows::Values {
 public:
  Values(std::string_view prefix, Tier tier, uint64_t value_bytes, size_t batch, uint64_t all_bytes)
      : tier_(tier),
        value_bytes_(value_bytes),
        batch_(std::max<size_t>(std::min<size_t>(batch, all_bytes / value_bytes), 1)),
        batches_(std::max<uint64_t>(all_bytes / (value_bytes * batch_), 1)) {
    for (size_t i = 0; i < batch_ * batches_; ++i) {
      names_.push_back("gpu-bench:" + std::string(prefix) + ":" + std::to_string(value_bytes) +
                       ":" + std::to_string(i));
    }
    keys_.assign(names_.begin(), names_.end());
  }

  Tier tier() const { return tier_; }
  uint64_t value_bytes() const { return value_bytes_; }
  size_t batch() const { return batch_; }
  uint64_t batch_bytes() const { return batch_ * value_bytes_; }
  uint64_t batches() const { return batches_; }
  size_t count() const { return keys_.size(); }
  Transport transport() const { return tier_ == Tier::kGpu ? Transport::kCuda : Transport::kShm; }

  std::span<const std::string_view> Keys(uint64_t round) const {
    return std::span(keys_).subspan(round % batches_ * batch_, batch_);
  }
  std::string_view key(size_t i) const { return keys_[i]; }
  template <typename Buffer, typename Memory>
  std::vector<Buffer> Buffers(Memory* memory, uint64_t round) const {
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < batch_; ++i) {
      buffers.push_back({memory + (round % batches_ * batch_ + i) * value_bytes_, value_bytes_});
    }
    return buffers;
  }
  void Raw(RawCopies& raw, char* to, const char* from, uint64_t round) const {
    const uint64_t first = round % batches_ * batch_bytes();
    for (uint64_t i = 0; i < batch_; ++i) {
      const uint64_t at = first + i * value_bytes_;
      raw.Copy(to + at, from + at, value_bytes_);
    }
  }

 private:
  const Tier tier_;
  const uint64_t value_bytes_;
  const size_t batch_;
  const uint64_t batches_;
  std::vector<std::string> names_;
  std::vector<std::string_view> keys_;
};

GpuServerRows::GpuServerRows(const GpuServerShape& shape, const GpuServerSide& server,
                             RawCopies& raw, MeasuredRows& rows)
    : shape_(shape),
      server_(server),
      raw_(raw),
      rows_(rows),
      client_(Connect(server.url + "?transport=shm&connections=2")),
      plain_(Connect(server.url + "?transport=tcp&connections=1")) {
  const uint64_t bytes = std::max(shape.bytes_per_size, shape.large_bytes);
  target_ = raw.DeviceMemory(bytes);
  source_ = raw.DeviceMemory(bytes);
  raw_memory_ = raw.DeviceMemory(bytes);
  raw_pinned_ = raw.PinnedMemory(bytes);
  staging_ = raw.PinnedMemory(std::max({shape.small_bytes, shape.medium_bytes, shape.large_bytes}));
}

GpuServerRows::~GpuServerRows() = default;

GpuServerRows::Values& GpuServerRows::Filled(Tier tier, uint64_t value_bytes, size_t batch) {
  for (const auto& values : filled_) {
    if (values->tier() == tier && values->value_bytes() == value_bytes) return *values;
  }
  auto values = std::make_unique<Values>(tier == Tier::kGpu ? "vram" : "dram", tier, value_bytes,
                                         batch, shape_.bytes_per_size);
  for (size_t i = 0; i < values->count(); ++i) {
    FillPattern(staging_, value_bytes, i, kFilled);
    client::KeyResult put;
    const std::string_view key = values->key(i);
    client::PutOptions options;
    options.prefer = tier == Tier::kGpu ? "gpu" : "dram";
    if (tier == Tier::kGpu) {
      raw_.Copy(source_, staging_, value_bytes);
      raw_.Wait();
      const client::ConstBuffer from{source_, value_bytes};
      put = client_->BatchPutFrom(std::span(&key, 1), std::span(&from, 1), options)[0];
    } else {
      // Not through an arena of the reader's own, which it could write to.
      const client::ConstBuffer from{staging_, value_bytes};
      put = plain_->BatchPutFrom(std::span(&key, 1), std::span(&from, 1))[0];
    }
    ExpectOver(std::span(&put, 1), tier == Tier::kGpu ? Transport::kCuda : Transport::kTcp,
               "filling");
  }
  filled_.push_back(std::move(values));
  return *filled_.back();
}

double GpuServerRows::Rate(uint64_t bytes, const Side& side, Cost* cost) const {
  uint64_t rounds = 0;
  const double before = server_.cpu_seconds();
  const double rate = RateOfRounds(
      bytes, shape_.seconds,
      [&](uint64_t round) {
        side.round(round);
        ++rounds;
      },
      side.wait);
  cost->cpu_s_per_gb =
      (server_.cpu_seconds() - before) / (static_cast<double>(rounds * bytes) / 1e9);
  return rate;
}

void GpuServerRows::Measure(std::string_view id, uint64_t bytes, const Side& ours,
                            const Side& raw) {
  Cost cost, none;
  rows_.Measure(
      id, shape_.reps,
      [&] {
        Pair pair;
        pair.ours = Rate(bytes, ours, &cost);
        pair.theirs = Rate(bytes, raw, &none);
        return pair;
      },
      [&] {
        Json details = Troubles();
        details["server CPU, s/GB"] = cost.cpu_s_per_gb;
        return details;
      });
}

// What would explain a slow row; nothing when there is no trouble.
Json GpuServerRows::Troubles() const {
  Json json = Json::object();
  const client::Stats stats = client_->stats();
  if (stats.fallbacks > 0) json["fallbacks"] = stats.fallbacks;
  if (stats.gpu_unpinned_values > 0)
    json["values that could not be pinned"] = stats.gpu_unpinned_values;
  if (stats.gpu_staged_values > 0) json["staged values"] = stats.gpu_staged_values;
  if (stats.generation_retries > 0) json["read again"] = stats.generation_retries;
  if (!stats.gpu_error.empty()) json["GPU error"] = stats.gpu_error;
  return json;
}

void GpuServerRows::VerifyReads(const Values& values,
                                const std::function<void(uint64_t round)>& read,
                                const std::function<void()>& wait, std::string_view what) {
  raw_.Poison(target_, values.batches() * values.batch_bytes());
  for (uint64_t round = 0; round < values.batches(); ++round) read(round);
  wait();
  for (size_t i = 0; i < values.count(); ++i) {
    raw_.Copy(staging_, target_ + i * values.value_bytes(), values.value_bytes());
    raw_.Wait();
    uint64_t version = 0;
    if (!CheckPattern(staging_, values.value_bytes(), i, &version) || version != kFilled) {
      throw Failure("wrong bytes after " + std::string(what));
    }
  }
}

// Batches on the caller's stream, many of them under way.
void GpuServerRows::Pull(std::string_view id, uint64_t value_bytes, size_t batch) {
  const Values& values = Filled(Tier::kGpu, value_bytes, batch);
  std::vector<client::GpuTransfer> under_way;
  const auto pull = [&](uint64_t round) {
    std::vector<std::vector<client::LayerBuffer>> into;
    for (const client::Buffer& buffer : values.Buffers<client::Buffer>(target_, round)) {
      into.push_back({{buffer.data, buffer.size}});
    }
    under_way.push_back(client::GetOnStream(*client_, raw_.stream(), values.Keys(round), into));
  };
  const auto wait = [&] {
    for (client::GpuTransfer& one : under_way) {
      ExpectOver(one.Wait(), values.transport(), id);
    }
    under_way.clear();
  };
  const Side raw{[&](uint64_t round) { values.Raw(raw_, target_, raw_memory_, round); },
                 [&] { raw_.Wait(); }};
  VerifyReads(values, pull, wait, id);
  Measure(id, values.batch_bytes(), {pull, wait}, raw);
  VerifyReads(values, pull, wait, id);
}

void GpuServerRows::GetInto(std::string_view id, Tier from, uint64_t value_bytes, size_t batch) {
  const Values& values = Filled(from, value_bytes, batch);
  const auto get = [&](uint64_t round) {
    ExpectOver(
        client_->BatchGetInto(values.Keys(round), values.Buffers<client::Buffer>(target_, round)),
        values.transport(), id);
  };
  // Waited for as often as ours.
  const char* const raw_from = from == Tier::kGpu ? raw_memory_ : raw_pinned_;
  const Side raw{[&, raw_from](uint64_t round) {
    values.Raw(raw_, target_, raw_from, round);
    raw_.Wait();
  }};
  VerifyReads(
      values, get, [] {}, id);
  Measure(id, values.batch_bytes(), {get}, raw);
  VerifyReads(
      values, get, [] {}, id);
}

void GpuServerRows::PutFrom(std::string_view id, Tier to, uint64_t value_bytes, size_t batch) {
  const Values values(to == Tier::kGpu ? "put-vram" : "put-dram", to, value_bytes, batch,
                      shape_.bytes_per_size / 4);
  client::PutOptions options;
  options.prefer = to == Tier::kGpu ? "gpu" : "dram";
  const auto put = [&](uint64_t round) {
    ExpectOver(client_->BatchPutFrom(values.Keys(round),
                                     values.Buffers<client::ConstBuffer>(source_, round), options),
               values.transport(), id);
  };
  const auto fill = [&](uint64_t version) {
    for (size_t i = 0; i < values.count(); ++i) {
      FillPattern(staging_, value_bytes, i, version);
      raw_.Copy(source_ + i * value_bytes, staging_, value_bytes);
      raw_.Wait();
    }
  };
  const auto verify = [&](uint64_t version) {
    for (uint64_t round = 0; round < values.batches(); ++round) put(round);
    for (size_t i = 0; i < values.count(); ++i) {
      std::string bytes;
      if (const client::Status got = plain_->Get(values.key(i), &bytes); !got.ok()) {
        throw Failure("reading what was put: " + got.message);
      }
      uint64_t written = 0;
      if (bytes.size() != value_bytes || !CheckPattern(bytes.data(), value_bytes, i, &written) ||
          written != version) {
        throw Failure("wrong bytes after " + std::string(id));
      }
    }
  };
  char* const raw_to = to == Tier::kGpu ? raw_memory_ : raw_pinned_;
  const Side raw{[&, raw_to](uint64_t round) {
    values.Raw(raw_, raw_to, source_, round);
    raw_.Wait();
  }};
  fill(kFilled);
  verify(kFilled);
  fill(kPut);
  Measure(id, values.batch_bytes(), {put}, raw);
  verify(kPut);
  for (uint64_t round = 0; round < values.batches(); ++round) {
    (void)plain_->BatchRemove(values.Keys(round));
  }
}

// What the way through the server and the library adds to raw copies that are waited for.
void GpuServerRows::Added(std::string_view id, size_t batch) {
  const Values& values = Filled(Tier::kGpu, shape_.small_bytes, 64);
  const size_t count = std::min(batch, values.batch());
  Cost cost;
  const auto get = [&](uint64_t round) {
    const auto buffers = values.Buffers<client::Buffer>(target_, round);
    ExpectOver(
        client_->BatchGetInto(values.Keys(round).first(count), std::span(buffers).first(count)),
        Transport::kCuda, id);
  };
  const auto raw = [&](uint64_t round) {
    const auto to = values.Buffers<client::Buffer>(target_, round);
    const auto from = values.Buffers<client::ConstBuffer>(raw_memory_, round);
    for (size_t i = 0; i < count; ++i) raw_.Copy(to[i].data, from[i].data, from[i].size);
    raw_.Wait();
  };
  double ping_us = 0;
  rows_.Measure(
      id, shape_.reps,
      [&] {
        cost.ours_us = MedianMicroseconds(shape_.calls, get);
        cost.raw_us = MedianMicroseconds(shape_.calls, raw);
        ping_us = MedianMicroseconds(shape_.calls, [&](uint64_t) {
          if (!client_->Ping().ok()) throw Failure("PING");
        });
        Pair pair;
        pair.ours = (cost.ours_us - cost.raw_us) / static_cast<double>(count);
        return pair;
      },
      [&] {
        Json details = Troubles();
        details["a call"] = {
            {"ours us", cost.ours_us}, {"raw us", cost.raw_us}, {"a PING us", ping_us}};
        return details;
      });
}

void GpuServerRows::Processor(std::string_view id) {
  const Values& values = Filled(Tier::kGpu, shape_.small_bytes, 64);
  const auto get = [&](uint64_t round) {
    ExpectOver(
        client_->BatchGetInto(values.Keys(round), values.Buffers<client::Buffer>(target_, round)),
        Transport::kCuda, id);
  };
  // Into host memory, as a client without GPUs and shared memory.
  const auto over_tcp = [&](uint64_t round) {
    ExpectOver(plain_->BatchGetInto(values.Keys(round),
                                    values.Buffers<client::Buffer>(raw_pinned_, round)),
               Transport::kTcp, id);
  };
  Cost ours, theirs;
  rows_.Measure(
      id, shape_.reps,
      [&] {
        (void)Rate(values.batch_bytes(), {get}, &ours);
        (void)Rate(values.batch_bytes(), {over_tcp}, &theirs);
        return Pair{ours.cpu_s_per_gb, theirs.cpu_s_per_gb};
      },
      [&] { return Troubles(); });
}

std::string GpuServerRows::Run() {
  const GpuServerShape& s = shape_;
  const std::vector<std::pair<std::string_view, std::function<void(std::string_view)>>> all = {
      {"pull-1m", [&](auto id) { Pull(id, s.small_bytes, 64); }},
      {"pull-16m", [&](auto id) { Pull(id, s.medium_bytes, 8); }},
      {"pull-100m", [&](auto id) { Pull(id, s.large_bytes, 1); }},
      {"get-1m", [&](auto id) { GetInto(id, Tier::kGpu, s.small_bytes, 64); }},
      {"get-16m", [&](auto id) { GetInto(id, Tier::kGpu, s.medium_bytes, 8); }},
      {"get-100m", [&](auto id) { GetInto(id, Tier::kGpu, s.large_bytes, 1); }},
      {"added-64", [&](auto id) { Added(id, 64); }},
      {"added-1", [&](auto id) { Added(id, 1); }},
      {"to-device-1m", [&](auto id) { GetInto(id, Tier::kDram, s.small_bytes, 64); }},
      {"to-device-100m", [&](auto id) { GetInto(id, Tier::kDram, s.large_bytes, 1); }},
      {"put-1m", [&](auto id) { PutFrom(id, Tier::kGpu, s.small_bytes, 64); }},
      {"put-100m", [&](auto id) { PutFrom(id, Tier::kGpu, s.large_bytes, 1); }},
      {"to-host-1m", [&](auto id) { PutFrom(id, Tier::kDram, s.small_bytes, 64); }},
      {"to-host-100m", [&](auto id) { PutFrom(id, Tier::kDram, s.large_bytes, 1); }},
      {"server-cpu", [&](auto id) { Processor(id); }},
  };
  std::string failed;
  const Stopwatch watch;
  for (const auto& [id, row] : all) {
    if (!rows_.Wants(id)) continue;
    if (s.most_seconds > 0 && watch.seconds() > s.most_seconds) {
      failed += "NOT RUN: " + std::string(id) + ": out of time\n";
      continue;
    }
    try {
      row(id);
    } catch (const Failure& failure) {
      failed += "FAILED: " + std::string(id) + ": " + failure.what() + "\n";
    }
  }
  return failed;
}

}  // namespace moonpool::bench
