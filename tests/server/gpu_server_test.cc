// The server's GPU tier, over the double and over a GPU: what sessions are given, and that everybody
// else reads the same values.
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/server/gpu_rig.h"

namespace moonpool::client {
namespace {

TEST_P(GpuServerTest, WhatIsWrittenThereIsPulledFromThereAndServedToAll) {
  NEED_DEVICES(1);
  Start();
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const std::string bytes = Stamped(7);
  EXPECT_EQ(session.Put("key", bytes), Uuid());
  EXPECT_EQ(session.message().tier, protocol::Tier::kGpu);
  EXPECT_EQ(session.message().handle, protocol::DeviceHandleKind::kPosixFd);
  EXPECT_EQ(session.message().writable, 1u);
  const auto located = session.Locate("key");
  EXPECT_EQ(located.tier, "gpu");
  EXPECT_EQ(located.length, kLength);
  EXPECT_EQ(session.Generation(located.slot), located.generation);
  EXPECT_TRUE(session.Pull(located) == bytes);
  EXPECT_EQ(session.Run({"KV.MATCH", "1", "key", "WITHTIERS"}), "1\n1\n0\n0");

  // Over RESP, by a connection without a session.
  auto client = server_->Connect("transport=tcp");
  std::string value;
  ASSERT_TRUE(client->Get("key", &value).ok());
  EXPECT_TRUE(value == bytes);
  // And through shared memory.
  auto shm = server_->Connect("transport=shm");
  ASSERT_TRUE(shm->Get("key", &value).ok());
  EXPECT_TRUE(value == bytes);
  EXPECT_EQ(TierOf(session, "key"), "gpu");
  EXPECT_GE(std::stoi(Info(session, "tier_gpu_fetches")), 2);
  EXPECT_EQ(Info(session, "tier_gpu_keys"), "1");
  EXPECT_EQ(Info(session, "gpu", "gpu"), "on");
  EXPECT_NE(Info(session, "gpu_device0", "gpu").find(Uuid()), std::string::npos);

  // Deleted: the generation tells.
  EXPECT_EQ(session.Run({"DEL", "key"}), "1");
  EXPECT_TRUE(Eventually([&] {
    session.Run({"KV.RELEASE", "1", "1"});
    return session.Generation(located.slot) != located.generation;
  }));
}

TEST_P(GpuServerTest, OnlyWhoAsksForItIsOfferedIt) {
  NEED_DEVICES(2);
  Start();
  EXPECT_EQ(RawSession(*server_).hello().find("cuda"), std::string::npos);
  EXPECT_EQ(RawSession(*server_, {"TRANSPORTS", "1", "shm"}).hello().find("cuda"),
            std::string::npos);
  const std::string offered = RawSession(*server_, {"TRANSPORTS", "2", "shm", "cuda"}).hello();
  EXPECT_NE(offered.find("\ncuda\n"), std::string::npos) << offered;
  EXPECT_NE(offered.find(Uuid(0)), std::string::npos);
  EXPECT_NE(offered.find(Uuid(1)), std::string::npos);
  const std::string second = Uuid(1);
  const std::string one =
      RawSession(*server_, {"TRANSPORTS", "1", "cuda", "DEVICES", "1", second}).hello();
  EXPECT_NE(one.find("devices\n" + second), std::string::npos) << one;
  EXPECT_EQ(one.find("\nshm\n"), std::string::npos) << one;
  const std::string none =
      RawSession(*server_, {"TRANSPORTS", "2", "shm", "cuda", "DEVICES", "1",
                            "GPU-11111111-1111-1111-1111-111111111111"})
          .hello();
  EXPECT_EQ(none.find("\ncuda\n"), std::string::npos) << none;
}

TEST_P(GpuServerTest, WhoDidNotAskGetsNoRegionAndACopyInstead) {
  NEED_DEVICES(1);
  Start();
  GpuSession writer(*server_, kind());
  ASSERT_TRUE(writer.Attach());
  writer.Put("key", Stamped(7));
  const auto there = writer.Locate("key");
  GpuSession reader(*server_, kind(), {"TRANSPORTS", "1", "shm"});
  ASSERT_TRUE(reader.Attach());
  EXPECT_EQ(reader.Import(there.region), nullptr);
  EXPECT_FALSE(reader.Want(there.region).fd);
  const auto here = reader.Locate("key");
  EXPECT_EQ(here.tier, "dram");
  EXPECT_NE(here.region, there.region);
  const auto region = reader.Want(here.region);
  ASSERT_TRUE(region.fd);
  std::string bytes(kLength, '\0');
  ASSERT_EQ(pread(region.fd.get(), bytes.data(), kLength, static_cast<off_t>(here.offset)),
            static_cast<ssize_t>(kLength));
  EXPECT_TRUE(bytes == Stamped(7));
  EXPECT_EQ(reader.Generation(here.slot), here.generation) << "the lease keeps the copy";
  // What it would write there goes to DRAM, and moves on.
  const auto allocation = reader.Alloc("mine", kLength, "gpu");
  const auto arena = reader.Want(allocation.region);
  ASSERT_TRUE(arena.fd);
  ASSERT_TRUE(arena.writable);
  EXPECT_EQ(arena.message.tier, protocol::Tier::kDram);
  char* const data = static_cast<char*>(
      mmap(nullptr, arena.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd.get(), 0));
  FillStamped(data + allocation.offset, kLength, {8, 1});
  ASSERT_TRUE(reader.Mapped(allocation.region));
  EXPECT_EQ(reader.Run({"KV.COMMIT", "1", "mine", allocation.token, "-"}), "OK");
  munmap(data, arena.bytes);
  EXPECT_TRUE(Eventually([&] { return TierOf(reader, "mine") == "gpu"; }));
  EXPECT_TRUE(reader.Run({"GET", "mine"}) == Stamped(8));
}

TEST_P(GpuServerTest, EveryCommandTakesAValueThatIsThere) {
  NEED_DEVICES(1);
  Start();
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const std::string bytes = Stamped(7);
  const auto put = [&](const char* key) {
    session.Put(key, bytes);
    ASSERT_EQ(TierOf(session, key), "gpu");
  };
  put("key");
  EXPECT_EQ(session.Run({"STRLEN", "key"}), std::to_string(kLength));
  EXPECT_EQ(session.Run({"GETRANGE", "key", "1000", "1099"}), bytes.substr(1000, 100));
  EXPECT_TRUE(session.Run({"GETRANGE", "key", "1000", "90000"}) == bytes.substr(1000, 89001));
  EXPECT_EQ(TierOf(session, "key"), "gpu");
  // A copy of the value shows the same extent.
  EXPECT_EQ(session.Run({"COPY", "key", "copy"}), "1");
  EXPECT_EQ(TierOf(session, "copy"), "gpu");
  EXPECT_EQ(session.Run({"RENAME", "copy", "renamed"}), "OK");
  EXPECT_TRUE(session.Run({"GET", "renamed"}) == bytes);
  put("second");
  EXPECT_TRUE(session.Run({"MGET", "key", "second", "nothing"}).starts_with(bytes + "\n" + bytes));
  // Those that change it.
  EXPECT_EQ(session.Run({"APPEND", "key", "tail"}), std::to_string(kLength + 4));
  EXPECT_EQ(TierOf(session, "key"), "dram");
  EXPECT_TRUE(session.Run({"GET", "key"}) == bytes + "tail");
  EXPECT_TRUE(session.Run({"GET", "renamed"}) == bytes);
  EXPECT_EQ(session.Run({"SETRANGE", "second", "0", "head"}), std::to_string(kLength));
  EXPECT_TRUE(session.Run({"GET", "second"}) == "head" + bytes.substr(4));
  put("third");
  EXPECT_TRUE(session.Run({"GETSET", "third", "new"}) == bytes);
  put("fourth");
  EXPECT_TRUE(session.Run({"GETDEL", "fourth"}) == bytes);
  EXPECT_EQ(session.Run({"EXISTS", "fourth"}), "0");
  put("fifth");
  EXPECT_TRUE(session.Run({"INCR", "fifth"}).starts_with("ERR value is not an integer"));
  // Short ones as well.
  session.Put("short", "12345");
  ASSERT_EQ(TierOf(session, "short"), "gpu");
  EXPECT_EQ(session.Run({"OBJECT", "ENCODING", "short"}), "embstr");
  EXPECT_EQ(session.Run({"OBJECT", "ENCODING", "renamed"}), "raw");
  EXPECT_EQ(session.Run({"GET", "short"}), "12345");
  EXPECT_EQ(session.Run({"INCR", "short"}), "12346");
  // A pipeline keeps its order.
  put("sixth");
  session.Send({"GET", "sixth"});
  session.Send({"ECHO", "after"});
  session.Send({"GET", "sixth"});
  EXPECT_TRUE(session.Receive() == bytes);
  EXPECT_EQ(session.Receive(), "after");
  EXPECT_TRUE(session.Receive() == bytes);
}

TEST_P(GpuServerTest, PreferencesNameDevices) {
  NEED_DEVICES(2);
  Start();
  const std::string first = Uuid(0), second = Uuid(1);
  GpuSession both(*server_, kind());
  ASSERT_TRUE(both.Attach());
  EXPECT_EQ(both.Put("a", Stamped(1), "gpu:" + second), second);
  EXPECT_EQ(both.Put("b", Stamped(2), "gpu:" + first + ",dram"), first);
  GpuSession one(*server_, kind(), {"TRANSPORTS", "2", "shm", "cuda", "DEVICES", "1", second});
  ASSERT_TRUE(one.Attach());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(one.Put("c" + std::to_string(i), Stamped(3)), second);
  EXPECT_EQ(one.Locate("a").tier, "gpu");
  EXPECT_EQ(one.Locate("b").tier, "dram") << "it cannot reach that device";
  EXPECT_TRUE(one.Run({"KV.ALLOC", "1", "d", "200000", "PREFER", "gpu:nonsense"})
                  .starts_with("ERR PREFER: 'gpu:nonsense' is no tier"));
  EXPECT_TRUE(one.Run({"KV.ALLOC", "1", "d", "200000", "PREFER",
                       "gpu:GPU-11111111-1111-1111-1111-111111111111"})
                  .starts_with("ERR PREFER: this server has none of the tiers"));
}

TEST_P(GpuServerTest, GpusThatFollowEachOtherTakeTurnsInThatOrder) {
  NEED_DEVICES(2);
  Start({{"gpu-memory", "4mb"}, {"gpu-high-watermark", "1"}});
  const std::string first = Uuid(0), second = Uuid(1);
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const std::string mebibyte(1 << 20, 'x');
  // "gpu" alone: the emptiest, whatever was before.
  EXPECT_EQ(session.Put("a", mebibyte, "gpu:" + second + ",gpu"), second);
  EXPECT_EQ(session.Put("b", mebibyte, "gpu:" + second + ",gpu"), second);
  EXPECT_EQ(session.Put("c", mebibyte, "gpu"), first);
  for (const char* key : {"d", "e"}) {
    EXPECT_EQ(session.Put(key, mebibyte, "gpu:" + second + ",gpu"), second);
  }
  EXPECT_EQ(session.Put("f", mebibyte, "gpu:" + second + ",gpu"), first) << "no room on the second";
  EXPECT_EQ(session.Locate("a").tier, "gpu") << "nothing had to go";
}

TEST_P(GpuServerTest, ValuesMoveThereWhenAskedTo) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", "64mb"}, {"prefer", "hot: gpu,dram"}});
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const std::string bytes = Stamped(7);
  EXPECT_EQ(session.Run({"SET", "key", bytes}), "OK");
  EXPECT_EQ(TierOf(session, "key"), "dram");
  EXPECT_EQ(session.Run({"KV.PREFETCH", "2", "key", "nothing", "PREFER", "gpu"}), "1\n0");
  EXPECT_TRUE(Eventually([&] { return TierOf(session, "key") == "gpu"; }));
  EXPECT_TRUE(session.Pull(session.Locate("key")) == bytes);
  EXPECT_EQ(session.Run({"SET", "hot:1", bytes}), "OK");
  EXPECT_TRUE(Eventually([&] { return TierOf(session, "hot:1") == "gpu"; }));
  EXPECT_TRUE(session.Run({"GET", "hot:1"}) == bytes);
}

TEST_P(GpuServerTest, ASessionThatEndsLeavesNothing) {
  NEED_DEVICES(1);
  Start();
  {
    GpuSession session(*server_, kind());
    ASSERT_TRUE(session.Attach());
    session.Put("key", Stamped(7));
    session.Alloc("never", kLength, "gpu");
    EXPECT_GT(used(), 2 * kLength);
    session.SayDone();
  }
  // What was reserved comes back; what was committed stays, and its region as well.
  EXPECT_TRUE(Eventually([&] { return used() < 2 * kLength; }));
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  EXPECT_TRUE(session.Pull(session.Locate("key")) == Stamped(7));
}

// A client that lives may write to what it reserved however late: nobody else gets it.
TEST_P(GpuServerTest, WhatTimedOutIsFreeWhenItsClientIsDone) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", "64mb"}, {"reservation-timeout", "1"}, {"session-max-reservations", "8"}});
  RawSession watch(*server_);
  const auto timed_out = [&](int count) {
    return Eventually(
        [&] { return std::stoi(Info(watch, "pool_reservation_timeouts", "pool")) >= count; });
  };
  {
    GpuSession session(*server_, kind());
    ASSERT_TRUE(session.Attach());
    const auto there = session.Alloc("a", kLength, "gpu");
    const auto here = session.Alloc("b", kLength, "dram");
    const auto late = session.Alloc("c", kLength, "gpu");
    session.Alloc("d", kLength, "gpu");
    const auto done = session.Alloc("e", kLength, "dram");
    ASSERT_TRUE(timed_out(5));
    // The client says that it is done with those; too late for their values.
    EXPECT_TRUE(session.Run({"KV.COMMIT", "1", "c", late.token, "-"}).starts_with("ERR no such"));
    EXPECT_EQ(session.Run({"KV.ABORT", "1", "e", done.token}), "0");
    EXPECT_EQ(session.Run({"EXISTS", "c"}), "0");
    std::vector<RawSession::Allocation> others;
    for (int i = 0; i < 4; ++i) {
      const char* const tier = i % 2 == 0 ? "gpu" : "dram";
      others.push_back(session.Alloc("more:" + std::to_string(i), kLength, tier));
    }
    others.push_back(session.Alloc("last", kLength, "gpu"));
    for (const auto& other : others) {
      for (const auto& mine : {there, here}) {
        EXPECT_FALSE(other.region == mine.region && other.offset == mine.offset);
      }
    }
    const std::string full = session.Run({"KV.ALLOC", "1", "x", "200000"});
    EXPECT_NE(full.find("session-max-reservations"), std::string::npos) << full;
    EXPECT_TRUE(session.Run({"KV.COMMIT", "1", "a", there.token, "-"}).starts_with("ERR no such"));
    session.SayDone();
  }
  EXPECT_TRUE(Eventually([&] { return used() == 0; }));
  EXPECT_TRUE(Eventually([&] { return server_->tenant().budget().extent_bytes() == 0; }));
}

