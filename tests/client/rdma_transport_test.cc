// libmoonpool and a server over RDMA on a double of the NICs (tests/rdma/fake_verbs.h), both in
// this process: what sanitizers and mutations can see.  With real devices: tests/client/vm.
#include <atomic>
#include <random>
#include <thread>

#include "protocol/crc32c.h"
#include "tests/client/batch_check.h"
#include "tests/client/rdma_rig.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kSeconds = 6;
#else
constexpr int kSeconds = 3;
#endif

TEST_F(RdmaTransportTest, RegisteredMemoryIsReadFromAndInto) {
  StartServer();
  auto client = Connect();
  std::vector<char> from(3 << 20), into(3 << 20);
  ASSERT_TRUE(client->RegisterBuffer(from.data(), from.size()).ok());
  ASSERT_TRUE(client->RegisterBuffer(into.data(), into.size()).ok());
  for (const size_t bytes : {24u, 65528u, 65536u, 3u << 20}) {
    SCOPED_TRACE(bytes);
    const Transport expected = bytes < 65536 ? Transport::kTcp : Transport::kRdma;
    FillStamped(from.data(), bytes, {1, bytes});
    const KeyResult put = PutOne(*client, "k", from.data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, expected);
    const KeyResult got = GetOne(*client, "k", into.data(), into.size());
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, expected);
    EXPECT_EQ(got.bytes, bytes);
    EXPECT_EQ(CheckStamped(into.data(), bytes, 1), "");
  }
  EXPECT_EQ(GetOne(*client, "k", into.data(), 100).code, Code::kBufferTooSmall);
  EXPECT_EQ(GetOne(*client, "nothing", into.data(), 100).code, Code::kMiss);
  const Stats stats = client->stats();
  EXPECT_EQ(stats.rdma.values_written, 2u);
  EXPECT_EQ(stats.rdma.values_read, 2u);
  EXPECT_EQ(stats.rdma_staged_values, 0u);
  EXPECT_EQ(stats.rdma_registered_bytes, from.size() + into.size());
  EXPECT_EQ(stats.fallbacks, 0u);
  // What is no more registered is no more pinned, and still moves.
  ASSERT_TRUE(client->UnregisterBuffer(from.data()).ok());
  EXPECT_EQ(client->stats().rdma_registered_bytes, into.size());
  EXPECT_EQ(PutOne(*client, "k", from.data(), from.size()).transport, Transport::kRdma);
  EXPECT_EQ(client->stats().rdma_staged_values, 1u);
}

// What follows from it: pace_test.cc.
TEST_F(RdmaTransportTest, WhereTheChoiceIsOpenTcpIsTriedToo) {
  StartServer({{"shm", "no"}});
  auto client = server_->Connect();
  ASSERT_EQ(client->transport(), Transport::kRdma);
  std::vector<char> block(128 << 10);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillStamped(block.data(), block.size(), {1, 1});
  ASSERT_TRUE(PutOne(*client, "k", block.data(), block.size()).ok());
  EXPECT_EQ(client->stats().tcp_by_choice, 0u);
  EXPECT_TRUE(Eventually([&] {
    const KeyResult got = GetOne(*client, "k", block.data(), block.size());
    EXPECT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(CheckStamped(block.data(), got.bytes, 1), "");
    if (client->stats().tcp_by_choice == 0) return false;
    EXPECT_EQ(got.transport, Transport::kTcp);
    return true;
  }));
  EXPECT_EQ(client->stats().tcp_by_choice, 1u);
}

