// What may die between libmoonpool and a server, over RDMA.
#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>

#include "client/hello.h"
#include "client/verbs_session.h"
#include "rdma/ibverbs.h"
#include "tests/client/batch_check.h"
#include "tests/client/stamped_block.h"
#include "tests/client/vm/server_process.h"

namespace moonpool::client::test {
namespace {

std::string StressClient() {
  return std::string(std::filesystem::read_symlink("/proc/self/exe").parent_path()) +
         "/moonpool-stress-client";
}

TEST(VmClientFailures, TheServerIsKilledAndAnotherComes) {
  ServerProcess server;
  auto client = server.Connect("timeout_ms=5000&connect_timeout_ms=1000");
  Block block(64 << 20);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillBytes(block.data(), block.size(), 1);
  ASSERT_TRUE(PutOne(*client, "k", block.data(), block.size()).ok());
  for (const bool write : {false, true}) {
    SCOPED_TRACE(write ? "while it reads" : "while it is read");
    std::atomic<bool> begun{false};
    std::thread killer([&] {
      while (!begun) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      server.Kill();
    });
    begun = true;
    KeyResult result;
    // Until one fails: every call ends, with the value, a miss or an error.
    do {
      result = write ? PutOne(*client, "k", block.data(), block.size())
                     : GetOne(*client, "k", block.data(), block.size());
      if (result.ok()) {
        EXPECT_TRUE(AreBytes(block.data(), block.size(), 1));
      }
    } while (result.ok());
    EXPECT_TRUE(result.code == Code::kUnavailable || result.code == Code::kTimeout)
        << result.message;
    killer.join();
    // Another epoch, whose sessions have the numbers of before.
    server.Start();
    EXPECT_EQ(GetOne(*client, "k", block.data(), block.size()).code, Code::kMiss);
    FillBytes(block.data(), block.size(), 1);
    const KeyResult put = PutOne(*client, "k", block.data(), block.size());
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Transport::kRdma);
    const KeyResult got = GetOne(*client, "k", block.data(), block.size());
    EXPECT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kRdma);
  }
  EXPECT_GE(client->stats().reconnects, 2u);
}

TEST(VmClientFailures, ClientsAreKilledInMidTransfer) {
  ServerProcess server({"--maxmemory", "128mb"});
  auto witness = server.Connect();
  for (const char* mode : {"write", "read", "mixed"}) {
    SCOPED_TRACE(mode);
    for (uint32_t round = 0; round < 3; ++round) {
      bench::ChildProcess stress(
          {StressClient(), server.Url(), mode, std::to_string(round + 1), "30"});
      EXPECT_TRUE(Eventually([&] { return stress.Output().starts_with("running"); }));
      std::this_thread::sleep_for(std::chrono::milliseconds(100 + 70 * round));
      kill(stress.pid(), SIGKILL);
      Block block(1 << 20);
      FillStamped(block.data(), block.size(), {1, round});
      EXPECT_TRUE(PutOne(*witness, "w", block.data(), block.size()).ok());
      EXPECT_TRUE(GetOne(*witness, "w", block.data(), block.size()).ok());
      EXPECT_EQ(CheckStamped(block.data(), block.size(), 1), "");
    }
  }
  // Everything goes back: what is left are the keys, and then nothing.
  EXPECT_TRUE(Eventually([&] { return ServerStat(*witness, "sessions") <= 1; }))
      << ServerStat(*witness, "sessions");
  std::string reply;
  const std::string_view flush = "FLUSHALL";
  ASSERT_TRUE(witness->Command(std::span(&flush, 1), &reply).ok());
  EXPECT_TRUE(Eventually([&] { return ServerStat(*witness, "extent-bytes") == 0; }))
      << ServerStat(*witness, "extent-bytes");
}

// The server sleeps with a command to read our memory; when it wakes, that memory is ours again.
TEST(VmClientFailures, AWriteThatWasGivenUpReadsNothingMore) {
  ServerProcess server;
  auto client = server.Connect("timeout_ms=700&connections=1");
  Block block(8 << 20);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillStamped(block.data(), block.size(), {9, 1});
  ASSERT_TRUE(PutOne(*client, "before", block.data(), block.size()).ok());
  server.Signal(SIGSTOP);
  const KeyResult result = PutOne(*client, "given up", block.data(), block.size());
  EXPECT_EQ(result.code, Code::kTimeout) << result.message;
  std::memset(block.data(), 0x55, block.size());
  server.Signal(SIGCONT);
  auto other = server.Connect();
  std::string value;
  const Status got = other->Get("given up", &value);
  if (got.ok()) {
    EXPECT_EQ(CheckStamped(value.data(), value.size(), 9), "");
  } else {
    EXPECT_EQ(got.code, Code::kMiss) << got.message;
  }
}

