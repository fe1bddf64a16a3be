// Rows about paged memory: scatter and gather beside one copy of the same bytes in one piece.
#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tools/bench/failure.h"
#include "tools/bench/gpu_rows.h"

namespace moonpool::bench {

namespace {

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
        return Json{
            {"other ways",
             {{"table in host memory",
               RateOf(comparison, cache.Scatter(setup.region->data(), setup.target, false))},
              {"raw copy of cudaMalloc's memory",
               RawRate(comparison, setup.target, setup.raw_source, cache.bytes())}}}};
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
        return Json{{"other ways", {{"one launch", RateOf(comparison, out, direct)}}}};
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
