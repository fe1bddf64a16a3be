// A session from the first queue pair to the last, and everything that can happen between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <thread>

#include "rdma/endpoint_cache.h"
#include "tests/rdma/session_rig.h"

namespace moonpool::rdma {
namespace {

using test::FakeTenant;
using test::kPatienceMs;
using test::Patient;
using test::SessionRig;
using testing::HasSubstr;

constexpr uint32_t kRegion = 4;

size_t OpenLanes(const Endpoint& endpoint) {
  size_t open = 0;
  for (const LaneInfo& lane : endpoint.lanes()) open += lane.open ? 1 : 0;
  return open;
}

// Until both lanes are there: Open() is content with one.
void RepairAll(Endpoint& endpoint, size_t lanes) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (OpenLanes(endpoint) < lanes && std::chrono::steady_clock::now() < end) {
    endpoint.Repair();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    endpoint.Pump();
  }
  ASSERT_EQ(OpenLanes(endpoint), lanes);
}

class SessionTest : public testing::Test {
 protected:
  explicit SessionTest(ServiceOptions options = {}, Protocol protocol = Protocol::kRoceV2)
      : rig_(2, std::move(options), protocol), tenant_(*rig_.server_nics) {
    tenant_.Show(kRegion);
  }
  // All its lanes, on both sides: the server counts one after the client may use it.
  void OpenAll(Endpoint& endpoint) {
    ASSERT_TRUE(endpoint.Open());
    RepairAll(endpoint, 2);
    ASSERT_TRUE(rig_.WaitFor([&] { return rig_.service->counters().lanes == 2; }));
  }
  // In the server's memory, for the client's session 1.
  Outcome Move(BufferTransfer what) {
    what.session = 1;
    what.region = kRegion;
    std::optional<Outcome> outcome;
    rig_.service->Move({what}, [&](auto outcomes, const std::string& why) {
      std::lock_guard lock(rig_.mu);
      outcome = outcomes[0];
      rig_.error = why;
      rig_.changed.notify_all();
    });
    EXPECT_TRUE(rig_.WaitFor([&] { return outcome.has_value(); }));
    return outcome.value_or(Outcome::kPending);
  }

  SessionRig rig_;
  FakeTenant tenant_;
  std::vector<char> to_;
};

TEST_F(SessionTest, ReadsThroughWhatItWasTold) {
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  for (const uint64_t bytes : {1u, 4096u, 3'000'000u}) {
    EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, bytes, 9, &to_), Outcome::kDone) << rig_.error;
  }
  EXPECT_LE(rig_.service->counters().regions_told, 2u) << "one answer per lane";
}

TEST_F(SessionTest, WhatTheTenantDoesNotHaveIsNotThere) {
  FakeTenant other(*rig_.server_nics);
  other.Show(5);
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  EXPECT_EQ(rig_.Read(*client, tenant_, 5, 4096, 1, &to_), Outcome::kNotThere);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kDone);
}

TEST_F(SessionTest, TheEndOfASessionFencesItsQueuePairs) {
  auto client = rig_.Client(1, tenant_);
  OpenAll(*client);
  const uint64_t pairs = rig_.fabric.counters().queue_pairs;
  bool fenced = false;
  uint64_t left = 0;
  rig_.service->EndSession(1, [&] {
    std::lock_guard lock(rig_.mu);
    left = rig_.fabric.counters().queue_pairs;
    fenced = true;
    rig_.changed.notify_all();
  });
  ASSERT_TRUE(rig_.WaitFor([&] { return fenced; }));
  EXPECT_EQ(left, pairs - 2);
  EXPECT_EQ(rig_.service->counters().lanes, 0u);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kUnreachable);
  client->Repair();
  EXPECT_FALSE(client->has_lane());
}

TEST_F(SessionTest, AClientThatClosesIsNoticed) {
  auto client = rig_.Client(1, tenant_);
  OpenAll(*client);
  client = nullptr;
  EXPECT_TRUE(rig_.WaitClosed(1));
  EXPECT_EQ(rig_.service->counters().lanes, 0u);
}