// Its client said that it has written all of it.
TEST_P(GpuServerTest, ACommitThatFindsTheKeyGivesTheMemoryBackAtOnce) {
  NEED_DEVICES(1);
  Start();
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  ASSERT_EQ(session.Put("key", Stamped(7)), Uuid());
  const uint64_t before = used();
  const std::string reply = session.Run({"KV.ALLOC", "1", "key", "200000", "NX", "PREFER", "gpu"});
  const std::string token = reply.substr(0, reply.find('\n'));
  EXPECT_GT(used(), before);
  EXPECT_EQ(session.Run({"KV.COMMIT", "1", "key", token, "-"}), "");
  EXPECT_EQ(used(), before);
}

TEST_P(GpuServerTest, ALostDeviceCostsItsKeysNotTheServer) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "a GPU cannot be lost on request";
  NEED_DEVICES(2);
  Start();
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  session.Put("lost", Stamped(1), "gpu:" + Uuid(0));
  session.Put("read", Stamped(2), "gpu:" + Uuid(0));
  session.Put("kept", Stamped(3), "gpu:" + Uuid(1));
  const uint32_t region = session.Locate("lost").region;
  doubles_[0]->LoseAfter(0);
  EXPECT_EQ(session.Run({"GET", "read"}), "");
  EXPECT_TRUE(Eventually([&] { return session.Run({"EXISTS", "lost"}) == "0"; }));
  EXPECT_TRUE(session.Run({"GET", "kept"}) == Stamped(3));
  EXPECT_NE(Info(session, "gpu_device0", "gpu").find("state=lost"), std::string::npos);
  EXPECT_TRUE(Eventually([&] { return Info(session, "tier_gpu_lost_keys") == "2"; }));
  EXPECT_EQ(session.Put("new", Stamped(4)), Uuid(1));
  // The client is told to unmap it.
  session.Run({"KV.RELEASE", "4", "1", "2", "3", "4"});
  session.AwaitGone(region);
}

