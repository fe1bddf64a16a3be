// Rows about paged memory: scatter and gather beside one copy of the same bytes in one piece.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gpu/kernels.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu_rows.h"

namespace moonpool::bench {

namespace {

namespace kernels = gpu::kernels;

constexpr uint64_t kMostBytes = 256ull << 20;

// A paged cache in device memory whose pages are taken in a random order.
class PagedCache {
 public:
  PagedCache(GpuSetup* setup, uint64_t page_bytes)
      : setup_(*setup),
        page_bytes_(page_bytes),
        table_(std::min(kMostBytes, setup->bytes) / page_bytes) {
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937_64(page_bytes));
    device_table_ = setup_.raw->DeviceMemory(table_.size() * sizeof(int32_t));
    setup_.raw->Copy(device_table_, table_.data(), table_.size() * sizeof(int32_t));
    setup_.raw->Wait();
  }

  uint64_t bytes() const { return table_.size() * page_bytes_; }

  gpu::PageCopy Scatter(char* run, char* cache, bool table_on_device = true) const {
    gpu::PageCopy copy;
    copy.page_count = static_cast<uint32_t>(table_.size());
    copy.piece_bytes = page_bytes_;
    copy.from.base = run;
    copy.from.page_stride = page_bytes_;
    copy.to.base = cache;
    copy.to.page_stride = page_bytes_;
    copy.to.table = gpu::PageTable::Of(std::span<const int32_t>(table_));
    if (table_on_device) copy.to.table.entries = device_table_;
    return copy;
  }
  gpu::PageCopy Gather(char* cache, char* run) const {
    gpu::PageCopy copy = Scatter(run, cache);
    std::swap(copy.from, copy.to);
    return copy;
  }

  // Whether the pages of `cache` have the bytes of the pool.
  bool HasScattered(const char* cache) const {
    const std::string fetched = setup_.Fetch(cache, bytes());
    for (size_t k = 0; k < table_.size(); ++k) {
      if (fetched.compare(static_cast<size_t>(table_[k]) * page_bytes_, page_bytes_,
                          setup_.pool.data() + k * page_bytes_, page_bytes_) != 0) {
        return false;
      }
    }
    return true;
  }

  kernels::PageJob ScatterJob(char* run, char* cache) const {
    kernels::PageJob job;
    job.from.base = reinterpret_cast<uint64_t>(run);
    job.from.page_stride = page_bytes_;
    job.to.base = reinterpret_cast<uint64_t>(cache);
    job.to.page_stride = page_bytes_;
    job.to.kind = kernels::PageSide::kIndex32;
    job.to.entries = device_table_;
    job.pages = static_cast<uint32_t>(table_.size());
    job.planes = 1;
    job.piece_bytes = static_cast<uint32_t>(page_bytes_);
    job.vector = 16;
    return job;
  }

