// The real server: sessions that read its pool over RDMA, and have it move bytes for them.
#include <gmock/gmock.h>

#include "tests/rdma/vm/live_server.h"

namespace moonpool::rdma::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr uint32_t kAccess = kRemoteRead | kRemoteWrite;
constexpr uint64_t kMiB = 1 << 20;

class VmServer : public testing::Test {
 protected:
  explicit VmServer(const std::vector<std::string>& flags = {})
      : nics_(OpenNics()), server_(flags) {}
  std::unique_ptr<NicSet> nics_;
  LiveServer server_;
};

TEST_F(VmServer, AValueIsReadByItsDescriptor) {
  server_.Put("key", 5 * kMiB + 77, 3);
  LiveSession session(*nics_, server_.port());
  ASSERT_TRUE(session.Open());
  const auto want = session.Locate("key");
  ASSERT_TRUE(want);
  ClientBuffer buffer(want->length);
  ASSERT_EQ(session.Read(*want, buffer.data()), Outcome::kDone) << session.client().error();
  EXPECT_EQ(FirstWrong(buffer.data(), want->length, 3), std::nullopt);
  EXPECT_GE(server_.resp().Number("rdma", "rdma_queue_pairs"), 1u);
  EXPECT_EQ(server_.resp().Number("rdma", "rdma_queue_pairs_failed"), 0u);
}

TEST_F(VmServer, WhatWasOverwrittenIsNotReadAsIfItWereNot) {
  server_.Put("key", kMiB, 3);
  LiveSession session(*nics_, server_.port());
  ASSERT_TRUE(session.Open());
  const auto want = session.Locate("key");
  ClientBuffer buffer(want->length);
  ASSERT_EQ(session.Read(*want, buffer.data()), Outcome::kDone) << session.client().error();
  EXPECT_EQ(Text(session.resp().Do({"DEL", "key"}).get()), "1");
  // The lease of the descriptor keeps the extent for a second at most.
  EXPECT_TRUE(Eventually([&] { return session.Read(*want, buffer.data()) == Outcome::kChanged; }));
}

// --- bytes that the server moves -----------------------------------------------------------------

class VmServerMoves : public VmServer {
 protected:
  explicit VmServerMoves(const std::vector<std::string>& flags = {"--maxmemory", "512mb",
                                                                  "--region-size", "112mb"})
      : VmServer(flags),
        session_(*nics_, server_.port()),
        buffer_(100'000'000) {
    EXPECT_TRUE(session_.Open());
    keys_ = Must(Registration::Create(session_.client().domains(), buffer_.data(), buffer_.bytes(),
                                      kLocalWrite | kAccess),
                 "buffer");
    EXPECT_TRUE(session_.client().endpoint().Announce(6, *keys_, kAccess));
  }
  // The only element of the command's reply.
  std::string Do(std::vector<std::string> words) {
    const Reply reply = session_.resp().Do(words);
    if (reply == nullptr || reply->type != REDIS_REPLY_ARRAY || reply->elements != 1) {
      return Text(reply.get());
    }
    return Text(reply->element[0]);
  }
  std::string Write(const std::string& key, uint64_t at, uint64_t bytes,
                    const std::vector<std::string>& options = {}) {
    std::vector<std::string> words{"KV.WRITE", "1", key, "6", std::to_string(at),
                                   std::to_string(bytes)};
    words.insert(words.end(), options.begin(), options.end());
    return Do(words);
  }
  std::string Read(const std::string& key, uint64_t at, uint64_t room) {
    return Do({"KV.READ", "1", key, "6", std::to_string(at), std::to_string(room)});
  }

  LiveSession session_;
  ClientBuffer buffer_;
  std::unique_ptr<Registration> keys_;
};

TEST_F(VmServerMoves, EverySizeThereAndBack) {
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4095}, uint64_t{65535}, uint64_t{65536}, kMiB,
                               uint64_t{3'274'753}, uint64_t{100'000'000}}) {
    SCOPED_TRACE(bytes);
    const uint64_t at = 100'000'000 - bytes;
    FillKnown(buffer_.data() + at, bytes, bytes);
    ASSERT_EQ(Write("key", at, bytes), std::to_string(bytes));
    std::memset(buffer_.data(), 0, buffer_.bytes());
    ASSERT_EQ(Read("key", 0, buffer_.bytes()), std::to_string(bytes));
    ASSERT_EQ(FirstWrong(buffer_.data(), bytes, bytes), std::nullopt);
    const Reply got = session_.resp().Do({"GET", "key"});
    ASSERT_EQ(got->len, bytes);
    EXPECT_EQ(FirstWrong(got->str, bytes, bytes), std::nullopt);
  }
  EXPECT_GT(server_.resp().Number("rdma", "rdma_bytes_read"), 100'000'000u);
  EXPECT_GT(server_.resp().Number("rdma", "rdma_bytes_written"), 100'000'000u);
}