// The only loop serves everybody else.
TEST_P(GpuServerTest, WhileADeviceMakesARegionOnlyWhoWantsToWriteThereWaits) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "a GPU does not wait on request";
  NEED_DEVICES(2);
  doubles_[0]->HoldAllocations(true);
  Start({{"gpu-memory", "64mb"}, {"io-threads", "1"}});
  RawSession other(*server_);
  GpuSession session(*server_, kind());
  auto leaver = std::make_unique<GpuSession>(*server_, kind());
  ASSERT_TRUE(session.Attach());
  ASSERT_TRUE(leaver->Attach());
  ASSERT_TRUE(other.Attach());
  const auto waiting = [&](const char* count) {
    return Eventually([&] { return Info(other, "tier_gpu_waiting_for_regions") == count; });
  };
  const std::string there = "gpu:" + Uuid(0);
  EXPECT_TRUE(Eventually([&] { return doubles_[0]->allocations_held() == 1; }));
  session.Send({"KV.ALLOC", "2", "d", "200000", "key", "200000", "PREFER", there});
  session.Send({"ECHO", "after"});
  leaver->Send({"KV.ALLOC", "1", "k", "200000", "PREFER", there});
  EXPECT_TRUE(waiting("2"));
  // All else goes on: the loop, DRAM, the other device.
  EXPECT_EQ(other.Run({"PING"}), "PONG");
  EXPECT_EQ(other.Run({"SET", "dram", Stamped(1)}), "OK");
  EXPECT_TRUE(other.Run({"GET", "dram"}) == Stamped(1));
  EXPECT_NE(other.Alloc("arena", kLength, "dram").region, 0u);
  GpuSession second(*server_, kind());
  ASSERT_TRUE(second.Attach());
  EXPECT_EQ(second.Put("second", Stamped(2), "gpu:" + Uuid(1)), Uuid(1));
  EXPECT_EQ(second.Put("any", Stamped(3), "gpu"), Uuid(1));
  EXPECT_EQ(doubles_[0]->allocations_held(), 1);
  EXPECT_EQ(used(), 0u);
  // One whose client has gone by then: its end is seen when its command has run.
  const UniqueFd socket_of_leaver(dup(leaver->attach_fd()));
  leaver.reset();
  doubles_[0]->HoldAllocations(false);
  const auto reply = Lines(session.Receive());
  ASSERT_EQ(reply.size(), 8u);
  for (const size_t at : {1, 5}) {
    gpu::DeviceRegion* const region =
        session.Import(static_cast<uint32_t>(std::stoul(reply[at])));
    ASSERT_NE(region, nullptr);
    EXPECT_EQ(region->device().ToString(), Uuid(0));
  }
  EXPECT_EQ(session.Receive(), "after");
  EXPECT_TRUE(waiting("0"));
  EXPECT_TRUE(Eventually([&] { return server_->server().Sessions().size() == 3; }));
  EXPECT_EQ(session.Run({"KV.ABORT", "2", "d", reply[0], "key", reply[4]}), "1\n1");
  EXPECT_EQ(session.Put("key", Stamped(4), there), Uuid(0));
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  RawSession::SayDone(socket_of_leaver.get());
  EXPECT_TRUE(Eventually([&] { return late_bytes() == 0; }));
  EXPECT_LT(used(), 2 * kLength) << "something is left of who went";
}

