// What a lost session had reserved on a device: its client's copies may be on their way there, and
// so nobody else is given it before the client says that they are not, or its process is gone.
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "server/late_writers.h"
#include "tests/server/gpu_rig.h"

namespace moonpool::client {
namespace {

const std::vector<std::string_view> kCuda = {"TRANSPORTS", "2", "shm", "cuda"};

struct Place {
  uint32_t region = 0;
  uint64_t offset = 0;
};

// Another process with a session of its own, which it begins when it is told the server's address.
// REQUIRES: one thread when it is made.
class OtherProcess {
 public:
  struct Report {
    char client_id[24] = {};
    Place place;  // of what it has reserved on a device
  };
  OtherProcess() {
    int there[2], back[2];
    EXPECT_EQ(pipe(there), 0);
    EXPECT_EQ(pipe(back), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(there[1]);
      close(back[0]);
      Live(there[0], back[1]);
      _exit(0);
    }
    close(there[0]);
    close(back[1]);
    to_.Reset(there[1]);
    from_.Reset(back[0]);
  }
  ~OtherProcess() { Kill(); }

  Report Begin(const std::string& url) {
    std::vector<char> line(kLine);
    std::memcpy(line.data(), url.data(), url.size());
    EXPECT_EQ(write(to_.get(), line.data(), kLine), static_cast<ssize_t>(kLine));
    Report report;
    EXPECT_EQ(read(from_.get(), &report, sizeof(report)), static_cast<ssize_t>(sizeof(report)));
    return report;
  }
  // Closes its attach socket, and nothing else.
  void HangUp() {
    char word = 'h';
    EXPECT_EQ(write(to_.get(), &word, 1), 1);
    EXPECT_EQ(read(from_.get(), &word, 1), 1);
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  static constexpr size_t kLine = 256;

  static void Live(int in, int out) {
    std::vector<char> line(kLine);
    if (read(in, line.data(), kLine) != static_cast<ssize_t>(kLine)) return;
    RawSession session(std::string(line.data()), kCuda);
    if (!session.Attach()) return;
    const auto allocation = session.Alloc("late", kLength, "gpu");
    Report report;
    report.place = {allocation.region, allocation.offset};
    const std::string id = session.Run({"CLIENT", "ID"});
    std::memcpy(report.client_id, id.data(), std::min(id.size(), sizeof(report.client_id) - 1));
    if (write(out, &report, sizeof(report)) != static_cast<ssize_t>(sizeof(report))) return;
    for (char word; read(in, &word, 1) == 1;) {
      session.HangUp();
      if (write(out, &word, 1) != 1) return;
    }
  }

  pid_t pid_ = -1;
  UniqueFd to_, from_;
};

class LateWritersTest : public GpuServerTest {
 protected:
  static constexpr const char* kBytes = "8mb";