 private:
  GpuSetup& setup_;
  const uint64_t page_bytes_;
  std::vector<int32_t> table_;
  char* device_table_ = nullptr;
};

double RateOf(GpuComparison& comparison, const gpu::PageCopy& copy,
              const gpu::CopyLimits& limits = {}) {
  GpuSetup& setup = comparison.setup();
  return comparison.Rate(
      copy.bytes(),
      [&](uint64_t) {
        gpu::CopyBatch batch(setup.device, setup.stream->ref(), limits);
        batch.CopyPages(batch.AddKey(nullptr, 0), copy);
        comparison.Submit(std::move(batch));
      },
      [&] { comparison.Drain(); });
}

double RawRate(GpuComparison& comparison, char* to, const char* from, uint64_t bytes) {
  GpuSetup& setup = comparison.setup();
  return comparison.Rate(
      bytes, [&](uint64_t) { setup.raw->Copy(to, from, bytes); }, [&] { setup.raw->Wait(); });
}

// The kernel in other shapes.
Json Variants(GpuComparison& comparison, const kernels::PageJob& job, bool host) {
  GpuSetup& setup = comparison.setup();
  Json json = Json::object();
  const int multiprocessors = setup.device->info().multiprocessors;
  const uint64_t bytes = uint64_t{job.pages} * job.planes * job.piece_bytes;
  const auto stream = static_cast<cudaStream_t>(setup.raw->stream());
  const auto measure = [&](const std::string& name, const auto& launch) {
    if (launch() != cudaSuccess) return;  // not on this device
    json[name] = comparison.Rate(
        bytes,
        [&](uint64_t) {
          if (const cudaError_t error = launch(); error != cudaSuccess) {
            throw Failure(cudaGetErrorString(error));
          }
        },
        [&] { setup.raw->Wait(); });
  };
  if (host) {
    for (const int blocks : {8, 16, 32, 64}) {
      measure("x" + std::to_string(blocks), [&] {
        return kernels::LaunchPages(job, {}, {blocks, kernels::Moves::kPlain}, stream);
      });
    }
    return json;
  }
  for (const auto moves : {kernels::Moves::kPlain, kernels::Moves::kEvictFirst}) {
    for (const uint64_t run_kib : {32, 64, 128, 256, 512}) {
      const auto blocks = static_cast<int>(bytes / (run_kib << 10));
      measure((moves == kernels::Moves::kPlain ? "runs of " : "evict-first runs of ") +
                  std::to_string(run_kib) + "K",
              [&] {
                return kernels::LaunchPages(job, {}, {blocks, moves}, stream);
              });
    }
  }
  for (const uint32_t unit : {4u << 10, 16u << 10}) {
    if (unit > job.piece_bytes) continue;
    for (const int blocks : {multiprocessors, 8 * multiprocessors}) {
      measure("bulk " + std::to_string(unit >> 10) + "K x" + std::to_string(blocks),
              [&] { return kernels::LaunchPagesInBulk(job, unit, blocks, stream); });
    }
  }
  return json;
}

void DeviceRows(GpuComparison& comparison, const std::string& size, uint64_t page_bytes) {
  const std::string scatter = "scatter-" + size, gather = "gather-" + size;
  if (!comparison.Wants(scatter) && !comparison.Wants(gather)) return;
  GpuSetup& setup = comparison.setup();
  const PagedCache cache(&setup, page_bytes);
  const auto raw = [&] {
    return RawRate(comparison, setup.target, setup.region->data(), cache.bytes());
  };
  setup.raw->Poison(setup.target, setup.bytes);
  comparison.Measure(
      scatter,
      [&] {
        Pair pair;
        pair.ours = RateOf(comparison, cache.Scatter(setup.region->data(), setup.target));
        if (!cache.HasScattered(setup.target)) throw Failure("wrong bytes after " + scatter);
        pair.theirs = raw();
        return pair;
      },
      [&] {
        Json json = {
            {"other ways",
             {{"table in host memory",
               RateOf(comparison, cache.Scatter(setup.region->data(), setup.target, false))},
              {"raw copy of cudaMalloc's memory",
               RawRate(comparison, setup.target, setup.raw_source, cache.bytes())}}}};
        if (comparison.options().variants) {
          json["kernel"] =
              Variants(comparison, cache.ScatterJob(setup.region->data(), setup.target), false);
        }
        return json;
      });
  // What was scattered is gathered again.
  RateOf(comparison, cache.Scatter(setup.region->data(), setup.target));
  char* const back = setup.raw_gathered;
  comparison.Measure(gather, [&] {
    setup.raw->Poison(back, cache.bytes());
    Pair pair;
    pair.ours = RateOf(comparison, cache.Gather(setup.target, back));
    if (setup.Fetch(back, cache.bytes()) != std::string_view(setup.pool.data(), cache.bytes())) {
      throw Failure("wrong bytes after " + gather);
    }
    pair.theirs = RawRate(comparison, back, setup.raw_source, cache.bytes());
    return pair;
  });
}

void HostRows(GpuComparison& comparison) {
  const std::string scatter = "host-scatter-16k", gather = "host-gather-16k";
  if (!comparison.Wants(scatter) && !comparison.Wants(gather)) return;
  GpuSetup& setup = comparison.setup();
  const PagedCache cache(&setup, 16 << 10);
  gpu::CopyLimits direct;
  direct.staged_pages = std::numeric_limits<uint64_t>::max();
  const gpu::PageCopy out = cache.Scatter(setup.pool.data(), setup.target);
  setup.raw->Poison(setup.target, setup.bytes);
  comparison.Measure(
      scatter,
      [&] {
        Pair pair;
        pair.ours = RateOf(comparison, out);
        if (!cache.HasScattered(setup.target)) throw Failure("wrong bytes after " + scatter);
        pair.theirs = RawRate(comparison, setup.target, setup.raw_pinned, cache.bytes());
        return pair;
      },
      [&] {
        Json json = {{"other ways", {{"one launch", RateOf(comparison, out, direct)}}}};
        if (comparison.options().variants) {
          json["kernel"] =
              Variants(comparison, cache.ScatterJob(setup.pool.data(), setup.target), true);
        }
        return json;
      });
  RateOf(comparison, out);
  const gpu::PageCopy in = cache.Gather(setup.target, setup.pool.data());
  comparison.Measure(
      gather,
      [&] {
        Pair pair;
        pair.ours = RateOf(comparison, in);
        pair.theirs = RawRate(comparison, setup.raw_pinned, setup.raw_source, cache.bytes());
        return pair;
      },
      [&] {
        return Json{{"other ways", {{"one launch", RateOf(comparison, in, direct)}}}};
      });
}

}  // namespace

void GpuPageRows(GpuComparison& comparison) {
  DeviceRows(comparison, "64k", 64 << 10);
  DeviceRows(comparison, "4k", 4 << 10);
  HostRows(comparison);
}

}  // namespace moonpool::bench
