// libmoonpool and a real server over RDMA: values of every size, both ways.
#include "tests/client/vm/server_process.h"

namespace moonpool::client::test {
namespace {

constexpr size_t kThreshold = 64 * 1024;

class VmClient : public testing::Test {
 protected:
  ServerProcess server_;
  std::unique_ptr<Client> client_ = server_.Connect();
};

Transport Expected(size_t bytes) {
  return bytes < kThreshold ? Transport::kTcp : Transport::kRdma;
}

TEST_F(VmClient, EverySizeFromAndIntoRegisteredMemory) {
  constexpr size_t kMost = 100'000'000;
  Block from(kMost + 1), into(kMost + 1);
  ASSERT_TRUE(client_->RegisterBuffer(from.data(), from.size()).ok());
  ASSERT_TRUE(client_->RegisterBuffer(into.data(), into.size()).ok());
  EXPECT_EQ(client_->stats().rdma_registered_bytes, from.size() + into.size());
  for (const size_t bytes :
       {size_t{1}, size_t{2}, size_t{63}, size_t{4095}, size_t{4096}, size_t{65535}, size_t{65536},
        size_t{65537}, size_t{1} << 20, size_t{3274752}, (size_t{16} << 20) + 1, kMost}) {
    SCOPED_TRACE(bytes);
    const std::string key = "size:" + std::to_string(bytes);
    char* const data = from.data() + bytes % 2;  // aligned and not
    FillBytes(data, bytes, bytes);
    const KeyResult put = PutOne(*client_, key, data, bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Expected(bytes));
    std::memset(into.data(), 0, bytes + 1);
    const KeyResult got = GetOne(*client_, key, into.data() + 1, bytes);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.bytes, bytes);
    EXPECT_EQ(got.transport, Expected(bytes));
    EXPECT_TRUE(AreBytes(into.data() + 1, bytes, bytes));
    if (bytes > 1) {
      EXPECT_EQ(GetOne(*client_, key, into.data(), bytes - 1).code, Code::kBufferTooSmall);
    }
  }
  const Stats stats = client_->stats();
  EXPECT_EQ(stats.fallbacks, 0u);
  EXPECT_EQ(stats.rdma_staged_values, 0u);
  EXPECT_EQ(stats.rdma.values_read, stats.rdma.values_written);
  EXPECT_EQ(client_->transport(), Transport::kRdma);
  EXPECT_TRUE(client_->UnregisterBuffer(from.data()).ok());
  EXPECT_EQ(client_->stats().rdma_registered_bytes, into.size());
  // A value from where nothing is registered any more passes through the library's memory.
  EXPECT_EQ(PutOne(*client_, "again", from.data(), kThreshold).transport, Transport::kRdma);
  EXPECT_EQ(client_->stats().rdma_staged_values, 1u);
}

TEST_F(VmClient, MemoryThatIsNotRegistered) {
  std::string value((16 << 20) + 1, '\0');
  FillBytes(value.data(), value.size(), 7);
  for (const size_t bytes : {kThreshold, kThreshold + 1, size_t{5'000'001}, size_t{16} << 20}) {
    SCOPED_TRACE(bytes);
    const std::string_view part(value.data(), bytes);
    ASSERT_TRUE(client_->Set("text", part).ok());
    std::string got;
    ASSERT_TRUE(client_->Get("text", &got).ok());
    EXPECT_TRUE(got == part);
    View view;
    ASSERT_TRUE(client_->GetView("text", &view).ok());
    EXPECT_TRUE(view.is_copy() && view.bytes() == part);
  }
  const Stats stats = client_->stats();
  EXPECT_EQ(stats.rdma.values_written, 4u);
  EXPECT_EQ(stats.rdma_staged_values, 4u);
  EXPECT_EQ(stats.rdma.values_read, 8u);
  EXPECT_EQ(stats.fallbacks, 0u);
  // One that is longer than what it would pass through goes over tcp, and that is counted.
  ASSERT_TRUE(client_->Set("text", value).ok());
  EXPECT_EQ(client_->stats().fallbacks, 1u);
  std::string got;
  ASSERT_TRUE(client_->Get("text", &got).ok());
  EXPECT_TRUE(got == value);
}

TEST_F(VmClient, BatchesAnswerPerKey) {
  constexpr size_t kKeys = 300;  // several commands
  Block from(kKeys * 140'000), into(kKeys * 140'000);
  ASSERT_TRUE(client_->RegisterBuffer(from.data(), from.size()).ok());
  ASSERT_TRUE(client_->RegisterBuffer(into.data(), into.size()).ok());
  std::vector<std::string> names;
  std::vector<ConstBuffer> values;
  std::vector<std::vector<Buffer>> pieces;
  for (size_t i = 0; i < kKeys; ++i) {
    names.push_back("batch:" + std::to_string(i));
    const size_t bytes = i % 4 == 0 ? 100 + i : 66'000 + i * 200;
    char* const at = from.data() + i * 140'000;
    FillBytes(at, bytes, i);
    values.push_back({at, bytes});
    char* const to = into.data() + i * 140'000;
    pieces.push_back({{to, 50}, {to + 50, 0}, {to + 50, 139'950}});
  }
  const std::vector<std::string_view> keys(names.begin(), names.end());
  for (const KeyResult& result : client_->BatchPutFrom(keys, values)) {
    EXPECT_TRUE(result.ok()) << result.message;
  }
  client_->Del(names[5]);
  const auto results = client_->BatchGetIntoMulti(keys, pieces);
  for (size_t i = 0; i < kKeys; ++i) {
    SCOPED_TRACE(i);
    if (i == 5) {
      EXPECT_EQ(results[i].code, Code::kMiss);
      continue;
    }
    ASSERT_TRUE(results[i].ok()) << results[i].message;
    EXPECT_EQ(results[i].transport, Expected(values[i].size));
    EXPECT_TRUE(AreBytes(into.data() + i * 140'000, results[i].bytes, i));
  }
  EXPECT_EQ(client_->stats().fallbacks, 0u);
}

TEST_F(VmClient, ConditionsAndExpiry) {
  Block from(100'000);
  ASSERT_TRUE(client_->RegisterBuffer(from.data(), from.size()).ok());
  PutOptions absent, present, brief;
  absent.if_absent = present.if_present = true;
  brief.ttl_ms = 1;
  EXPECT_EQ(PutOne(*client_, "c", from.data(), from.size(), present).code, Code::kConditionNotMet);
  EXPECT_TRUE(PutOne(*client_, "c", from.data(), from.size(), absent).ok());
  EXPECT_EQ(PutOne(*client_, "c", from.data(), from.size(), absent).code, Code::kConditionNotMet);
  EXPECT_TRUE(PutOne(*client_, "c", from.data(), from.size(), present).ok());
  EXPECT_TRUE(PutOne(*client_, "c", from.data(), from.size(), brief).ok());
  EXPECT_TRUE(Eventually([&] { return client_->Exists("c").code == Code::kMiss; }));
  PutOptions nowhere;
  nowhere.prefer = "moon";
  EXPECT_EQ(PutOne(*client_, "c", from.data(), from.size(), nowhere).code, Code::kInvalidArgument);
}

TEST_F(VmClient, FewRegistrationsAndFewQueuePairs) {
  // Room for one of three buffers, and for one session of two.
  auto client = server_.Connect("rdma_registered_mib=1&rdma_sessions=1&connections=2");
  std::vector<Block> blocks;
  for (int i = 0; i < 3; ++i) blocks.emplace_back(1 << 20);
  for (Block& block : blocks) ASSERT_TRUE(client->RegisterBuffer(block.data(), block.size()).ok());
  const auto work = [&](int thread) {
    for (int i = 0; i < 30; ++i) {
      Block& block = blocks[static_cast<size_t>(i % 3)];
      const std::string key = "few:" + std::to_string(thread) + std::to_string(i);
      char* const at = block.data() + thread * (512 << 10);
      FillBytes(at, 500'000, static_cast<uint64_t>(i));
      EXPECT_TRUE(PutOne(*client, key, at, 500'000).ok());
      std::memset(at, 0, 500'000);
      const KeyResult got = GetOne(*client, key, at, 500'000);
      EXPECT_TRUE(got.ok()) << got.message;
      EXPECT_TRUE(AreBytes(at, 500'000, static_cast<uint64_t>(i)));
    }
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  EXPECT_LE(client->stats().rdma_registered_bytes, uint64_t{1} << 20);
  EXPECT_GT(client->stats().rdma.values_read, 0u);
}

TEST_F(VmClient, AutoTakesSharedMemoryOnOneHost) {
  std::unique_ptr<Client> client;
  ASSERT_TRUE(
      Client::Connect("moonpool://127.0.0.1:" + std::to_string(server_.port()), {}, &client).ok());
  EXPECT_EQ(client->transport(), Transport::kShm);
  EXPECT_EQ(client->stats().rdma_error, "");
}

TEST_F(VmClient, ExcludedNicsAreNotUsed) {
  std::unique_ptr<Client> client;
  const Status status = Client::Connect(server_.Url("rdma_exclude=*"), {}, &client);
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_NE(status.message.find("no RDMA: no RDMA device can be used"), std::string::npos)
      << status.message;
}

}  // namespace
}  // namespace moonpool::client::test
