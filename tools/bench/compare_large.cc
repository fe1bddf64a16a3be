// Rows about large values over sockets: plain RESP, and libmoonpool's tcp transport.
#include <algorithm>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/loopback_stream.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"
#include "tools/bench/requests.h"
#include "tools/bench/value_socket.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kMiB = 1 << 20;

// CPU seconds of the server per GB moved; runs whole passes over the keys' values.
double CpuPerGb(const TestServer& server, ValueSocket& socket, bool set, uint64_t bytes, int values,
                double seconds, Figures* figures) {
  const double before = server.CpuSeconds();
  const Stopwatch watch;
  uint64_t moved = 0;
  do {
    for (int i = 0; i < values; ++i) {
      const std::string key = NumberedKey("big:", static_cast<uint64_t>(i));
      if (!set) {
        socket.Get(key, bytes);
      } else if (!socket.Set(key, bytes)) {
        throw Failure("SET of a large value: the server is out of memory");
      }
      moved += bytes;
    }
  } while (watch.seconds() < seconds);
  const double elapsed = watch.seconds();
  const double cpu_s = server.CpuSeconds() - before;
  const double gb = static_cast<double>(moved) / 1e9;
  figures->Add("GB/s", gb / elapsed);
  figures->Add("CPU s/GB", cpu_s / gb);
  return cpu_s / gb;
}

}  // namespace

void LargeRespRows(Comparison& comparison) {
  struct Size {
    const char* name;
    uint64_t bytes;
    int values;  // together more than the processor's cache holds
  };
  constexpr Size kSizes[] = {
      {"1m", kMiB, 128}, {"16m", 16 * kMiB, 8}, {"100m", 100'000'000, 2}};
  for (const Size& size : kSizes) {
    const std::string get = std::string("resp-get-") + size.name;
    const std::string set = std::string("resp-set-") + size.name;
    if (!comparison.WantsAny({get, set})) continue;
    const auto moonpool = comparison.Moonpool();
    const auto redis = comparison.Redis();
    ValueSocket ours(moonpool->port());
    ValueSocket theirs(redis->port());
    const double seconds = comparison.seconds(1.2, 0.2);
    for (const std::string& id : {set, get}) {
      const bool write = id == set;
      Figures our_figures, their_figures, warm_up;
      // Twice: so that memory for the old and the new version of every value exists.
      for (int pass = 0; pass < (write ? 2 : 1); ++pass) {
        CpuPerGb(*moonpool, ours, write, size.bytes, size.values, 0, &warm_up);
        CpuPerGb(*redis, theirs, write, size.bytes, size.values, 0, &warm_up);
      }
      moonpool->WaitUntilPopulated();
      comparison.Row(
          id,
          [&] {
            return CpuPerGb(*moonpool, ours, write, size.bytes, size.values, seconds,
                            &our_figures);
          },
          [&] {
            return CpuPerGb(*redis, theirs, write, size.bytes, size.values, seconds,
                            &their_figures);
          },
          [&] {
            return Json{{"ours", our_figures.Medians()}, {"theirs", their_figures.Medians()}};
          });
    }
  }
}

void TcpTransportRows(Comparison& comparison) {
  if (!comparison.Wants("tcp-get-1m")) return;
  constexpr size_t kValues = 64;
  const auto moonpool = comparison.Moonpool();
  const auto client = ConnectClient(moonpool->url("transport=tcp&connections=1"));
  const MemoryBlock source = MemoryBlock::Anonymous(kValues * kMiB);
  const MemoryBlock target = MemoryBlock::Anonymous(kValues * kMiB);
  std::vector<std::string> names;
  std::vector<client::Buffer> buffers;
  std::vector<client::ConstBuffer> sources;
  for (size_t i = 0; i < kValues; ++i) {
    names.push_back(NumberedKey("tcp:", i));
    FillPattern(source.data() + i * kMiB, kMiB, i, 1);
    sources.push_back({source.data() + i * kMiB, kMiB});
    buffers.push_back({target.data() + i * kMiB, kMiB});
  }
  const std::vector<std::string_view> keys(names.begin(), names.end());
  ExpectOk(client->BatchPutFrom(keys, sources), "BatchPutFrom over tcp");
  const auto pass = [&] { ExpectOk(client->BatchGetInto(keys, buffers), "BatchGetInto over tcp"); };
  pass();
  for (size_t i = 0; i < kValues; ++i) {
    if (!CheckPattern(target.data() + i * kMiB, kMiB, i)) throw Failure("tcp: wrong bytes");
  }
  const auto passes = static_cast<uint64_t>(comparison.seconds(64, 12));
  const uint64_t bytes = passes * kValues * kMiB;
  Figures figures;
  comparison.Row(
      "tcp-get-1m",
      [&] {
        const double before = moonpool->CpuSeconds();
        const Stopwatch watch;
        for (uint64_t i = 0; i < passes; ++i) pass();
        const double elapsed = watch.seconds();
        const double gb = static_cast<double>(bytes) / 1e9;
        figures.Add("server CPU s/GB", (moonpool->CpuSeconds() - before) / gb);
        return gb / elapsed;
      },
      [&] { return LoopbackStream(source.data(), target.data(), kValues * kMiB, kMiB, bytes); },
      [&] { return Json{{"ours", figures.Medians()}}; });
}

}  // namespace moonpool::bench