TEST_F(SessionTest, AClientThatClosesDidNotFailHoweverItIsSeen) {
  using Closing = test::FakeFabric::Closing;
  uint64_t session = 0;
  for (const Closing closing : {Closing::kBoth, Closing::kFlushAlone, Closing::kEventAlone}) {
    auto client = rig_.Client(++session, tenant_);
    OpenAll(*client);
    rig_.fabric.SetClosing(closing);
    client = nullptr;
    EXPECT_TRUE(rig_.WaitClosed(session));
    rig_.fabric.SetClosing(Closing::kBoth);
  }
  EXPECT_EQ(rig_.service->counters().lanes_failed, 0u);
  // The sessions are not over.
  auto again = rig_.Client(1, tenant_);
  EXPECT_TRUE(again->Open());
  EXPECT_EQ(rig_.Read(*again, tenant_, kRegion, 4096, 9, &to_), Outcome::kDone) << rig_.error;
}

TEST_F(SessionTest, AServiceThatStopsIsNoticed) {
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  rig_.service->Stop();
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kUnreachable);
  EXPECT_EQ(OpenLanes(*client), 0u);
}

TEST_F(SessionTest, AServiceThatHasStoppedKeepsNobodyWaiting) {
  rig_.service->Stop();
  rig_.service->Withdraw(tenant_.memory, kRegion);
  bool ended = false;
  rig_.service->EndSession(1, [&] { ended = true; });
  EXPECT_TRUE(ended);
  std::optional<Outcome> outcome;
  rig_.service->Move({{1, 2, 0, kRegion, tenant_.region.data(), 10, Transfer::Direction::kRead}},
                     [&](auto outcomes, const std::string&) { outcome = outcomes[0]; });
  EXPECT_EQ(outcome, Outcome::kUnreachable);
}

// --- NICs that fail ------------------------------------------------------------------------

TEST_F(SessionTest, APortThatGoesDownCostsItsLane) {
  EndpointOptions options = Patient();
  options.first_pause_ms = 100'000;  // only its coming back can bring it back
  options.most_pause_ms = 100'000;
  auto client = rig_.Client(1, tenant_, options);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  rig_.fabric.SetPort("c0", false);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  client->Pump();
  EXPECT_EQ(OpenLanes(*client), 1u);
  client->Repair();
  EXPECT_EQ(OpenLanes(*client), 1u);
  rig_.fabric.SetPort("c0", true);
  RepairAll(*client, 2);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
}

TEST_F(SessionTest, ANicThatIsSilentCostsTheStallAndNoMore) {
  EndpointOptions options = Patient();  // it would wait for ever if the other lane did not count
  options.engine.stall_ms = 2000;       // and that one is not to be taken for silent
  auto client = rig_.Client(1, tenant_, options);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  rig_.fabric.SetSilent("s1", true);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, std::chrono::milliseconds(options.engine.stall_ms));
  EXPECT_LT(took, std::chrono::milliseconds(kPatienceMs / 2));
  EXPECT_EQ(OpenLanes(*client), 1u);
  EXPECT_THAT(client->lanes()[1].why, HasSubstr("nothing arrived for"));
}

// Its queue pair is destroyed then, as one that is not flushed could still write.
TEST_F(SessionTest, ANicThatIsSilentAndDoesNotFlush) {
  EndpointOptions options = Patient();
  options.first_pause_ms = options.most_pause_ms = 100'000;
  auto client = rig_.Client(1, tenant_, options);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  ASSERT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  rig_.fabric.SetNeverFlushes("c1", true);
  rig_.fabric.SetSilent("s1", true);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  client->Pump();
  EXPECT_EQ(OpenLanes(*client), 1u);
}

