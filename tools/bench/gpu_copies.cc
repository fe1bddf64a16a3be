// Rows about whole values: pulls from another process, and the way between host pool and device.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "protocol/seqlock.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu_rows.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;

// Values that a batch moves from one memory to another, at offsets that go round.
class Values {
 public:
  Values(GpuSetup* setup, uint64_t value_bytes, size_t count)
      : setup_(*setup),
        value_bytes_(value_bytes),
        count_(std::min<size_t>(count, setup->bytes / value_bytes)) {
    auto* counters = reinterpret_cast<protocol::GenerationCounter*>(setup_.counters.data());
    for (size_t i = 0; i < count_; ++i) counters[i] = i + 1;
  }

  uint64_t bytes() const { return count_ * value_bytes_; }
  size_t count() const { return count_; }

  std::vector<gpu::Piece> Pieces(char* to, const char* from, uint64_t round) const {
    const uint64_t places = setup_.bytes / bytes();
    const uint64_t at = round % places * bytes();
    std::vector<gpu::Piece> pieces;
    for (size_t i = 0; i < count_; ++i) {
      const uint64_t offset = at + i * value_bytes_;
      pieces.push_back({to + offset, from + offset, value_bytes_});
    }
    return pieces;
  }

  // As a client pulls: every value is a key whose generation is compared.
  gpu::CopyBatch Batch(char* to, const char* from, uint64_t round,
                       const gpu::CopyLimits& limits = {}) const {
    gpu::CopyBatch batch(setup_.device, setup_.stream->ref(), limits);
    const auto* counters =
        reinterpret_cast<const protocol::GenerationCounter*>(setup_.counters.data());
    size_t i = 0;
    for (const gpu::Piece& piece : Pieces(to, from, round)) {
      batch.Copy(batch.AddKey(&counters[i], i + 1), piece);
      ++i;
    }
    return batch;
  }

  void RawCopies(char* to, const char* from, uint64_t round) const {
    for (const gpu::Piece& piece : Pieces(to, from, round)) {
      setup_.raw->Copy(piece.to, piece.from, piece.bytes);
    }
  }

 private:
  GpuSetup& setup_;
  const uint64_t value_bytes_;
  const size_t count_;
};

// Whether what was pulled is what is in the other process's region, which has the pool's bytes.
void Verify(GpuSetup& setup, const char* copied, uint64_t bytes, const std::string& what) {
  bytes = std::min(bytes, 256 * kMiB);
  if (setup.Fetch(copied, bytes) != std::string_view(setup.pool.data(), bytes)) {
    throw Failure("wrong bytes after " + what);
  }
}

void PullRow(GpuComparison& comparison, const std::string& id, uint64_t value_bytes, size_t count) {
  if (!comparison.Wants(id)) return;
  GpuSetup& setup = comparison.setup();
  const Values values(&setup, value_bytes, count);
  const auto drain = [&] { comparison.Drain(); };
  const auto wait = [&] { setup.raw->Wait(); };
  const auto ours = [&](const gpu::CopyLimits& limits) {
    return comparison.Rate(
        values.bytes(),
        [&](uint64_t round) {
          comparison.Submit(values.Batch(setup.target, setup.region->data(), round, limits));
        },
        drain);
  };
  setup.raw->Poison(setup.target, setup.bytes);
  comparison.Measure(
      id,
      [&] {
        Pair pair;
        pair.ours = ours({});
        pair.theirs = comparison.Rate(
            values.bytes(),
            [&](uint64_t round) { values.RawCopies(setup.target, setup.region->data(), round); },
            wait);
        return pair;
      },
      [&] {
        gpu::CopyLimits engine, kernel;
        engine.engine_same_device = 0;
        kernel.engine_same_device = std::numeric_limits<uint64_t>::max();
        Json json = {
            {"other ways", {{"cudaMemcpyAsync each", ours(engine)}, {"one launch", ours(kernel)}}}};
        json["other ways"]["raw of cudaMalloc's memory"] = comparison.Rate(
            values.bytes(),
            [&](uint64_t round) { values.RawCopies(setup.target, setup.raw_source, round); }, wait);
        const auto batched = [&](uint64_t round) {
          return setup.raw->CopyBatch(values.Pieces(setup.target, setup.region->data(), round));
        };
        if (batched(0)) {
          json["other ways"]["raw cudaMemcpyBatchAsync"] = comparison.Rate(
              values.bytes(), [&](uint64_t round) { batched(round); }, wait);
        }
        return json;
      });
  setup.raw->Poison(setup.target, setup.bytes);
  for (uint64_t round = 0; round < setup.bytes / values.bytes(); ++round) {
    comparison.Submit(values.Batch(setup.target, setup.region->data(), round));
  }
  comparison.Drain();
  Verify(setup, setup.target, setup.bytes / values.bytes() * values.bytes(), id);
}