TEST_P(GpuServerTest, WhoWaitedForARegionThatIsRefusedGetsDram) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "a GPU does not refuse on request";
  NEED_DEVICES(2);
  doubles_[0]->HoldAllocations(true);
  Start();
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  RawSession other(*server_);
  EXPECT_TRUE(Eventually([&] { return doubles_[0]->allocations_held() == 1; }));
  session.Send({"KV.ALLOC", "1", "key", "200000", "PREFER", "gpu:" + Uuid(0)});
  EXPECT_TRUE(Eventually([&] { return Info(other, "tier_gpu_waiting_for_regions") == "1"; }));
  doubles_[0]->FailCallAfter(0);
  doubles_[0]->HoldAllocations(false);
  const auto reply = Lines(session.Receive());
  ASSERT_EQ(reply.size(), 4u);
  EXPECT_EQ(session.Import(static_cast<uint32_t>(std::stoul(reply[1]))), nullptr);
  EXPECT_EQ(session.message().tier, protocol::Tier::kDram);
  // It is asked again after a while.
  EXPECT_TRUE(Eventually([&] {
    return session.Import(session.Alloc("later", 4096, "gpu:" + Uuid(0)).region) != nullptr;
  }));
}

TEST_P(GpuServerTest, ADeviceThatDoesNotAnswerIsWaitedForOnce) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "a GPU does not wait on request";
  NEED_DEVICES(1);
  doubles_[0]->HoldAllocations(true);
  Start({{"gpu-memory", "64mb"}, {"memory-wait", "30"}, {"shutdown-timeout", "0"}});
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const auto on_device = [&] {
    return session.Import(session.Alloc("key", 4096, "gpu").region) != nullptr;
  };
  EXPECT_FALSE(on_device());
  EXPECT_EQ(session.message().tier, protocol::Tier::kDram);
  EXPECT_NE(Info(session, "gpu_device0", "gpu").find("state=silent"), std::string::npos);
  // Nobody waits any more, however long that would be.
  EXPECT_EQ(session.Run({"CONFIG", "SET", "memory-wait", "3600000"}), "OK");
  EXPECT_FALSE(on_device());
  doubles_[0]->HoldAllocations(false);
  EXPECT_TRUE(Eventually(on_device));
  EXPECT_NE(Info(session, "gpu_device0", "gpu").find("state=up"), std::string::npos);
}

