// The design's invariants under concurrent writers, readers and evictors: a checker that knows
// every version, and clients of every kind in one process, so that the thread sanitizer sees all.
#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "tests/client/live_server.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kSeconds = 6;
#else
constexpr int kSeconds = 3;
#endif

// One writer per key, so that versions are ordered: what a read may return is at least the last
// version acknowledged before it began and at most the last one begun before it ended.
struct KeyState {
  std::atomic<uint64_t> begun{0};
  std::atomic<uint64_t> acknowledged{0};
};

class Checker {
 public:
  explicit Checker(size_t keys) : states_(keys) {}

  KeyState& state(size_t key) { return states_[key]; }
  size_t keys() const { return states_.size(); }

  void Check(size_t key, const void* data, size_t bytes, uint64_t least, const char* how) {
    Stamp stamp;
    std::string wrong = CheckStamped(data, bytes, key, &stamp);
    if (wrong.empty() && stamp.version < least) {
      wrong = "version " + std::to_string(stamp.version) + " after " + std::to_string(least) +
              " was acknowledged";
    }
    if (wrong.empty() && stamp.version > states_[key].begun) wrong = "a version nobody wrote";
    if (wrong.empty()) {
      ++good_;
    } else if (++bad_ <= 5) {
      ADD_FAILURE() << how << ", key " << key << ": " << wrong;
    }
  }
  void Miss() { ++misses_; }
  uint64_t good() const { return good_; }
  uint64_t misses() const { return misses_; }
  uint64_t bad() const { return bad_; }

 private:
  std::vector<KeyState> states_;
  std::atomic<uint64_t> good_{0};
  std::atomic<uint64_t> misses_{0};
  std::atomic<uint64_t> bad_{0};
};

std::string NameOf(size_t key) { return "inv:" + std::to_string(key); }

// Sizes on both sides of the threshold, all different, so that extents are reused unevenly.
size_t SizeOf(std::mt19937& random) {
  switch (random() % 4) {
    case 0:
      return 24 + random() % 500 * 8;
    case 1:
      return 65536 + random() % 4096 * 8;
    default:
      return 100000 + random() % 60000 * 8;
  }
}

void Write(Client& client, Checker& checker, size_t first, size_t step, uint32_t seed,
           const std::atomic<bool>& stop) {
  std::mt19937 random(seed);
  constexpr size_t kBatch = 4;
  while (!stop) {
    std::vector<std::string> names;
    std::vector<std::vector<char>> blocks;
    std::vector<size_t> keys;
    for (size_t i = 0; i < kBatch; ++i) {
      const size_t key = first + random() % ((checker.keys() - first + step - 1) / step) * step;
      if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
      keys.push_back(key);
      names.push_back(NameOf(key));
      blocks.emplace_back(SizeOf(random));
      FillStamped(blocks.back().data(), blocks.back().size(), {key, ++checker.state(key).begun});
    }
    const std::vector<std::string_view> views(names.begin(), names.end());
    std::vector<ConstBuffer> buffers;
    for (const auto& block : blocks) buffers.push_back({block.data(), block.size()});
    const auto results = client.BatchPutFrom(views, buffers);
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].ok()) {
        // Acknowledged versions only grow: there is one writer per key.
        uint64_t version;
        std::memcpy(&version, blocks[i].data() + 8, sizeof(version));
        checker.state(keys[i]).acknowledged = version;
      } else if (results[i].code != Code::kOutOfMemory) {
        ADD_FAILURE() << "write: " << results[i].message;
      }
    }
    if (random() % 16 == 0) client.Del(names[0]);
  }
}

void ReadInto(Client& client, Checker& checker, uint32_t seed, const std::atomic<bool>& stop) {
  std::mt19937 random(seed);
  // Many at once: the last ones are copied long after their descriptors came.
  std::vector<std::vector<char>> blocks(24, std::vector<char>(600000));
  while (!stop) {
    std::vector<std::string> names;
    std::vector<size_t> keys;
    std::vector<uint64_t> least;
    std::vector<Buffer> buffers;
    for (auto& block : blocks) {
      keys.push_back(random() % checker.keys());
      names.push_back(NameOf(keys.back()));
      least.push_back(checker.state(keys.back()).acknowledged);
      buffers.push_back({block.data(), block.size()});
    }
    const std::vector<std::string_view> views(names.begin(), names.end());
    const auto results = client.BatchGetInto(views, buffers);
    for (size_t i = 0; i < results.size(); ++i) {
      if (results[i].ok()) {
        checker.Check(keys[i], blocks[i].data(), results[i].bytes, least[i], "BatchGetInto");
      } else if (results[i].code == Code::kMiss) {
        checker.Miss();
      } else {
        ADD_FAILURE() << "read: " << results[i].message;
      }
    }
  }
}

void ReadViews(Client& client, Checker& checker, uint32_t seed, const std::atomic<bool>& stop) {
  std::mt19937 random(seed);
  struct Held {
    View view;
    size_t key;
    uint64_t least;
  };
  std::vector<Held> held;
  while (!stop) {
    const size_t key = random() % checker.keys();
    const uint64_t least = checker.state(key).acknowledged;
    View view;
    const Status status = client.GetView(NameOf(key), &view);
    if (status.ok()) {
      held.push_back({std::move(view), key, least});
    } else if (status.code == Code::kMiss) {
      checker.Miss();
    } else {
      ADD_FAILURE() << "view: " << status.message;
    }
    // Look at one taken some time ago: its bytes must not have changed.
    if (held.size() > 6) {
      const size_t which = random() % held.size();
      const Held& old = held[which];
      checker.Check(old.key, old.view.data(), old.view.size(), old.least, "GetView");
      EXPECT_TRUE(old.view.still_valid());
      held.erase(held.begin() + static_cast<ptrdiff_t>(which));
    }
  }
}

