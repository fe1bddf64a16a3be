// The library's whole interface against a server in this process.
#include <poll.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "tests/client/live_server.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {
namespace {

std::string Random(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

class ClientTest : public testing::TestWithParam<const char*> {
 protected:
  LiveServer server_;
  std::unique_ptr<Client> client_ =
      server_.Connect(std::string("transport=") + GetParam() + "&checksum=yes");
  Transport Large() const {
    return std::string_view(GetParam()) == "shm" ? Transport::kShm : Transport::kTcp;
  }
};

INSTANTIATE_TEST_SUITE_P(Transports, ClientTest, testing::Values("shm", "tcp"),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(ClientTest, RoundTripsOfEverySize) {
  for (const size_t bytes : {0, 1, 100, 4095, 4096, 65535, 65536, 65537, 1 << 20, 5000001}) {
    SCOPED_TRACE(bytes);
    const std::string key = "size:" + std::to_string(bytes);
    const std::string value = Random(bytes, static_cast<uint32_t>(bytes));
    ASSERT_TRUE(client_->Set(key, value).ok());
    std::string got;
    const Status status = client_->Get(key, &got);
    ASSERT_TRUE(status.ok()) << status.message;
    EXPECT_TRUE(got == value);
    EXPECT_TRUE(client_->Exists(key).ok());
    View view;
    ASSERT_TRUE(client_->GetView(key, &view).ok());
    EXPECT_TRUE(view.bytes() == value);
    EXPECT_TRUE(view.still_valid());
  }
  EXPECT_EQ(client_->transport(), Large());
}

TEST_P(ClientTest, MissesAreMisses) {
  std::string value;
  View view;
  EXPECT_EQ(client_->Get("nothing", &value).code, Code::kMiss);
  EXPECT_EQ(client_->Exists("nothing").code, Code::kMiss);
  EXPECT_EQ(client_->Del("nothing").code, Code::kMiss);
  EXPECT_EQ(client_->GetView("nothing", &view).code, Code::kMiss);
  EXPECT_EQ(view.size(), 0u);
  EXPECT_FALSE(view.still_valid());
}

TEST_P(ClientTest, BatchesAnswerPerKey) {
  constexpr size_t kKeys = 300;  // several chunks
  std::vector<std::string> names, contents;
  for (size_t i = 0; i < kKeys; ++i) {
    names.push_back("batch:" + std::to_string(i));
    contents.push_back(Random(i % 3 == 0 ? 100 : 70000 + i, static_cast<uint32_t>(i)));
  }
  const std::vector<std::string_view> keys(names.begin(), names.end());
  const std::vector<std::string_view> values(contents.begin(), contents.end());
  for (const KeyResult& result : client_->BatchPut(keys, values)) {
    EXPECT_TRUE(result.ok()) << result.message;
  }
  client_->Del(names[7]);
  std::vector<std::string> got;
  const auto results = client_->BatchGet(keys, &got);
  ASSERT_EQ(results.size(), kKeys);
  for (size_t i = 0; i < kKeys; ++i) {
    SCOPED_TRACE(i);
    if (i == 7) {
      EXPECT_EQ(results[i].code, Code::kMiss);
      continue;
    }
    ASSERT_TRUE(results[i].ok()) << results[i].message;
    EXPECT_EQ(results[i].bytes, contents[i].size());
    EXPECT_EQ(results[i].transport, contents[i].size() < 65536 ? Transport::kTcp : Large());
    EXPECT_GT(results[i].elapsed_ns, 0u);
    EXPECT_TRUE(got[i] == contents[i]);
  }
  size_t present = 0;
  ASSERT_TRUE(client_->MatchPrefix(keys, &present).ok());
  EXPECT_EQ(present, 7u);
  const auto exist = client_->BatchIsExist(keys);
  EXPECT_EQ(exist[6].code, Code::kOk);
  EXPECT_EQ(exist[7].code, Code::kMiss);
  for (const KeyResult& result : client_->BatchRemove(keys)) {
    EXPECT_TRUE(result.ok() || result.code == Code::kMiss);
  }
  EXPECT_EQ(server_.tenant().keyspace().Size(), 0u);
}

TEST_P(ClientTest, ScatterAndGather) {
  const std::string value = Random(300000, 1);
  const std::vector<ConstBuffer> from = {
      {value.data(), 1}, {value.data() + 1, 99999}, {value.data() + 100000, 0},
      {value.data() + 100000, 200000}};
  const std::string_view key = "pieces";
  ASSERT_TRUE(client_->BatchPutFromMulti(std::span(&key, 1), std::span(&from, 1))[0].ok());
  std::string got;
  ASSERT_TRUE(client_->Get(key, &got).ok());
  EXPECT_TRUE(got == value);
  std::string a(123456, '\0'), b(7, '\0'), c(200000, 'x');
  const std::vector<Buffer> into = {{a.data(), a.size()}, {b.data(), 0}, {b.data(), b.size()},
                                    {c.data(), c.size()}};
  const auto result = client_->BatchGetIntoMulti(std::span(&key, 1), std::span(&into, 1))[0];
  ASSERT_TRUE(result.ok()) << result.message;
  EXPECT_EQ(result.bytes, value.size());
  EXPECT_TRUE(a + b + c.substr(0, 300000 - 123463) == value);
  EXPECT_EQ(c.find_first_not_of('x', 300000 - 123463), std::string::npos) << "wrote too far";
}

TEST_P(ClientTest, BuffersThatAreTooSmallAreLeftAlone) {
  for (const size_t bytes : {1000, 100000}) {
    ASSERT_TRUE(client_->Set("long", Random(bytes, 3)).ok());
    std::string small(bytes - 1, 'x');
    const std::string_view keys[] = {"long", "long"};
    std::string enough(bytes, 'x');
    const Buffer buffers[] = {{small.data(), small.size()}, {enough.data(), enough.size()}};
    const auto results = client_->BatchGetInto(keys, buffers);
    EXPECT_EQ(results[0].code, Code::kBufferTooSmall);
    EXPECT_EQ(results[0].bytes, bytes);
    EXPECT_EQ(small, std::string(bytes - 1, 'x'));
    EXPECT_TRUE(results[1].ok());
  }
}

TEST_P(ClientTest, ConditionsAndExpiry) {
  for (const size_t bytes : {10, 100000}) {
    SCOPED_TRACE(bytes);
    const std::string value = Random(bytes, 4);
    client_->Del("key");
    EXPECT_EQ(client_->Set("key", value, {.if_present = true}).code, Code::kConditionNotMet);
    EXPECT_TRUE(client_->Set("key", value, {.if_absent = true}).ok());
    EXPECT_EQ(client_->Set("key", "other", {.if_absent = true}).code, Code::kConditionNotMet);
    EXPECT_EQ(client_->Set("key", "x", {.if_absent = true, .if_present = true}).code,
              Code::kInvalidArgument);
    EXPECT_TRUE(client_->Set("key", value, {.ttl_ms = 30}).ok());
    EXPECT_TRUE(Eventually([&] { return client_->Exists("key").code == Code::kMiss; }));
  }
  EXPECT_TRUE(Eventually([&] { return server_.tenant().budget().extent_bytes() == 0; }));
}

TEST_P(ClientTest, AsyncByPollingByFutureAndByCallback) {
  const std::string value = Random(200000, 5);
  std::string into(value.size(), '\0');
  Operation put{.kind = Operation::Kind::kPutFrom, .keys = {"async"}};
  put.from = {{{value.data(), value.size()}}};
  Operation get{.kind = Operation::Kind::kGetInto, .keys = {"async", "nothing"}};
  get.into = {{{into.data(), into.size()}}, {}};

  const uint64_t id = client_->Submit(put);
  pollfd poll_fd{client_->event_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&poll_fd, 1, 60000), 1);
  auto completions = client_->Poll();
  ASSERT_EQ(completions.size(), 1u);
  EXPECT_EQ(completions[0].id, id);
  EXPECT_TRUE(completions[0].results[0].ok()) << completions[0].results[0].message;
  EXPECT_EQ(poll(&poll_fd, 1, 0), 0) << "readable although nothing waits";
  EXPECT_TRUE(client_->Poll().empty());

  const auto results = client_->SubmitFuture(get).get();
  EXPECT_TRUE(results[0].ok());
  EXPECT_EQ(results[1].code, Code::kMiss);
  EXPECT_TRUE(into == value);

  std::atomic<int> called{0};
  Operation exists{.kind = Operation::Kind::kExists, .keys = {"async"}};
  client_->Submit(exists, [&](Completion completion) {
    EXPECT_TRUE(completion.results[0].ok());
    called = 1;
  });
  EXPECT_TRUE(Eventually([&] { return called == 1; }));
  EXPECT_TRUE(
      client_->SubmitFuture({.kind = Operation::Kind::kRemove, .keys = {"async"}}).get()[0].ok());
  EXPECT_EQ(client_->Exists("async").code, Code::kMiss);
}

TEST_P(ClientTest, ManyThreadsOnOneClient) {
  constexpr int kThreads = 12;  // more than there are connections
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 30; ++i) {
        const std::string key = "thread:" + std::to_string(t) + ":" + std::to_string(i % 5);
        const std::string value =
            Random(i % 2 == 0 ? 500 : 80000, static_cast<uint32_t>(t * 1000 + i));
        std::string got;
        if (!client_->Set(key, value).ok() || !client_->Get(key, &got).ok() || got != value) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(ClientTest, ReconnectsToARestartedServer) {
  ASSERT_TRUE(client_->Set("key", Random(100000, 6)).ok());
  View view;
  ASSERT_TRUE(client_->GetView("key", &view).ok());
  const int port = server_.port();
  server_.Stop();
  std::string value;
  EXPECT_EQ(client_->Get("key", &value).code, Code::kUnavailable);
  if (Large() == Transport::kShm) {
    EXPECT_FALSE(view.still_valid());
    EXPECT_EQ(view.bytes()[0], view.bytes()[0]) << "the mapping stays under a view";
  }
  LiveServer again({}, port);
  EXPECT_EQ(client_->Get("key", &value).code, Code::kMiss);
  EXPECT_TRUE(client_->Set("key", Random(100000, 7)).ok());
  ASSERT_TRUE(client_->Get("key", &value).ok());
  EXPECT_TRUE(value == Random(100000, 7));
  EXPECT_GT(client_->stats().reconnects, 0u);
  EXPECT_EQ(client_->transport(), Large());
}

TEST_P(ClientTest, ChildrenConnectAnew) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer cannot follow threads into a forked child; the other "
                  "builds run this test";
#endif
  const std::string value = Random(100000, 8);
  ASSERT_TRUE(client_->Set("key", value).ok());
  const pid_t child = fork();
  if (child == 0) {
    std::string got;
    const bool same = client_->Get("key", &got).ok() && got == value &&
                      client_->Set("child", got).ok();
    client_.reset();
    _exit(same ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  std::string got;
  EXPECT_TRUE(client_->Get("child", &got).ok());
  EXPECT_TRUE(got == value);
}

TEST(ClientGathering, ConcurrentSingleCallsShareBatches) {
  LiveServer server;
  const auto client = server.Connect("gather_us=2000&connections=2");
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string key = "gather:" + std::to_string(t) + ":" + std::to_string(i);
        const std::string value = Random(i % 10 == 0 ? 70000 : 20, static_cast<uint32_t>(i));
        std::string got;
        if (!client->Set(key, value).ok() || !client->Get(key, &got).ok() || got != value ||
            !client->Exists(key).ok()) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(client->stats().gathered_calls, 0u);
  std::string value;
  EXPECT_EQ(client->Get("gather:none", &value).code, Code::kMiss);
}

TEST(ClientTransport, FallsBackToTcpAndCountsIt) {
  LiveServer server({{"shm", "no"}});
  const auto client = server.Connect();
  const std::string value = Random(100000, 9);
  ASSERT_TRUE(client->Set("key", value).ok());
  std::string got;
  ASSERT_TRUE(client->Get("key", &got).ok());
  EXPECT_TRUE(got == value);
  EXPECT_EQ(client->transport(), Transport::kTcp);
  EXPECT_GT(client->stats().fallbacks, 0u);
  EXPECT_EQ(client->stats().attach_failures, 1u);
  std::unique_ptr<Client> strict;
  EXPECT_EQ(Client::Connect(server.Url("transport=shm"), {}, &strict).code, Code::kUnavailable);
}

TEST(ClientTransport, PasswordAndItsErrors) {
  LiveServer server({{"requirepass", "se:cr@t"}});
  std::unique_ptr<Client> client;
  std::string url = server.Url();
  EXPECT_EQ(Client::Connect(url, {}, &client).code, Code::kPermissionDenied);
  Options options;
  options.password = "wrong";
  EXPECT_EQ(Client::Connect(url, options, &client).code, Code::kPermissionDenied);
  url.insert(url.find("127.0.0.1"), ":se%3Acr%40t@");
  ASSERT_TRUE(Client::Connect(url, {}, &client).ok());
  EXPECT_TRUE(client->Set("key", Random(100000, 1)).ok());
  EXPECT_EQ(client->transport(), Transport::kShm);
}

TEST(ClientTransport, NobodyListens) {
  std::unique_ptr<Client> client;
  const std::string url = "moonpool://127.0.0.1:" + std::to_string(FreePort());
  const Status status = Client::Connect(url, {}, &client);
  EXPECT_EQ(status.code, Code::kUnavailable);
  EXPECT_NE(status.message.find("connecting to 127.0.0.1"), std::string::npos) << status.message;
  EXPECT_FALSE(CodeCure(status.code).empty());
}

TEST(ClientViews, BytesStayWhileTheKeyChanges) {
  LiveServer server;
  const auto client = server.Connect();
  const std::string value = Random(1 << 20, 10);
  ASSERT_TRUE(client->Set("key", value).ok());
  View view;
  ASSERT_TRUE(client->GetView("key", &view).ok());
  EXPECT_FALSE(view.is_copy());
  // Overwrite it often enough that every free extent is used again.
  for (char i = 0; i < 50; ++i) ASSERT_TRUE(client->Set("key", std::string(1 << 20, i)).ok());
  client->Del("key");
  EXPECT_TRUE(view.bytes() == value);
  EXPECT_TRUE(view.still_valid());
  EXPECT_EQ(server.tenant().holds(), 1u);
  view = View();
  EXPECT_TRUE(Eventually([&] { return server.tenant().holds() == 0; }));
  EXPECT_TRUE(Eventually([&] { return server.tenant().budget().extent_bytes() == 0; }));
}

TEST(ClientViews, OutliveTheirClient) {
  LiveServer server;
  const std::string value = Random(1 << 20, 11);
  View view;
  {
    const auto client = server.Connect();
    ASSERT_TRUE(client->Set("key", value).ok());
    ASSERT_TRUE(client->GetView("key", &view).ok());
  }
  EXPECT_TRUE(view.bytes() == value);
  EXPECT_TRUE(view.still_valid());
  view = View();
  EXPECT_TRUE(Eventually([&] { return server.tenant().holds() == 0; }));
}

TEST(ClientViews, BecomeCopiesWhenHoldsRunOut) {
  LiveServer server({{"session-max-holds", "2"}});
  const auto client = server.Connect("connections=1");
  const std::string value = Random(1 << 20, 12);
  ASSERT_TRUE(client->Set("key", value).ok());
  View views[4];
  for (View& view : views) {
    ASSERT_TRUE(client->GetView("key", &view).ok());
    EXPECT_TRUE(view.bytes() == value);
  }
  EXPECT_FALSE(views[0].is_copy());
  EXPECT_FALSE(views[1].is_copy());
  EXPECT_TRUE(views[2].is_copy());
  EXPECT_TRUE(views[3].is_copy());
  EXPECT_EQ(client->stats().view_copies, 2u);
}

TEST(ClientBuffers, RegistrationFaultsInAndRefusesOverlaps) {
  LiveServer server;
  const auto client = server.Connect();
  std::vector<char> memory(1 << 20, 'a');
  EXPECT_TRUE(client->RegisterBuffer(memory.data(), memory.size()).ok());
  EXPECT_EQ(memory[12345], 'a');
  EXPECT_EQ(client->RegisterBuffer(memory.data() + 4096, 4096).code, Code::kInvalidArgument);
  EXPECT_TRUE(client->UnregisterBuffer(memory.data()).ok());
  EXPECT_EQ(client->UnregisterBuffer(memory.data()).code, Code::kInvalidArgument);
}

TEST(ClientCommand, SaysWhatRedisCliWouldSay) {
  LiveServer server;
  const auto client = server.Connect();
  std::string reply;
  const std::string_view ping[] = {"ECHO", "hello"};
  ASSERT_TRUE(client->Command(ping, &reply).ok());
  EXPECT_EQ(reply, "hello");
  const std::string_view wrong[] = {"NOSUCH"};
  EXPECT_EQ(client->Command(wrong, &reply).code, Code::kServerError);
}

}  // namespace
}  // namespace moonpool::client