  // Reserves all that there is on the device.
  std::vector<Place> TakeAll(GpuSession& session) {
    std::vector<Place> places;
    for (;;) {
      const auto allocation =
          session.Alloc("taken:" + std::to_string(places.size()), kLength, "gpu");
      if (session.Import(allocation.region) == nullptr) return places;
      places.push_back({allocation.region, allocation.offset});
    }
  }
  static bool Overlap(const std::vector<Place>& places, const Place& one) {
    return std::any_of(places.begin(), places.end(), [&](const Place& other) {
      return other.region == one.region && other.offset < one.offset + kLength &&
             one.offset < other.offset + kLength;
    });
  }
  // That nobody gets it, and then, when `end` has happened, somebody does.
  void CheckHeld(const Place& place, const std::function<void()>& end) {
    {
      GpuSession second(*server_, kind());
      ASSERT_TRUE(second.Attach());
      const std::vector<Place> places = TakeAll(second);
      EXPECT_GT(places.size(), 20u);
      EXPECT_FALSE(Overlap(places, place));
      EXPECT_GT(late_bytes(), kLength);
      second.SayDone();
    }
    EXPECT_TRUE(Eventually([&] { return used() == late_bytes(); }));
    EXPECT_GT(late_bytes(), kLength);
    end();
    EXPECT_TRUE(Eventually([&] { return late_bytes() == 0; }));
    EXPECT_EQ(used(), 0u);
    GpuSession third(*server_, kind());
    ASSERT_TRUE(third.Attach());
    EXPECT_TRUE(Overlap(TakeAll(third), place));
    third.SayDone();
  }
};

TEST_P(LateWritersTest, WhatAKilledSessionReservedIsHeldUntilItsClientIsDone) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  RawSession watch(*server_);
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const auto allocation = session.Alloc("late", kLength, "gpu");
  ASSERT_NE(session.Import(allocation.region), nullptr);
  const std::string id = session.Run({"CLIENT", "ID"});
  EXPECT_EQ(watch.Run({"CLIENT", "KILL", "ID", id}), "1");
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  EXPECT_EQ(std::stoull(Info(watch, "tier_gpu_late_bytes")), used());
  EXPECT_EQ(Info(watch, "gpu_late_writers", "gpu"), "1");
  session.AwaitEnd();
  CheckHeld({allocation.region, allocation.offset}, [&] { session.SayDone(); });
  EXPECT_EQ(Info(watch, "gpu_late_writers", "gpu"), "0");
}

TEST_P(LateWritersTest, WhatAKilledSessionReservedIsHeldUntilItsProcessIsGone) {
  OtherProcess process;
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  RawSession watch(*server_);
  const OtherProcess::Report report = process.Begin(server_->Url());
  EXPECT_EQ(watch.Run({"CLIENT", "KILL", "ID", report.client_id}), "1");
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  CheckHeld(report.place, [&] { process.Kill(); });
}

// Descriptors are closed long before a process is gone, and by processes that live on.
TEST_P(LateWritersTest, TheEndOfTheAttachSocketProvesNothing) {
  OtherProcess process;
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  const OtherProcess::Report report = process.Begin(server_->Url());
  process.HangUp();
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; })) << "the RESP connection lives";
  CheckHeld(report.place, [&] { process.Kill(); });
}

TEST_P(LateWritersTest, NorDoesItAfterTheSession) {
  OtherProcess process;
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  RawSession watch(*server_);
  const OtherProcess::Report report = process.Begin(server_->Url());
  EXPECT_EQ(watch.Run({"CLIENT", "KILL", "ID", report.client_id}), "1");
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  process.HangUp();
  CheckHeld(report.place, [&] { process.Kill(); });
}

TEST_P(LateWritersTest, AClientThatIsKilledLeavesNothing) {
  OtherProcess process;
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  process.Begin(server_->Url());
  EXPECT_GT(used(), kLength);
  process.Kill();
  EXPECT_TRUE(Eventually([&] { return used() == 0; }));
}

// Of another session's, whose client says that it is done, nothing is freed.
TEST_P(LateWritersTest, EachClientSpeaksForItself) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  RawSession watch(*server_);
  GpuSession first(*server_, kind()), second(*server_, kind());
  for (GpuSession* session : {&first, &second}) {
    ASSERT_TRUE(session->Attach());
    session->Alloc("late", kLength, "gpu");
    EXPECT_EQ(watch.Run({"CLIENT", "KILL", "ID", session->Run({"CLIENT", "ID"})}), "1");
  }
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 2 * kLength; }));
  second.SayDone();
  EXPECT_TRUE(Eventually([&] { return late_bytes() < 2 * kLength; }));
  EXPECT_GT(late_bytes(), kLength);
  first.SayDone();
  EXPECT_TRUE(Eventually([&] { return late_bytes() == 0; }));
}

TEST_P(LateWritersTest, WhatIsAbortedIsFreeAtOnce) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const auto allocation = session.Alloc("key", kLength, "gpu");
  EXPECT_GT(used(), kLength);
  EXPECT_EQ(session.Run({"KV.ABORT", "1", "key", allocation.token}), "1");
  EXPECT_EQ(used(), 0u);
}