// A call into a driver cannot be broken off: it is the last that is waited for.
TEST_P(GpuServerTest, AStopSavesAllBeforeItWaitsForADriver) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "a GPU does not wait on request";
  NEED_DEVICES(1);
  doubles_[0]->HoldAllocations(true);
  Start({{"gpu-memory", "64mb"}, {"shutdown-timeout", "0"}});
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  EXPECT_TRUE(Eventually([&] { return doubles_[0]->allocations_held() == 1; }));
  session.Send({"KV.ALLOC", "1", "key", "200000", "PREFER", "gpu"});
  bool called = false;
  server_->server().set_on_silent_gpu([&] {
    called = true;
    doubles_[0]->HoldAllocations(false);
  });
  server_->Stop();
  EXPECT_TRUE(called);
}

TEST_P(GpuServerTest, EvictionGoesThroughDramToTheSsdAndAStopSavesAll) {
  NEED_DEVICES(1);
  std::string directory = std::filesystem::temp_directory_path() / "moonpool-gpu-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  const auto start = [&] {
    Start({{"gpu-memory", "8mb"},
           {"maxmemory", "16mb"},
           {"ssd-directory", directory.c_str()},
           {"ssd-capacity", "256mb"}});
  };
  start();
  constexpr int kKeys = 200;  // 40 MB
  {
    GpuSession session(*server_, kind());
    ASSERT_TRUE(session.Attach());
    for (int i = 0; i < kKeys; ++i) {
      const std::string key = "key:" + std::to_string(i);
      // Where there is no room yet it goes to DRAM, whose arenas this session does not use.
      EXPECT_TRUE(Eventually([&] {
        const auto& budget = server_->tenant().gpu_budget(0);
        return budget.used_bytes() + 2 * kLength < budget.limit();
      }));
      session.Put(key, Stamped(static_cast<uint64_t>(i)));
    }
    const auto tiers = Lines(session.Run({"KV.MATCH", "1", "key:199", "WITHTIERS"}));
    EXPECT_EQ(tiers[1], "1");
    for (int i = 0; i < kKeys; ++i) {
      const std::string key = "key:" + std::to_string(i);
      EXPECT_TRUE(session.Run({"GET", key}) == Stamped(static_cast<uint64_t>(i))) << key;
    }
    EXPECT_GT(std::stoi(Info(session, "tier_gpu_demotions")), kKeys / 2);
    EXPECT_GT(std::stoi(Info(session, "tier_ssd_demotions")), kKeys / 4);
  }
  server_->server().RequestShutdown();
  server_.reset();
  start();
  RawSession session(*server_);
  for (int i = 0; i < kKeys; ++i) {
    const std::string key = "key:" + std::to_string(i);
    EXPECT_TRUE(session.Run({"GET", key}) == Stamped(static_cast<uint64_t>(i))) << key;
  }
  server_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
}