TEST_F(VmServerMoves, BatchesAnswerPerKey) {
  std::vector<std::string> write{"KV.WRITE", "40"};
  std::vector<std::string> read{"KV.READ", "41"};
  for (uint64_t i = 0; i < 40; ++i) {
    FillKnown(buffer_.data() + i * 70'000, 70'000, i);
    for (auto* words : {&write, &read}) {
      words->push_back("key" + std::to_string(i));
      words->push_back(i == 7 ? "99" : "6");  // nobody announced that
      words->push_back(std::to_string(i * 70'000));
      words->push_back("70000");
    }
  }
  const Reply wrote = session_.resp().Do(write);
  ASSERT_EQ(wrote->elements, 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_THAT(Text(wrote->element[i]), i == 7 ? StartsWith("ERR rdma: ") : StartsWith("70000"));
  }
  std::memset(buffer_.data(), 0, 40 * 70'000);
  for (const char* word : {"key1", "6", "3000000", "69999"}) read.emplace_back(word);
  const Reply got = session_.resp().Do(read);
  ASSERT_EQ(got->elements, 41u);
  for (size_t i = 0; i < 40; ++i) {
    if (i == 7) {
      EXPECT_EQ(Text(got->element[i]), "(nil)");
      continue;
    }
    EXPECT_EQ(Text(got->element[i]), "70000");
    EXPECT_EQ(FirstWrong(buffer_.data() + i * 70'000, 70'000, i), std::nullopt);
  }
  EXPECT_EQ(Text(got->element[40]), "ERR the value has 70000 bytes, the buffer 69999");
}

TEST_F(VmServerMoves, ConditionsAndExpiry) {
  EXPECT_EQ(Write("key", 0, 100'000, {"XX"}), "(nil)");
  EXPECT_EQ(Write("key", 0, 100'000, {"NX", "PX", "100000"}), "100000");
  EXPECT_EQ(Write("key", 0, 100'000, {"NX"}), "(nil)");
  EXPECT_NE(Text(session_.resp().Do({"PTTL", "key"}).get()), "-1");
  EXPECT_EQ(Write("key", 0, 10, {"XX"}), "10");
  EXPECT_EQ(Text(session_.resp().Do({"PTTL", "key"}).get()), "-1");
  EXPECT_THAT(Write("key", 0, 0), HasSubstr("out of range"));
  EXPECT_THAT(Write("key", 99'999'999, 4096), StartsWith("ERR rdma: "));
  EXPECT_EQ(Text(session_.resp().Do({"STRLEN", "key"}).get()), "10");
}

TEST_F(VmServerMoves, WithoutQueuePairsTryAgain) {
  FillKnown(buffer_.data(), 100'000, 4);
  ASSERT_EQ(Write("key", 0, 100'000), "100000");
  session_.client().endpoint().Retract(6);
  keys_ = nullptr;
  session_.Close();
  EXPECT_TRUE(Eventually([&] { return server_.resp().Number("rdma", "rdma_queue_pairs") == 0; }));
  EXPECT_EQ(Read("key", 0, 100'000), "TRYAGAIN rdma: no queue pair of this session is open");
  EXPECT_EQ(Write("key", 0, 100'000), "TRYAGAIN rdma: no queue pair of this session is open");
  // The session did not end with its queue pairs: it may have others.
  ASSERT_TRUE(session_.Open());
  const auto want = session_.Locate("key");
  ASSERT_TRUE(want);
  ClientBuffer to(want->length);
  EXPECT_EQ(session_.Read(*want, to.data()), Outcome::kDone);
  EXPECT_EQ(FirstWrong(to.data(), want->length, 4), std::nullopt);
  EXPECT_EQ(server_.resp().Number("rdma", "rdma_queue_pairs_failed"), 0u);
}

TEST_F(VmServerMoves, TheEndOfTheSessionGivesReservationsBackAndHarmsNobody) {
  server_.Put("other", 20 * kMiB, 8);
  const auto used = [&] { return server_.resp().Number("pool", "pool_extent_bytes"); };
  const uint64_t before = used();
  for (int i = 0; i < 3; ++i) {
    LiveSession session(*nics_, server_.port());
    ASSERT_TRUE(session.Open());
    const auto keys = Must(Registration::Create(session.client().domains(), buffer_.data(),
                                                buffer_.bytes(), kLocalWrite | kAccess),
                           "buffer");
    ASSERT_TRUE(session.client().endpoint().Announce(6, *keys, kAccess));
    const std::string id = Text(session.resp().Do({"CLIENT", "ID"}).get());
    session.resp().Send({"KV.WRITE", "1", "gone", "6", "0", "100000000"});
    // While it moves, or before it began.
    if (i > 0) {
      ASSERT_TRUE(Eventually([&] { return used() > before; }));
    }
    EXPECT_EQ(Text(server_.resp().Do({"CLIENT", "KILL", "ID", id}).get()), "1");
    ASSERT_TRUE(Eventually([&] { return used() == before; })) << i;
  }
  EXPECT_EQ(Text(server_.resp().Do({"EXISTS", "gone"}).get()), "0");
  ASSERT_EQ(Read("other", 0, 100'000'000), std::to_string(20 * kMiB));
  EXPECT_EQ(FirstWrong(buffer_.data(), 20 * kMiB, 8), std::nullopt);
}

// --- values that are not in DRAM -----------------------------------------------------------------

class VmServerTiers : public VmServerMoves {
 protected:
  using VmServerMoves::VmServerMoves;
  static constexpr uint64_t kSizes[] = {65'536, kMiB + 1, 3'274'752};

  std::string TierOf(const std::string& key) {
    return Text(Field(server_.resp().Do({"KV.INFO", key}).get(), "tier"));
  }
  void WriteAll(const std::string& prefix) {
    for (const uint64_t bytes : kSizes) {
      FillKnown(buffer_.data(), bytes, bytes);
      ASSERT_EQ(Write(prefix + std::to_string(bytes), 0, bytes), std::to_string(bytes));
    }
  }
  void ReadAll(const std::string& prefix, const std::string& tier) {
    for (const uint64_t bytes : kSizes) {
      const std::string key = prefix + std::to_string(bytes);
      SCOPED_TRACE(key + " in " + tier);
      EXPECT_EQ(TierOf(key), tier);
      std::memset(buffer_.data(), 0, bytes);
      ASSERT_EQ(Read(key, 0, buffer_.bytes()), std::to_string(bytes));
      EXPECT_EQ(FirstWrong(buffer_.data(), bytes, bytes), std::nullopt);
    }
  }
};

class VmServerCxl : public VmServerTiers {
 protected:
  // The guest has one NUMA node: to the server it is another tier all the same.
  VmServerCxl()
      : VmServerTiers({"--maxmemory", "64mb", "--region-size", "32mb", "--cxl-memory", "64mb",
                       "--cxl-node", "0", "--prefer", "far: cxl"}) {}
};

TEST_F(VmServerCxl, ValuesAreWrittenAndReadThere) {
  WriteAll("far:");
  WriteAll("near:");
  ReadAll("far:", "cxl");
  ReadAll("near:", "dram");
}

class VmServerSsd : public VmServerTiers {
 protected:
  VmServerSsd()
      : VmServerTiers({"--maxmemory", "128mb", "--region-size", "16mb", "--ssd-directory", Fresh(),
                       "--ssd-chunk", "64kb", "--dram-high-watermark", "0.3", "--dram-evict-ratio",
                       "0.2", "--dram-cold-share", "0", "--maxmemory-policy", "allkeys-lru",
                       "--memory-wait", "20000"}) {}
  static std::string Fresh() {
    std::filesystem::remove_all("ssd-of-a-server");
    return "ssd-of-a-server";
  }
};

TEST_F(VmServerSsd, ValuesComeUpAndAreRead) {
  WriteAll("key:");
  const std::string filler(kMiB, 'f');
  int fillers = 0;
  ASSERT_TRUE(Eventually([&] {
    const bool down = std::all_of(std::begin(kSizes), std::end(kSizes), [&](uint64_t bytes) {
      return TierOf("key:" + std::to_string(bytes)) == "ssd";
    });
    if (!down) server_.resp().Do({"SET", "filler:" + std::to_string(fillers++ % 64), filler});
    return down;
  }));
  ReadAll("key:", "ssd");
}

// --- who may ---------------------------------------------------------------------------------------

TEST_F(VmServer, ATokenOpensOneQueuePairOfItsOwnSession) {
  LiveSession mine(*nics_, server_.port());
  LiveSession other(*nics_, server_.port());
  const auto open = [&](const EndpointTarget& target, const Token& token) {
    EndpointTarget one = target;
    one.nics.resize(1);
    LiveClient client(*nics_, one, [&]() -> Result<Token> { return token; });
    return client.endpoint().Open();
  };
  const Token stolen = *mine.NewToken();
  EXPECT_THAT(open(other.target(), stolen).error().message, HasSubstr("session"));
  EXPECT_FALSE(open(mine.target(), stolen)) << "it is used up";
  const Token token = *mine.NewToken();
  EXPECT_TRUE(open(mine.target(), token));
  EXPECT_FALSE(open(mine.target(), token)) << "it was used";
  EXPECT_FALSE(open(mine.target(), Token{})) << "nobody issued it";
  const Token late = *mine.NewToken();
  const EndpointTarget before = mine.target();
  mine.Hello();  // a new session
  EXPECT_FALSE(open(before, late)) << "its session has ended";
  EXPECT_FALSE(open(mine.target(), late));
  EXPECT_GE(server_.resp().Number("rdma", "rdma_queue_pairs_rejected"), 6u);
}

TEST_F(VmServer, WhateverEndsASessionFencesItsQueuePairs) {
  server_.Put("key", kMiB, 3);
  ClientBuffer buffer(kMiB);
  const std::vector<std::function<void(LiveSession&)>> ends = {
      [](LiveSession& s) { s.HangUp(); },
      [](LiveSession& s) { s.resp().Do({"RESET"}); },
      [](LiveSession& s) { s.resp().Do({"KV.HELLO", "1"}); },
      [this](LiveSession& s) {
        server_.resp().Do({"CLIENT", "KILL", "ID", Text(s.resp().Do({"CLIENT", "ID"}).get())});
      },
  };
  for (size_t i = 0; i < ends.size(); ++i) {
    SCOPED_TRACE(i);
    LiveSession session(*nics_, server_.port());
    ASSERT_TRUE(session.Open());
    const auto want = session.Locate("key");
    ASSERT_EQ(session.Read(*want, buffer.data()), Outcome::kDone) << session.client().error();
    ends[i](session);
    EXPECT_TRUE(Eventually([&] { return server_.resp().Number("rdma", "rdma_queue_pairs") == 0; }));
    EXPECT_EQ(session.Read(*want, buffer.data()), Outcome::kUnreachable);
  }
}

TEST_F(VmServer, ItStopsAndDiesUnderReaders) {
  server_.Put("key", 20 * kMiB, 3);
  LiveSession session(*nics_, server_.port());
  ASSERT_TRUE(session.Open());
  const auto want = session.Locate("key");
  ClientBuffer buffer(want->length);
  ASSERT_EQ(session.Read(*want, buffer.data()), Outcome::kDone) << session.client().error();
  EXPECT_EQ(server_.Stop(), 0);
  EXPECT_EQ(session.Read(*want, buffer.data()), Outcome::kUnreachable);
}

// --- regions that come and go ----------------------------------------------------------------------

class VmSmallServer : public VmServer {
 protected:
  VmSmallServer() : VmServer({"--maxmemory", "40mb", "--region-size", "4mb"}) {}
};

TEST_F(VmSmallServer, ThePoolShrinksAndGrowsUnderReaders) {
  constexpr uint64_t kKeys = 60;  // more than fit
  constexpr uint64_t kBytes = kMiB;
  LiveSession session(*nics_, server_.port());
  ASSERT_TRUE(session.Open());
  ClientBuffer buffer(kBytes);
  uint64_t read = 0;
  std::string data(kBytes, 0);
  for (int round = 0; round < 3; ++round) {
    server_.resp().Do({"CONFIG", "SET", "maxmemory", round % 2 == 0 ? "40mb" : "16mb"});
    for (uint64_t i = 0; i < kKeys; ++i) {
      const uint64_t value = static_cast<uint64_t>(round) * kKeys + i;
      FillKnown(data.data(), kBytes, value);
      const std::string key = std::to_string(value);
      if (Text(server_.resp().Do({"SET", key, data}).get()) != "OK") continue;
      const auto want = session.Locate(key);
      if (!want) continue;
      // A region that came just now may not be registered yet.
      if (session.Read(*want, buffer.data()) != Outcome::kDone) {
        session.client().endpoint().Repair();
        continue;
      }
      ASSERT_EQ(FirstWrong(buffer.data(), kBytes, value), std::nullopt);
      ++read;
    }
  }
  EXPECT_GT(read, kKeys);
  server_.resp().Do({"FLUSHALL"});
  server_.resp().Do({"CONFIG", "SET", "maxmemory", "16mb"});
  // What has gone is not registered any more.
  EXPECT_TRUE(Eventually([&] {
    session.client().endpoint().Pump();
    return server_.resp().Number("rdma", "rdma_registered_bytes") ==
               server_.resp().Number("pool", "pool_region_bytes") &&
           server_.resp().Number("pool", "pool_draining_regions") == 0;
  }));
}

}  // namespace
}  // namespace moonpool::rdma::test