TEST_P(LateWritersTest, AStopWaitsForNoClient) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", kBytes}});
  RawSession watch(*server_);
  GpuSession killed(*server_, kind()), open(*server_, kind());
  for (GpuSession* session : {&killed, &open}) {
    ASSERT_TRUE(session->Attach());
    const auto allocation = session->Alloc("late", kLength, "gpu");
    ASSERT_NE(session->Import(allocation.region), nullptr);
  }
  EXPECT_EQ(watch.Run({"CLIENT", "KILL", "ID", killed.Run({"CLIENT", "ID"})}), "1");
  EXPECT_TRUE(Eventually([&] { return late_bytes() > 0; }));
  server_->Stop();
}

// --- clients whose end would not be seen -------------------------------------------------------

TEST_P(LateWritersTest, WhoCannotBeWatchedWritesToDram) {
  NEED_DEVICES(1);
  Start({{"gpu-memory", "64mb"}}, [](int) -> Result<UniqueFd> {
    return Fail(ErrorCode::kUnavailable, "the process is not seen");
  });
  RawSession watch(*server_);
  EXPECT_EQ(Info(watch, "gpu_unwatched_sessions", "gpu"), "0");
  GpuSession session(*server_, kind());
  ASSERT_TRUE(session.Attach());
  const auto allocation = session.Alloc("key", kLength, "gpu");
  EXPECT_EQ(session.Import(allocation.region), nullptr);
  EXPECT_EQ(session.message().tier, protocol::Tier::kDram);
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(Info(watch, "gpu_unwatched_sessions", "gpu"), "1");
  EXPECT_EQ(Info(watch, "gpu_unwatched_reason", "gpu"), "the process is not seen");
  // It reads there, as that harms nobody.
  EXPECT_EQ(session.Run({"SET", "value", Stamped(7)}), "OK");
  EXPECT_EQ(session.Run({"KV.PREFETCH", "1", "value", "PREFER", "gpu"}), "1");
  EXPECT_TRUE(Eventually([&] { return TierOf(session, "value") == "gpu"; }));
  EXPECT_TRUE(session.Pull(session.Locate("value")) == Stamped(7));
}

// Nothing can be written there before, as nothing is mapped.
TEST_P(LateWritersTest, WhoHasNotAttachedReservesNothing) {
  NEED_DEVICES(1);
  Start();
  RawSession session(*server_, kCuda);
  EXPECT_TRUE(session.Run({"KV.ALLOC", "1", "key", "200000", "PREFER", "gpu"}).starts_with("ERR"));
  EXPECT_EQ(used(), 0u);
}

TEST_P(LateWritersTest, AProcessThatEndsIsSeen) {
  if (kind() != gpu::Kind::kDouble) GTEST_SKIP() << "no device is needed";
  int ready[2];
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string name = "moonpool-late-writers-test-" + std::to_string(getpid());
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  ASSERT_EQ(pipe(ready), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&address), size) != 0) _exit(1);
    close(ready[1]);
    for (char any; read(ready[0], &any, 1) > 0;) {
    }
    _exit(0);
  }
  close(ready[0]);
  UniqueFd ends(ready[1]);
  const UniqueFd peer(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const auto process = server::PeerProcess(peer.get());
  ASSERT_TRUE(process) << process.error().message;
  pollfd one{process->get(), POLLIN, 0};
  EXPECT_EQ(poll(&one, 1, 0), 0) << "it lives";
  ends.Reset();
  EXPECT_EQ(poll(&one, 1, -1), 1);
  EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
}

INSTANTIATE_TEST_SUITE_P(Double, LateWritersTest, testing::Values(gpu::Kind::kDouble));
INSTANTIATE_TEST_SUITE_P(Cuda, LateWritersTest, testing::Values(gpu::Kind::kCuda));

}  // namespace
}  // namespace moonpool::client