// Writers, readers and evictors at once: each read is one whole version, not older than what was
// acknowledged before.
TEST(VmClientFailures, NoWrongBytesUnderEviction) {
  // Leases and quarantine as short as they go, so that extents are reused under readers.
  ServerProcess server({"--maxmemory", "40mb", "--region-size", "8mb", "--arena-size", "4mb",
                        "--lease-default", "1", "--memory-wait", "20000"});
  constexpr size_t kKeys = 60;
  constexpr size_t kMost = 800'000;
  struct State {
    std::atomic<uint64_t> acknowledged{0};
  };
  std::vector<State> states(kKeys);
  std::atomic<bool> stop{false};
  BatchCheck check;
  const auto name = [](size_t key) { return "e:" + std::to_string(key); };
  const auto write = [&](size_t first) {
    auto client = server.Connect("timeout_ms=60000");
    std::mt19937 random(static_cast<uint32_t>(first));
    Block block(kMost);
    EXPECT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = first + random() % (kKeys / 2) * 2;
      const size_t bytes = 66'000 + random() % 90'000 * 8;
      FillStamped(block.data(), bytes, {key, version});
      const KeyResult put = PutOne(*client, name(key), block.data(), bytes);
      if (put.ok()) {
        states[key].acknowledged = version;
      } else {
        EXPECT_EQ(put.code, Code::kOutOfMemory) << put.message;
      }
    }
  };
  const auto read = [&](uint32_t seed, Stats* stats) {
    auto client = server.Connect("timeout_ms=60000");
    std::mt19937 random(seed);
    constexpr size_t kBatch = 12;
    Block block(kBatch * kMost);
    EXPECT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
    while (!stop) {
      std::vector<size_t> keys(kBatch);
      for (size_t& key : keys) key = random() % kKeys;
      check.Read(
          *client, keys, name,
          [&](size_t key) { return states[key].acknowledged.load(); }, block.data(), kMost);
    }
    *stats = client->stats();
  };
  Stats stats[2];
  std::vector<std::thread> threads;
  threads.emplace_back(write, 0);
  threads.emplace_back(write, 1);
  threads.emplace_back(read, 1, &stats[0]);
  threads.emplace_back(read, 2, &stats[1]);
  std::this_thread::sleep_for(std::chrono::seconds(6));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(check.bad, 0u);
  EXPECT_GT(check.good, 100u);
  EXPECT_GT(stats[0].rdma.values_read + stats[1].rdma.values_read, 100u);
  std::printf(
      "%llu values read, %llu of them again because they changed\n",
      static_cast<unsigned long long>(check.good.load()),
      static_cast<unsigned long long>(stats[0].generation_retries + stats[1].generation_retries));
}

// A session of a RESP connection of its own, and what its queue pairs need.
class RawSession {
 public:
  RawSession(const ServerProcess& server, const VerbsShared& shared) : shared_(shared) {
    Options options;
    client::Endpoint endpoint;
    endpoint.host = "127.0.0.1";
    endpoint.port = server.port();
    EXPECT_TRUE(stream_.Connect(endpoint, options));
    WordsOfHello(stream_, false, true, {});
    ReplyHeader reply;
    EXPECT_TRUE(stream_.Flush() && stream_.Next(&reply) && ReadHello(stream_, reply, &answer_));
    EXPECT_TRUE(answer_.rdma.has_value());
  }
  std::string NewToken() {
    stream_.Begin(1);
    stream_.Word("KV.TOKEN");
    ReplyHeader reply;
    std::string token;
    EXPECT_TRUE(stream_.Flush() && stream_.Next(&reply));
    EXPECT_EQ(reply.elements(), 1) << reply.text;
    EXPECT_TRUE(stream_.ReadText(&token));
    return token;
  }
  // Empty when a queue pair comes about with that token, else why not.
  std::string Try(const std::string& text) {
    rdma::EndpointTarget target{answer_.epoch, answer_.session, answer_.rdma->port, {}};
    for (const RdmaOffer::Nic& nic : answer_.rdma->nics) {
      target.nics.push_back({nic.name, nic.addresses, shared_.nics->nics()[0].protocol,
                             nic.speed_mbps});
    }
    target.nics.resize(1);
    const auto token = rdma::ParseToken(text);
    EXPECT_TRUE(token.has_value()) << text;
    auto endpoint = std::make_unique<rdma::Endpoint>(
        *shared_.nics, *shared_.domains, target, [&]() -> Result<rdma::Token> { return *token; },
        rdma::EndpointOptions());
    const auto opened = endpoint->Open();
    kept_.push_back(std::move(endpoint));
    return opened ? "" : opened.error().message;
  }
  const std::string& first() const { return answer_.rdma->token; }

 private:
  const VerbsShared& shared_;
  RespStream stream_;
  HelloAnswer answer_;
  std::vector<std::unique_ptr<rdma::Endpoint>> kept_;
};

TEST(VmClientFailures, TokensOpenOneQueuePairOfTheirSession) {
  ServerProcess server;
  rdma::NicFilter one;
  one.only = {(*rdma::NicSet::Open(*rdma::OpenVerbs(), {}))->nics()[0].name()};
  auto nics = rdma::NicSet::Open(*rdma::OpenVerbs(), one);
  ASSERT_TRUE(nics) << nics.error().message;
  auto domains = rdma::Domains::Create((*nics)->devices());
  ASSERT_TRUE(domains);
  const VerbsShared shared(std::move(*nics), std::move(*domains), {});
  RawSession mine(server, shared), other(server, shared);
  EXPECT_EQ(mine.Try(mine.first()), "");
  EXPECT_NE(mine.Try(mine.first()).find("refused"), std::string::npos);  // replayed
  const std::string more = mine.NewToken();
  EXPECT_NE(other.Try(more).find("refused"), std::string::npos);  // stolen
  const std::string fresh = mine.NewToken();
  EXPECT_EQ(mine.Try(fresh), "");
  EXPECT_NE(mine.Try(fresh).find("refused"), std::string::npos);
  EXPECT_NE(mine.Try(std::string(32, 'a')).find("refused"), std::string::npos);  // made up
}

}  // namespace
}  // namespace moonpool::client::test