void HostRow(GpuComparison& comparison, const std::string& id, uint64_t value_bytes, size_t count,
             bool to_device) {
  if (!comparison.Wants(id)) return;
  GpuSetup& setup = comparison.setup();
  const Values values(&setup, value_bytes, count);
  char* const to = to_device ? setup.target : setup.pool.data();
  char* const from = to_device ? setup.pool.data() : setup.region->data();
  const auto ours = [&] {
    return comparison.Rate(
        values.bytes(), [&](uint64_t round) { comparison.Submit(values.Batch(to, from, round)); },
        [&] { comparison.Drain(); });
  };
  const auto raw = [&](char* raw_to, const char* raw_from) {
    return comparison.Rate(
        values.bytes(), [&](uint64_t round) { values.RawCopies(raw_to, raw_from, round); },
        [&] { setup.raw->Wait(); });
  };
  comparison.Measure(
      id,
      [&] {
        Pair pair;
        pair.ours = ours();
        pair.theirs = to_device ? raw(setup.target, setup.raw_pinned)
                                : raw(setup.raw_pinned, setup.raw_source);
        return pair;
      },
      // What of the difference is the pool's kind of memory.
      [&] { return Json{{"other ways", {{"raw of the pool", raw(to, from)}}}}; });
}

// What the library adds to raw copies that are waited for one by one.
void AddedRow(GpuComparison& comparison, const std::string& id, size_t count) {
  if (!comparison.Wants(id)) return;
  GpuSetup& setup = comparison.setup();
  const Values values(&setup, kMiB, count);
  Json times;
  comparison.Measure(
      id,
      [&] {
        const double ours = comparison.Microseconds([&](uint64_t round) {
          comparison.Submit(values.Batch(setup.target, setup.region->data(), round));
          comparison.Drain();
        });
        const double raw = comparison.Microseconds([&](uint64_t round) {
          values.RawCopies(setup.target, setup.region->data(), round);
          setup.raw->Wait();
        });
        times = {{"whole batch", {{"ours us", ours}, {"raw us", raw}}}};
        Pair pair;
        pair.ours = (ours - raw) / static_cast<double>(values.count());
        return pair;
      },
      [&] { return times; });
}

}  // namespace

void GpuPullRows(GpuComparison& comparison) {
  PullRow(comparison, "pull-1m", kMiB, 64);
  PullRow(comparison, "pull-16m", 16 * kMiB, 8);
  PullRow(comparison, "pull-100m", 100'000'000, 1);
  AddedRow(comparison, "added-64", 64);
  AddedRow(comparison, "added-1", 1);
}

void GpuHostRows(GpuComparison& comparison) {
  HostRow(comparison, "to-device-1m", kMiB, 64, true);
  HostRow(comparison, "to-host-1m", kMiB, 64, false);
  HostRow(comparison, "to-device-100m", 100'000'000, 1, true);
  HostRow(comparison, "to-host-100m", 100'000'000, 1, false);
}

}  // namespace moonpool::bench