TEST_F(SessionTest, AllNicsSilentEndsAtTheDeadline) {
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  ASSERT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kDone);
  rig_.fabric.SetSilent("s0", true);
  rig_.fabric.SetSilent("s1", true);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_, 100), Outcome::kUnreachable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(kPatienceMs / 2));
  EXPECT_EQ(rig_.error, "the deadline passed");
  // The queue pairs are fenced: what was under way touches nothing any more.
  to_.assign(to_.size(), 0x33);
  rig_.fabric.SetSilent("s0", false);
  rig_.fabric.SetSilent("s1", false);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (const char c : to_) ASSERT_EQ(c, 0x33);
}

TEST_F(SessionTest, WhoIsNotThereIsTriedLessAndLessOften) {
  EndpointOptions options = Patient();
  options.first_pause_ms = 20;
  auto client = rig_.Client(1, tenant_, options);
  ASSERT_TRUE(client->Open());
  rig_.service->EndSession(1);
  while (client->has_lane()) client->Pump();
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
  };
  rig_.tokens_asked = 0;
  while (passed() < 600 || (rig_.tokens_asked < 6 && passed() < kPatienceMs)) {
    client->Repair();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // After 20, 40, 80, 160, 320 ms: five times or six, of two lanes.
  EXPECT_GE(rig_.tokens_asked, 6);
  EXPECT_LE(rig_.tokens_asked, 2 * (2 + std::log2(1 + passed() / 20)));
}

// --- regions that go -----------------------------------------------------------------------

// The server waits for its clients as long as they like.
class WaitingSessionTest : public SessionTest {
 protected:
  static ServiceOptions Waiting() {
    ServiceOptions options;
    options.withdraw_ms = kPatienceMs;
    return options;
  }
  WaitingSessionTest() : SessionTest(Waiting()) {}
};

TEST_F(WaitingSessionTest, ARegionGoesWhenItsReadersSaySo) {
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  ASSERT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  std::atomic<bool> gone{false};
  std::thread withdraws([&] {
    rig_.service->Withdraw(tenant_.memory, kRegion);
    gone = true;
  });
  const auto start = std::chrono::steady_clock::now();
  while (!gone) {
    client->Pump();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  withdraws.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(kPatienceMs / 2));
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kNotThere);
  EXPECT_TRUE(client->has_lane());
  for (const LaneInfo& lane : client->lanes()) EXPECT_EQ(lane.why, "") << "no READ was refused";
}

class HastySessionTest : public SessionTest {
 protected:
  static ServiceOptions Hasty() {
    ServiceOptions options;
    options.withdraw_ms = 50;
    return options;
  }
  HastySessionTest() : SessionTest(Hasty()) {}
};

TEST_F(HastySessionTest, OrWithoutThemAndTheirReadsAreRefused) {
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  ASSERT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  const uint64_t registrations = rig_.fabric.counters().registrations;
  const auto start = std::chrono::steady_clock::now();
  rig_.service->Withdraw(tenant_.memory, kRegion);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
  EXPECT_EQ(rig_.fabric.counters().registrations, registrations - 2);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kNotThere);
}

TEST_F(SessionTest, ARefusedLaneIsBackAtOnce) {
  EndpointOptions options = Patient();
  options.first_pause_ms = 100'000;
  auto client = rig_.Client(1, tenant_, options);
  ASSERT_TRUE(client->Open());
  RepairAll(*client, 2);
  ASSERT_EQ(rig_.Read(*client, tenant_, kRegion, 3'000'000, 1, &to_), Outcome::kDone);
  tenant_.memory->Remove(kRegion);  // without a word
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, 4096, 1, &to_), Outcome::kNotThere);
  client->Pump();
  EXPECT_EQ(OpenLanes(*client), 1u);
  tenant_.Show(kRegion + 1);
  RepairAll(*client, 2);
  EXPECT_EQ(rig_.Read(*client, tenant_, kRegion + 1, 3'000'000, 1, &to_), Outcome::kDone);
}

// --- iWARP ---------------------------------------------------------------------------------

class IwarpSessionTest : public SessionTest {
 protected:
  IwarpSessionTest() : SessionTest({}, Protocol::kIwarp) {}
};