TEST_P(GpuServerTest, WithoutOneEverythingWorksAndSaysWhyThereIsNone) {
  LiveServer plain;
  RawSession session(plain, {"TRANSPORTS", "2", "shm", "cuda"});
  EXPECT_EQ(Info(session, "gpu", "gpu"), "off");
  EXPECT_EQ(Info(session, "gpu_reason", "gpu"), "gpu-memory is 0");
  EXPECT_EQ(session.hello().find("\ncuda\n"), std::string::npos);
  EXPECT_TRUE(session.Run({"KV.ALLOC", "1", "key", "200000", "PREFER", "gpu"}).starts_with("ERR"));
  LiveServer off({{"gpu", "no"}, {"gpu-memory", "64mb"}});
  RawSession other(off);
  EXPECT_EQ(Info(other, "gpu_reason", "gpu"), "gpu is 'no' in the configuration");
  EXPECT_NE(other.Run({"KV.REGIONS"}).find("gpu is 'no' in the configuration"), std::string::npos);
}

TEST_P(GpuServerTest, SettingsPickDevices) {
  NEED_DEVICES(2);
  const std::string second = Uuid(1);
  Start({{"gpu-memory", "64mb"}, {"gpu-devices", second.c_str()}});
  RawSession session(*server_, {"TRANSPORTS", "2", "shm", "cuda"});
  EXPECT_NE(session.hello().find("devices\n" + second), std::string::npos) << session.hello();
  EXPECT_EQ(session.hello().find(Uuid(0)), std::string::npos);
  EXPECT_EQ(Info(session, "gpu_left_out0", "gpu"), Uuid(0) + ": not among gpu-devices");
}

INSTANTIATE_TEST_SUITE_P(Double, GpuServerTest, testing::Values(gpu::Kind::kDouble));
INSTANTIATE_TEST_SUITE_P(Cuda, GpuServerTest, testing::Values(gpu::Kind::kCuda));

}  // namespace
}  // namespace moonpool::client