struct Load {
  LiveServer::Settings settings;
  const char* writers;  // URL options of the two writers
  const char* readers;
};

void RunLoad(const LiveServer::Settings& settings, const char* writers, const char* readers) {
  LiveServer server(settings);
  Checker checker(200);
  std::atomic<bool> stop{false};
  std::vector<std::unique_ptr<Client>> clients;
  std::vector<std::thread> threads;
  const auto start = [&](const char* options, auto&& work) {
    clients.push_back(server.Connect(options));
    threads.emplace_back([&checker, &stop, client = clients.back().get(), work] {
      work(*client, checker, stop);
    });
  };
  for (size_t w = 0; w < 2; ++w) {
    start(writers, [w](Client& client, Checker& c, const std::atomic<bool>& s) {
      Write(client, c, w, 2, static_cast<uint32_t>(w + 1), s);
    });
  }
  start(readers, [](Client& client, Checker& c, const std::atomic<bool>& s) {
    ReadInto(client, c, 100, s);
  });
  start(readers, [](Client& client, Checker& c, const std::atomic<bool>& s) {
    ReadViews(client, c, 200, s);
  });
  start("transport=tcp", [](Client& client, Checker& c, const std::atomic<bool>& s) {
    ReadInto(client, c, 300, s);
  });
  std::this_thread::sleep_for(std::chrono::seconds(kSeconds));  // the length of the load
  EXPECT_TRUE(Eventually([&] { return checker.good() > 100; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(checker.bad(), 0u);
  uint64_t retries = 0;
  for (const auto& client : clients) retries += client->stats().generation_retries;
  testing::Test::RecordProperty("good_reads", std::to_string(checker.good()));
  testing::Test::RecordProperty("misses", std::to_string(checker.misses()));
  testing::Test::RecordProperty("generation_retries", std::to_string(retries));
  // Nothing is left behind: with the clients gone, only the keys hold extents.
  clients.clear();
  server.tenant().keyspace().Clear();
  EXPECT_TRUE(Eventually([&] { return server.tenant().budget().extent_bytes() == 0; }));
  EXPECT_TRUE(Eventually([&] {
    for (const storage::RegionInfo& region : server.tenant().pool().Regions()) {
      if (region.kind == storage::Region::Kind::kArena) return false;
    }
    return true;
  })) << "write arenas outlive their sessions";
}

// The pool holds about half of what is written, so that eviction never rests, and there are no
// leases: extents are reused under running copies, and only the generations tell.
TEST(Invariants, NoWrongBytesUnderEviction) {
  RunLoad({{"maxmemory", "40mb"}, {"region-size", "4mb"}, {"arena-size", "4mb"},
           {"lease-default", "0"}},
          "transport=shm&connections=1", "transport=shm");
}

TEST(Invariants, NoWrongBytesWithLeases) {
  RunLoad({{"maxmemory", "64mb"}, {"region-size", "8mb"}, {"arena-size", "4mb"}},
          "transport=shm&connections=1", "transport=shm");
}

TEST(Invariants, NoWrongBytesWhenTheServerCopiesCommits) {
  RunLoad({{"maxmemory", "48mb"}, {"region-size", "8mb"}, {"shm-commit", "copy"},
           {"lease-default", "0"}},
          "transport=shm&connections=1", "transport=shm");
}

TEST(Invariants, NoWrongBytesFromPlainWriters) {
  RunLoad({{"maxmemory", "40mb"}, {"region-size", "4mb"}, {"lease-default", "0"},
           {"maxmemory-policy", "allkeys-lru"}},
          "transport=tcp", "transport=shm");
}

// Invariant 2: a reservation shows nothing before its commit, whatever was written to it.
TEST(Invariants, NothingShowsBeforeCommit) {
  LiveServer server;
  const auto client = server.Connect("transport=shm");
  std::string value;
  std::atomic<bool> stop{false};
  std::atomic<int> partial{0};
  std::thread reader([&] {
    const auto other = server.Connect("transport=shm");
    std::string got;
    while (!stop) {
      if (other->Get("whole", &got).ok() && got != std::string(got.size(), got[0])) ++partial;
      if (!got.empty() && got.size() != 3000000) ++partial;
    }
  });
  for (char c = 'a'; c <= 'z'; ++c) {
    ASSERT_TRUE(client->Set("whole", std::string(3000000, c)).ok());
  }
  stop = true;
  reader.join();
  EXPECT_EQ(partial, 0);
}

// Invariant 5: readers that never let go cannot stop writers.
TEST(Invariants, LeasesAndHoldsDoNotStarveWriters) {
  LiveServer server({{"maxmemory", "64mb"}, {"region-size", "8mb"}, {"lease-default", "60000"}});
  const auto reader = server.Connect("transport=shm&connections=1");
  const auto writer = server.Connect("transport=shm&connections=1");
  std::vector<View> views;
  const std::string block(1 << 20, 'b');
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    const std::string key = "starve:" + std::to_string(i);
    if (!writer->Set(key, block).ok()) {
      ++refused;
      continue;
    }
    View view;
    ASSERT_TRUE(reader->GetView(key, &view).ok());
    views.push_back(std::move(view));
    if (views.size() > 20) views.erase(views.begin());
  }
  EXPECT_EQ(refused, 0);
  EXPECT_GT(server.tenant().keyspace().stats().evicted, 100u);
}

}  // namespace
}  // namespace moonpool::client