TEST_F(IwarpSessionTest, EveryAddressIsListenedAt) {
  auto client = rig_.Client(1, tenant_);
  OpenAll(*client);
  for (const uint64_t bytes : {1u, 4096u, 3'000'000u}) {
    EXPECT_EQ(rig_.Read(*client, tenant_, kRegion, bytes, 9, &to_), Outcome::kDone) << rig_.error;
  }
  EXPECT_EQ(client->counters().fenced_reads, 0u) << "a READ cannot be fenced";
  EXPECT_EQ(rig_.service->counters().lanes, 2u);
}

TEST_F(IwarpSessionTest, APortIsTakenThatAllAddressesHave) {
  const uint16_t next = rig_.service->port() + 1;
  rig_.fabric.TakePort("10.0.1.2", next);
  const auto second = Service::Start(*rig_.server_nics, {});
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ((*second)->port(), next + 1);
  ServiceOptions options;
  options.port = next;
  EXPECT_FALSE(Service::Start(*rig_.server_nics, options));
  options.address = "10.0.0.2";
  EXPECT_TRUE(Service::Start(*rig_.server_nics, options));
}

TEST_F(IwarpSessionTest, WhatTheServerReadsTakesACopy) {
  // As the pool is: no remote write access, and so nowhere for a READ to land.
  std::vector<char> buffer(300'000);
  const auto keys = *Registration::Create(*rig_.domains, buffer.data(), buffer.size(),
                                          kLocalWrite | kRemoteRead | kRemoteWrite);
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  ASSERT_TRUE(client->Announce(2, *keys, kRemoteRead | kRemoteWrite));
  test::FillKnown(buffer.data(), buffer.size(), 8);
  for (const auto direction : {Transfer::Direction::kRead, Transfer::Direction::kWrite}) {
    EXPECT_EQ(Move({0, 2, 0, 0, tenant_.region.data(), buffer.size(), direction}), Outcome::kDone);
    EXPECT_EQ(test::FirstWrong(tenant_.region.data(), buffer.size(), 8), std::nullopt);
    EXPECT_EQ(test::FirstWrong(buffer.data(), buffer.size(), 8), std::nullopt);
    std::fill(buffer.begin(), buffer.end(), 0);
  }
}

TEST_F(IwarpSessionTest, WhatTheServerWritesHasArrivedWhenItSaysSo) {
  // A WRITE that the client's device refuses completes at the server all the same.
  std::vector<char> buffer(8192, 0x44);
  const auto keys = *Registration::Create(*rig_.domains, buffer.data(), buffer.size(),
                                          kLocalWrite | kRemoteRead);
  auto client = rig_.Client(1, tenant_);
  ASSERT_TRUE(client->Open());
  ASSERT_TRUE(client->Announce(2, *keys, kRemoteRead));
  EXPECT_EQ(Move({0, 2, 0, 0, tenant_.region.data(), 4096, Transfer::Direction::kWrite}),
            Outcome::kUnreachable);
  EXPECT_EQ(buffer[0], 0x44);
}

// --- bytes the server moves ----------------------------------------------------------------

class ServerMoves : public SessionTest {
 protected:
  ServerMoves() : buffer_(1 << 20) {
    client_ = rig_.Client(1, tenant_);
    EXPECT_TRUE(client_->Open());
    keys_ = *Registration::Create(*rig_.domains, buffer_.data(), buffer_.size(),
                                  kLocalWrite | kRemoteRead | kRemoteWrite);
  }
  std::vector<char> buffer_;
  std::unique_ptr<Endpoint> client_;
  std::unique_ptr<Registration> keys_;
};

TEST_F(ServerMoves, BothWays) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  test::FillKnown(buffer_.data(), 700'000, 8);
  EXPECT_EQ(Move({0, 2, 0, 0, tenant_.region.data() + 4096, 700'000, Transfer::Direction::kRead}),
            Outcome::kDone);
  EXPECT_EQ(test::FirstWrong(tenant_.region.data() + 4096, 700'000, 8), std::nullopt);
  std::fill(buffer_.begin(), buffer_.end(), 0);
  EXPECT_EQ(
      Move({0, 2, 100, 0, tenant_.region.data() + 4096, 700'000, Transfer::Direction::kWrite}),
      Outcome::kDone);
  EXPECT_EQ(test::FirstWrong(buffer_.data() + 100, 700'000, 8), std::nullopt);
  EXPECT_EQ(rig_.service->counters().bytes_read, 700'000u);
  EXPECT_EQ(rig_.service->counters().bytes_written, 700'000u);
}

TEST_F(ServerMoves, ABatchEndsForEachOnItsOwn) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  test::FillKnown(buffer_.data(), 400'000, 8);
  std::vector<BufferTransfer> batch;
  for (uint32_t i = 0; i < 8; ++i) {
    // The fourth is of a buffer that nobody knows.
    batch.push_back({1, i == 3 ? 99 : 2u, i * 50'000, kRegion, tenant_.region.data() + i * 50'000,
                     50'000, Transfer::Direction::kRead});
  }
  std::vector<Outcome> outcomes;
  rig_.service->Move(batch, [&](auto found, const std::string& why) {
    std::lock_guard lock(rig_.mu);
    outcomes.assign(found.begin(), found.end());
    rig_.error = why;
    rig_.changed.notify_all();
  });
  ASSERT_TRUE(rig_.WaitFor([&] { return outcomes.size() == 8; }));
  for (uint32_t i = 0; i < 8; ++i) {
    EXPECT_EQ(outcomes[i], i == 3 ? Outcome::kNotThere : Outcome::kDone) << i;
  }
  EXPECT_THAT(rig_.error, HasSubstr("the buffer"));
  EXPECT_EQ(rig_.service->counters().bytes_read, 350'000u);
  EXPECT_EQ(test::FirstWrong(tenant_.region.data(), 150'000, 8), std::nullopt);
}

TEST_F(ServerMoves, MemoryThatIsNotRegisteredTakesACopy) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  std::vector<char> heap(300'000);
  const auto move = [&](Transfer::Direction direction) {
    std::optional<Outcome> outcome;
    rig_.service->Move({{1, 2, 100, 0, heap.data(), heap.size(), direction}},
                       [&](auto found, const std::string&) {
                         std::lock_guard lock(rig_.mu);
                         outcome = found[0];
                         rig_.changed.notify_all();
                       });
    EXPECT_TRUE(rig_.WaitFor([&] { return outcome.has_value(); }));
    return outcome;
  };
  test::FillKnown(heap.data(), heap.size(), 5);
  EXPECT_EQ(move(Transfer::Direction::kWrite), Outcome::kDone);
  EXPECT_EQ(test::FirstWrong(buffer_.data() + 100, heap.size(), 5), std::nullopt);
  std::fill(heap.begin(), heap.end(), 0);
  EXPECT_EQ(move(Transfer::Direction::kRead), Outcome::kDone);
  EXPECT_EQ(test::FirstWrong(heap.data(), heap.size(), 5), std::nullopt);
}

TEST_F(ServerMoves, NotWithABufferThatIsNotKnown) {
  EXPECT_EQ(Move({0, 2, 0, 0, tenant_.region.data(), 4096, Transfer::Direction::kRead}),
            Outcome::kNotThere);
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  client_->Retract(2);
  EXPECT_EQ(Move({0, 2, 0, 0, tenant_.region.data(), 4096, Transfer::Direction::kRead}),
            Outcome::kNotThere);
  EXPECT_TRUE(client_->has_lane());
}

TEST_F(ServerMoves, NotBeyondTheBuffer) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  EXPECT_EQ(
      Move({0, 2, (1 << 20) - 100, 0, tenant_.region.data(), 4096, Transfer::Direction::kRead}),
      Outcome::kNotThere);
}

TEST_F(ServerMoves, TheEndOfTheSessionEndsThem) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  rig_.fabric.SetSilent("c0", true);
  rig_.fabric.SetSilent("c1", true);
  std::optional<Outcome> outcome;
  rig_.service->Move({{1, 2, 0, kRegion, tenant_.region.data(), 4096, Transfer::Direction::kRead}},
                     [&](auto outcomes, const std::string&) {
                       std::lock_guard lock(rig_.mu);
                       outcome = outcomes[0];
                       rig_.changed.notify_all();
                     });
  rig_.service->EndSession(1);
  ASSERT_TRUE(rig_.WaitFor([&] { return outcome.has_value(); }));
  EXPECT_EQ(*outcome, Outcome::kUnreachable);
  rig_.fabric.SetSilent("c0", false);
  rig_.fabric.SetSilent("c1", false);
}

TEST_F(ServerMoves, NewLanesKnowTheBuffer) {
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  RepairAll(*client_, 2);
  rig_.fabric.BreakQueuePairs("c0");
  rig_.fabric.BreakQueuePairs("c1");
  client_->Pump();
  RepairAll(*client_, 2);
  ASSERT_TRUE(client_->Announce(2, *keys_, kRemoteRead | kRemoteWrite));
  test::FillKnown(buffer_.data(), 100'000, 8);
  ASSERT_EQ(Move({0, 2, 0, 0, tenant_.region.data(), 100'000, Transfer::Direction::kRead}),
            Outcome::kDone)
      << rig_.error;
  EXPECT_EQ(test::FirstWrong(tenant_.region.data(), 100'000, 8), std::nullopt);
}

// --- the bound on endpoints ----------------------------------------------------------------

class EndpointCacheTest : public SessionTest {
 protected:
  EndpointCache::Make Maker(uint64_t session) {
    return [this, session]() -> Result<std::unique_ptr<Endpoint>> {
      ++made_;
      auto endpoint = rig_.Client(session, tenant_);
      if (Status status = endpoint->Open(); !status) {
        return tl::unexpected<Error>(std::move(status.error()));
      }
      return endpoint;
    };
  }
  int made_ = 0;
  EndpointCache cache_{2};
};

TEST_F(EndpointCacheTest, TheLongestIdleGoes) {
  { const auto one = cache_.Get(1, Maker(1)); }
  { const auto two = cache_.Get(2, Maker(2)); }
  { const auto one = cache_.Get(1, Maker(1)); }
  EXPECT_EQ(made_, 2);
  { const auto three = cache_.Get(3, Maker(3)); }
  EXPECT_TRUE(rig_.WaitClosed(2));
  EXPECT_EQ(cache_.size(), 2u);
  EXPECT_EQ(cache_.closed_for_room(), 1u);
  { const auto one = cache_.Get(1, Maker(1)); }
  EXPECT_EQ(made_, 3);
}

TEST_F(EndpointCacheTest, ThoseInUseStay) {
  auto one = cache_.Get(1, Maker(1));
  auto two = cache_.Get(2, Maker(2));
  const auto none = cache_.Get(3, Maker(3));
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::kBusy);
  const auto again = cache_.Get(1, Maker(1));
  EXPECT_TRUE(again);
  two->Release();
  const auto three = cache_.Get(3, Maker(3));
  EXPECT_TRUE(three) << three.error().message;
  EXPECT_TRUE((*one)->has_lane());
}

TEST_F(EndpointCacheTest, ADroppedOneGoesWithItsLastUser) {
  auto one = cache_.Get(1, Maker(1));
  cache_.Drop(1);
  EXPECT_TRUE((*one)->has_lane());
  EXPECT_FALSE(cache_.Get(1, Maker(1)));
  one->Release();
  EXPECT_TRUE(rig_.WaitClosed(1));
  EXPECT_EQ(cache_.size(), 0u);
}

TEST_F(EndpointCacheTest, WhatCannotBeMadeTakesNoRoom) {
  const auto fails = []() -> Result<std::unique_ptr<Endpoint>> {
    return Fail(ErrorCode::kUnavailable, "no");
  };
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(cache_.Get(9, fails));
  EXPECT_TRUE(cache_.Get(1, Maker(1)));
  EXPECT_TRUE(cache_.Get(2, Maker(2)));
}

}  // namespace
}  // namespace moonpool::rdma