TEST_F(RdmaTransportTest, ChecksumsAreWrittenAndChecked) {
  StartServer();
  std::vector<char> block(100'000);
  FillStamped(block.data(), block.size(), {1, 1});
  const auto crc_of = [&](Client& client, const char* key) {
    const std::string_view words[] = {"KV.LOCATE", "1", key};
    std::string fields;
    EXPECT_TRUE(client.Command(words, &fields).ok());
    size_t at = 0;
    for (int field = 0; field < 5; ++field) at = fields.find('\n', at) + 1;
    return fields.substr(at, fields.find('\n', at) - at);
  };
  auto plain = Connect();
  ASSERT_EQ(PutOne(*plain, "plain", block.data(), block.size()).transport, Transport::kRdma);
  EXPECT_EQ(crc_of(*plain, "plain"), "");
  auto careful = Connect("checksum=yes");
  ASSERT_EQ(PutOne(*careful, "k", block.data(), block.size()).transport, Transport::kRdma);
  EXPECT_EQ(crc_of(*careful, "k"), std::to_string(protocol::Crc32c(0, block.data(), block.size())));
  EXPECT_TRUE(GetOne(*careful, "k", block.data(), block.size()).ok());
  EXPECT_TRUE(GetOne(*careful, "plain", block.data(), block.size()).ok());
}

TEST_F(RdmaTransportTest, StringsAndViewsPassThroughStagingMemory) {
  StartServer();
  auto client = Connect("rdma_staging_mib=1");
  const std::string value(1 << 20, 'v');
  const std::vector<std::string> names = {"a", "b", "c"};
  const std::vector<std::string_view> keys(names.begin(), names.end());
  const std::vector<std::string_view> values(3, value);
  for (const KeyResult& result : client->BatchPut(keys, values)) {
    EXPECT_EQ(result.transport, Transport::kRdma) << result.message;
  }
  std::vector<std::string> got;
  for (const KeyResult& result : client->BatchGet(keys, &got)) EXPECT_TRUE(result.ok());
  for (const std::string& text : got) EXPECT_TRUE(text == value);
  View view;
  ASSERT_TRUE(client->GetView("a", &view).ok());
  EXPECT_TRUE(view.is_copy() && view.still_valid() && view.bytes() == value);
  EXPECT_EQ(client->GetView("nothing", &view).code, Code::kMiss);
  EXPECT_EQ(client->stats().fallbacks, 0u);
  ASSERT_TRUE(client->Set("a", value + "x").ok());  // longer than that memory
  EXPECT_EQ(client->stats().fallbacks, 1u);
  ASSERT_TRUE(client->Get("a", &got[0]).ok());
  EXPECT_TRUE(got[0] == value + "x");
}

TEST_F(RdmaTransportTest, NicsThatFailAndComeBack) {
  StartServer();
  auto client = Connect("connections=1");
  std::vector<char> block(8 << 20);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillStamped(block.data(), block.size(), {1, 1});
  ASSERT_TRUE(PutOne(*client, "k", block.data(), block.size()).ok());
  const auto get = [&] {
    std::memset(block.data(), 0, block.size());
    const KeyResult got = GetOne(*client, "k", block.data(), block.size());
    EXPECT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(CheckStamped(block.data(), got.bytes, 1), "");
    return got.transport;
  };
  uint64_t fallbacks = 0;
  // The other lane takes over, if it is there: one is enough to begin with, and on a busy machine
  // one may be lost for its silence.
  EXPECT_TRUE(Eventually([&] {
    fabric_.SetPort("c0", true);
    auto before = fabric_.counters().device_bytes;
    EXPECT_TRUE(Eventually([&] {
      get();
      auto bytes = fabric_.counters().device_bytes;
      return bytes["c0"] > before["c0"] && bytes["c1"] > before["c1"];
    }));
    fallbacks = client->stats().fallbacks;
    fabric_.SetPort("c0", false);
    return get() == Transport::kRdma && client->stats().fallbacks == fallbacks;
  }));
  fabric_.SetPort("c1", false);
  get();
  EXPECT_EQ(get(), Transport::kTcp);
  EXPECT_EQ(client->transport(), Transport::kTcp);
  EXPECT_GT(client->stats().fallbacks, fallbacks);
  EXPECT_EQ(PutOne(*client, "k", block.data(), block.size()).transport, Transport::kTcp);
  fabric_.SetPort("c0", true);
  EXPECT_TRUE(Eventually([&] { return get() == Transport::kRdma; }));
}

TEST_F(RdmaTransportTest, AnotherServerOnThePort) {
  StartServer();
  auto client = Connect();
  std::vector<char> block(1 << 20);
  ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  FillStamped(block.data(), block.size(), {1, 1});
  for (int life = 0; life < 3; ++life) {
    SCOPED_TRACE(life);
    EXPECT_EQ(GetOne(*client, "k", block.data(), block.size()).code, Code::kMiss);
    // Sessions have the numbers of before, and regions too.
    EXPECT_EQ(PutOne(*client, "k", block.data(), block.size()).transport, Transport::kRdma);
    EXPECT_EQ(GetOne(*client, "k", block.data(), block.size()).transport, Transport::kRdma);
    const int port = server_->port();
    server_ = nullptr;
    EXPECT_EQ(GetOne(*client, "k", block.data(), block.size()).code, Code::kUnavailable);
    StartServer({}, port);
  }
}

TEST_F(RdmaTransportTest, FewQueuePairsAndRegistrations) {
  StartServer();
  auto client = Connect("rdma_sessions=1&connections=3&rdma_registered_mib=1");
  const auto work = [&](uint64_t key) {
    std::vector<char> block(1 << 20);
    ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
    for (uint64_t version = 1; version <= 20; ++version) {
      FillStamped(block.data(), block.size(), {key, version});
      const std::string name = std::to_string(key);
      EXPECT_TRUE(PutOne(*client, name, block.data(), block.size()).ok());
      std::memset(block.data(), 0, block.size());
      EXPECT_TRUE(GetOne(*client, name, block.data(), block.size()).ok());
      EXPECT_EQ(CheckStamped(block.data(), block.size(), key), "");
    }
    EXPECT_TRUE(client->UnregisterBuffer(block.data()).ok());
  };
  std::vector<std::thread> threads;
  for (uint64_t key = 1; key <= 3; ++key) threads.emplace_back(work, key);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(client->stats().rdma_registered_bytes, 0u);
}

TEST_F(RdmaTransportTest, AServerNobodyReachesIsLeftAloneForAWhile) {
  StartServer({{"shm", "no"}});
  for (const char* device : {"s0", "s1"}) fabric_.SetPort(device, false);
  auto client = server_->Connect("connect_timeout_ms=60000");
  EXPECT_EQ(client->transport(), Transport::kTcp);
  const Stats before = client->stats();
  EXPECT_EQ(before.rdma_failures, 1u);
  EXPECT_NE(before.rdma_error.find("no queue pair to the server"), std::string::npos)
      << before.rdma_error;
  const std::string value(100'000, 'x');
  std::string got;
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Get("k", &got).ok());
  EXPECT_TRUE(got == value);
  for (const char* device : {"s0", "s1"}) fabric_.SetPort(device, true);
  EXPECT_TRUE(Eventually(
      [&] { return client->Get("k", &got).ok() && client->transport() == Transport::kRdma; }));
  EXPECT_EQ(client->stats().rdma_error, "");
  std::unique_ptr<Client> other;
  for (const char* device : {"s0", "s1"}) fabric_.SetPort(device, false);
  const Status status = Client::Connect(server_->Url("transport=rdma"), {}, &other);
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_TRUE(status.message.starts_with("no RDMA: ")) << status.message;
}

// Extents are reused under readers: what they get is one whole version, or nothing.
TEST_F(RdmaTransportTest, NoWrongBytesUnderEviction) {
  StartServer({{"maxmemory", "40mb"},
               {"region-size", "8mb"},
               {"arena-size", "4mb"},
               {"lease-default", "1"}});
  constexpr size_t kKeys = 60;
  constexpr size_t kMost = 800'000;
  std::vector<std::atomic<uint64_t>> acknowledged(kKeys);
  std::atomic<bool> stop{false};
  std::atomic<int> over_rdma{0};  // readers
  BatchCheck check;
  const auto write = [&](size_t first) {
    auto client = Connect();
    std::mt19937 random(static_cast<uint32_t>(first));
    std::vector<char> block(kMost);
    EXPECT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = first + random() % (kKeys / 2) * 2;
      const size_t bytes = 66'000 + random() % 90'000 * 8;
      FillStamped(block.data(), bytes, {key, version});
      const KeyResult put = PutOne(*client, std::to_string(key), block.data(), bytes);
      if (put.ok()) {
        acknowledged[key] = version;
      } else {
        EXPECT_EQ(put.code, Code::kOutOfMemory) << put.message;
      }
    }
  };
  const auto read = [&](uint32_t seed) {
    auto client = Connect();
    std::mt19937 random(seed);
    constexpr size_t kBatch = 24;
    std::vector<char> block(kBatch * kMost);
    EXPECT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
    bool counted = false;
    while (!stop) {
      std::vector<size_t> keys(kBatch);
      for (size_t& key : keys) key = random() % kKeys;
      check.Read(
          *client, keys, [](size_t key) { return std::to_string(key); },
          [&](size_t key) { return acknowledged[key].load(); }, block.data(), kMost);
      if (counted || client->stats().rdma.values_read == 0) continue;
      counted = true;
      ++over_rdma;
    }
  };
  std::vector<std::thread> threads;
  threads.emplace_back(write, 0);
  threads.emplace_back(write, 1);
  threads.emplace_back(read, 1);
  threads.emplace_back(read, 2);
  std::this_thread::sleep_for(std::chrono::seconds(kSeconds));  // the length of the load
  EXPECT_TRUE(Eventually([&] { return check.good > 50 && over_rdma == 2; }))
      << check.good << " good reads, " << over_rdma << " readers over RDMA";
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(check.bad, 0u);
}

}  // namespace
}  // namespace moonpool::client
