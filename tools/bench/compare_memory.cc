// Rows about memory: what a key costs, and how full the pool gets.
#include <unistd.h>

#include <algorithm>
#include <random>

#include "tools/bench/clock.h"
#include "tools/bench/comparison.h"
#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/requests.h"
#include "tools/bench/value_socket.h"

namespace moonpool::bench {

namespace {

constexpr size_t kKeys = 1'000'000;
constexpr uint64_t kKeyBytes = 16;
constexpr uint64_t kValueBytes = 64;

// A hash table may still be growing when the last key is in: waits until nothing changes.
int64_t SteadyMemory(TestServer& server) {
  constexpr double kSteadySeconds = 0.3;
  constexpr double kPatienceSeconds = 10;
  const Stopwatch waited;
  Stopwatch steady;
  int64_t last = -1;
  while (steady.seconds() < kSteadySeconds && waited.seconds() < kPatienceSeconds) {
    const int64_t used = server.control().InfoNumber("memory", "used_memory");
    if (last < 0 || std::abs(used - last) > 4096) steady.Restart();
    last = used;
    usleep(20000);
  }
  return last;
}

// Bytes per key beyond key and value.
double Overhead(TestServer& server, const Requests& sets, Figures* figures) {
  const int64_t before = SteadyMemory(server);
  const int64_t resident_before = server.control().InfoNumber("memory", "used_memory_rss");
  LoadGenerator(server.port(), sets, 10, 50).RunOperations(kKeys);
  const int64_t after = SteadyMemory(server);
  const int64_t resident = server.control().InfoNumber("memory", "used_memory_rss");
  const int64_t keys = server.control().Expect({"DBSIZE"})->integer;
  if (keys != static_cast<int64_t>(kKeys)) throw Failure("a server lost keys");
  const double payload = static_cast<double>(kKeyBytes + kValueBytes);
  figures->Add("resident bytes/key beyond",
               static_cast<double>(resident - resident_before) / kKeys - payload);
  return static_cast<double>(after - before) / kKeys - payload;
}

constexpr uint64_t kChurnSizes[] = {4096, 256 << 10, 3'250'586};  // 70 %, 20 %, 10 %

uint64_t RandomSize(std::mt19937_64& random) {
  const uint64_t dice = random() % 100;
  return kChurnSizes[dice < 70 ? 0 : dice < 90 ? 1 : 2];
}

// Fills to 85 % of `capacity`, replaces values at random until `turnovers` times the capacity was
// written, then fills on.  `put` returns false when there is no memory.  Returns the live bytes at
// that first refusal.
template <typename Put, typename Del>
uint64_t Churn(uint64_t capacity, int turnovers, uint64_t seed, Put&& put, Del&& del) {
  struct Value {
    uint64_t number;
    uint64_t bytes;
  };
  std::mt19937_64 random(seed);
  std::vector<Value> live;
  uint64_t live_bytes = 0;
  uint64_t next = 0;
  uint64_t written = 0;
  const auto churn_bytes = static_cast<uint64_t>(turnovers) * capacity;
  for (;;) {
    const uint64_t bytes = RandomSize(random);
    const bool churning = written < churn_bytes;
    while (churning && !live.empty() && live_bytes + bytes > capacity / 100 * 93) {
      Value& victim = live[random() % live.size()];
      del(NumberedKey("val:", victim.number));
      live_bytes -= victim.bytes;
      victim = live.back();
      live.pop_back();
    }
    if (!put(NumberedKey("val:", next), bytes)) return live_bytes;
    live.push_back({next++, bytes});
    live_bytes += bytes;
    written += bytes;
  }
}

Pair MeasureChurn(Comparison& comparison, bool arenas, uint64_t seed, Figures* figures) {
  std::vector<std::string> flags = {"--maxmemory-policy", "noeviction", "--bulk-threshold",
                                    "4096", "--lease-default", "0"};
  if (comparison.quick()) flags.insert(flags.end(), {"--maxmemory", "1gb"});
  const auto moonpool = comparison.Moonpool(flags);
  const auto capacity =
      static_cast<uint64_t>(moonpool->control().MapNumber("KV.STATS", "limit-bytes"));
  const int turnovers = comparison.quick() ? 1 : 6;
  uint64_t live = 0;
  if (arenas) {
    const auto client = ConnectClient(moonpool->url("transport=shm&connections=1"));
    const std::string source(*std::max_element(std::begin(kChurnSizes), std::end(kChurnSizes)),
                             'x');
    live = Churn(
        capacity, turnovers, seed,
        [&](const std::string& key, uint64_t bytes) {
          const std::string_view keys[] = {key};
          const client::ConstBuffer buffers[] = {{source.data(), bytes}};
          const auto results = client->BatchPutFrom(keys, buffers);
          if (results[0].code == client::Code::kOutOfMemory) return false;
          ExpectOk(results, "BatchPutFrom");
          return true;
        },
        [&](const std::string& key) { client->Del(key); });
    figures->Add("values over tcp", static_cast<double>(client->stats().fallbacks));
  } else {
    ValueSocket socket(moonpool->port());
    live = Churn(
        capacity, turnovers, seed,
        [&](const std::string& key, uint64_t bytes) { return socket.Set(key, bytes); },
        [&](const std::string& key) { socket.Del(key); });
  }
  const auto stat = [&](std::string_view name) {
    return static_cast<double>(moonpool->control().MapNumber("KV.STATS", name));
  };
  const double regions = stat("region-bytes");
  figures->Add("values", stat("keys"));
  figures->Add("region bytes", regions);
  figures->Add("extents/regions", stat("extent-bytes") / regions);
  figures->Add("regions/limit", regions / static_cast<double>(capacity));
  return {static_cast<double>(live) / regions, std::nullopt};
}

}  // namespace

void KeyMemoryRows(Comparison& comparison) {
  const std::pair<const char*, int> rows[] = {{"memory", 0}, {"memory-ttl", 100'000}};
  for (const auto& [id, ttl_seconds] : rows) {
    if (!comparison.Wants(id)) continue;
    const Requests sets = SetRequests(kKeys, kValueBytes, ttl_seconds);
    Figures ours, theirs;
    // Every time takes fresh servers.
    comparison.Row(id, comparison.reps(), [&] {
      Pair pair;
      pair.ours = Overhead(*comparison.Moonpool({"--io-threads", "1"}), sets, &ours);
      pair.theirs = Overhead(*comparison.Redis(), sets, &theirs);
      return pair;
    }, [&] { return Json{{"ours", ours.Medians()}, {"theirs", theirs.Medians()}}; });
  }
}

void ChurnRows(Comparison& comparison) {
  for (const bool arenas : {false, true}) {
    const char* const id = arenas ? "churn-arenas" : "churn";
    if (!comparison.Wants(id) || (arenas && comparison.quick())) continue;
    Figures figures;
    uint64_t seed = 1;
    comparison.Row(
        id, std::min(comparison.reps(), arenas ? 1 : 5),
        [&] { return MeasureChurn(comparison, arenas, seed++, &figures); },
        [&] { return figures.Medians(); });
  }
}

}  // namespace moonpool::bench
