// What a client that does not use the library, and means harm, can do with what it is given.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>

#include "client/attachment.h"
#include "client/channel.h"
#include "tests/client/live_server.h"
#include "tests/client/raw_session.h"
#include "tests/client/stamped_block.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace moonpool::client {
namespace {

// Every way to change a memory file that a reader was given; none may work.
void ExpectReadOnly(int fd, size_t bytes) {
  EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  void* readable = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(readable, MAP_FAILED);
  EXPECT_NE(mprotect(readable, 4096, PROT_READ | PROT_WRITE), 0);
  EXPECT_NE(madvise(readable, 4096, MADV_REMOVE), 0);
  munmap(readable, bytes);
  // A private mapping changes only the client's own copy.
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, static_cast<off_t>(bytes * 2)), 0);
  EXPECT_NE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_LT(pwrite(fd, "x", 1, 0), 0);
  // Opening it again for writing gets a descriptor at most, never a writable byte.
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd again(open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (again) {
    EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again.get(), 0),
              MAP_FAILED);
    EXPECT_LT(pwrite(again.get(), "x", 1, 0), 0);
    EXPECT_NE(ftruncate(again.get(), 0), 0);
    EXPECT_NE(fallocate(again.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  }
  UniqueFd truncated(open(path.c_str(), O_RDWR | O_TRUNC | O_CLOEXEC));
  off_t size = lseek(fd, 0, SEEK_END);
  EXPECT_EQ(size, static_cast<off_t>(bytes));
}

uint32_t RegionOf(RawSession& client, std::string_view key) {
  const std::string located = client.Run({"KV.LOCATE", "1", key});
  return static_cast<uint32_t>(std::stoul(located));
}

TEST(HostileClient, SharedRegionsAndGenerationsCannotBeChanged) {
  LiveServer server;
  server.Connect("transport=tcp")->Set("key", std::string(100000, 'k'));
  RawSession hostile(server);
  ASSERT_TRUE(hostile.Attach());
  ExpectReadOnly(hostile.generations(), hostile.generations_bytes());
  const RawSession::Region region = hostile.Want(RegionOf(hostile, "key"));
  ASSERT_TRUE(region.fd);
  EXPECT_FALSE(region.writable);
  ExpectReadOnly(region.fd.get(), region.bytes);
}

TEST(HostileClient, TokensAreGoodOnceAndOnlyForTheirSession) {
  LiveServer server;
  RawSession hostile(server);
  EXPECT_FALSE(hostile.Attach(std::string(32, '0'))) << "guessed";
  ASSERT_TRUE(hostile.Attach());
  EXPECT_FALSE(hostile.Attach()) << "used twice";
  RawSession other(server);
  const std::string stolen = other.token();
  other.Run({"KV.HELLO", "1"});  // a new session: the old token names nobody
  EXPECT_FALSE(hostile.Attach(stolen)) << "of a session that is over";
}

TEST(HostileClient, TokensExpire) {
  LiveServer server({{"attach-timeout", "1"}});
  RawSession hostile(server);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // what is tested is a time
  EXPECT_FALSE(hostile.Attach());
}

TEST(HostileClient, GarbageOnTheAttachSocketEndsOnlyThatSession) {
  LiveServer server;
  const auto good = server.Connect("transport=shm");
  ASSERT_TRUE(good->Set("key", std::string(100000, 'k')).ok());
  RawSession hostile(server);
  ASSERT_TRUE(hostile.Attach());
  const char garbage[100] = "not a message";
  EXPECT_GT(send(hostile.attach_fd(), garbage, sizeof(garbage), MSG_NOSIGNAL), 0);
  char end;
  EXPECT_EQ(recv(hostile.attach_fd(), &end, 1, 0), 0) << "the server did not hang up";
  EXPECT_EQ(hostile.Run({"PING"}), "PONG") << "RESP goes on";
  // Half a token, then nothing: the place it took is given back, others still get in.
  std::vector<std::unique_ptr<RawSession>> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(std::make_unique<RawSession>(server));
  std::string value;
  EXPECT_TRUE(server.Connect("transport=shm")->Get("key", &value).ok());
}

TEST(HostileClient, AnArenaIsWritableForItsSessionAloneAndSealedForTheRest) {
  LiveServer server;
  RawSession writer(server);
  ASSERT_TRUE(writer.Attach());
  const auto allocation = writer.Alloc("mine", 100000);
  RawSession reader(server);
  ASSERT_TRUE(reader.Attach());
  EXPECT_FALSE(reader.Want(allocation.region).fd) << "an arena nothing is committed to yet";

  RawSession::Region region = writer.Want(allocation.region);
  ASSERT_TRUE(region.fd);
  ASSERT_TRUE(region.writable);
  // Nothing counts before the arena is mapped and sealed.
  EXPECT_NE(writer.Run({"KV.COMMIT", "1", "mine", allocation.token, "-"}).find("not mapped"),
            std::string::npos);
  auto* data = static_cast<char*>(
      mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd.get(), 0));
  ASSERT_NE(data, MAP_FAILED);
  ASSERT_TRUE(writer.Mapped(allocation.region));
  // Sealed now: not even the writer gets another writable mapping, by whatever descriptor.
  ExpectReadOnly(region.fd.get(), region.bytes);
  const auto second = writer.Alloc("mine", 100000);
  ASSERT_EQ(second.region, allocation.region);
  std::memset(data + second.offset, 'v', 100000);
  EXPECT_EQ(writer.Run({"KV.COMMIT", "1", "mine", second.token, "-"}), "OK");
  const RawSession::Region seen = reader.Want(allocation.region);
  ASSERT_TRUE(seen.fd);
  EXPECT_FALSE(seen.writable);
  ExpectReadOnly(seen.fd.get(), seen.bytes);
  EXPECT_EQ(reader.Run({"GET", "mine"}), std::string(100000, 'v'));
  munmap(data, region.bytes);
}

TEST(HostileClient, AWriterWhoseSessionEndedCannotHarmAnybody) {
  LiveServer server({{"maxmemory", "64mb"}, {"region-size", "8mb"}, {"arena-size", "4mb"}});
  const auto reader = server.Connect("transport=shm");
  auto hostile = std::make_unique<RawSession>(server);
  ASSERT_TRUE(hostile->Attach());
  const auto first = hostile->Alloc("kept", 200000);
  RawSession::Region region = hostile->Want(first.region);
  ASSERT_TRUE(region.writable);
  auto* data = static_cast<char*>(
      mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd.get(), 0));
  ASSERT_NE(data, MAP_FAILED);
  ASSERT_TRUE(hostile->Mapped(first.region));
  const auto kept = hostile->Alloc("kept", 200000);
  FillStamped(data + kept.offset, 200000, {7, 1});
  EXPECT_EQ(hostile->Run({"KV.COMMIT", "1", "kept", kept.token, "-"}), "OK");
  const auto pending = hostile->Alloc("pending", 100000);
  // A descriptor passed on and a fork keep the mapping alive wherever the session goes.
  const pid_t child = fork();
  if (child == 0) {
    for (;;) {
      std::memset(data, 0xee, region.bytes);
      usleep(100);
    }
  }
  region.fd.Reset();
  hostile.reset();  // its RESP connection and its attach socket
  // The value moves out of the arena, and what the child writes never reaches a reader.  (While
  // the bytes lay in the writer's own arena it could change its own value: that is what
  // `shm-commit copy` is for.)
  std::string got;
  ASSERT_TRUE(Eventually([&] {
    const auto regions = server.tenant().pool().Regions();
    return std::all_of(regions.begin(), regions.end(), [&](const storage::RegionInfo& info) {
      return info.id != first.region || info.extents == 0;
    });
  }));
  const uint64_t with_arena = server.tenant().budget().region_bytes();
  EXPECT_EQ(reader->Get("pending", &got).code, Code::kMiss);
  // New values by others, all over the pool, stay whole while the child goes on writing.
  for (uint64_t i = 0; i < 40; ++i) {
    std::vector<char> block(300000);
    FillStamped(block.data(), block.size(), {i, 1});
    ASSERT_TRUE(reader->Set("other:" + std::to_string(i), {block.data(), block.size()}).ok());
  }
  for (uint64_t i = 0; i < 40; ++i) {
    if (!reader->Get("other:" + std::to_string(i), &got).ok()) continue;
    EXPECT_EQ(CheckStamped(got.data(), got.size(), i), "");
  }
  // The arena is not given up: it still counts.
  const auto arena_there = [&] {
    const auto regions = server.tenant().pool().Regions();
    return std::any_of(regions.begin(), regions.end(),
                       [&](const storage::RegionInfo& info) { return info.id == first.region; });
  };
  EXPECT_TRUE(arena_there());
  EXPECT_GE(with_arena, region.bytes);
  munmap(data, region.bytes);
  EXPECT_TRUE(arena_there()) << "the child still has it mapped";
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(Eventually([&] { return !arena_there(); }));
  (void)pending;
}

TEST(HostileClient, CopiedCommitsCannotBeChangedAfterwards) {
  LiveServer server({{"shm-commit", "copy"}});
  RawSession writer(server);
  ASSERT_TRUE(writer.Attach());
  const auto first = writer.Alloc("key", 100000);
  const RawSession::Region region = writer.Want(first.region);
  auto* data = static_cast<char*>(
      mmap(nullptr, region.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, region.fd.get(), 0));
  ASSERT_NE(data, MAP_FAILED);
  ASSERT_TRUE(writer.Mapped(first.region));
  std::memset(data + first.offset, 'a', 100000);
  EXPECT_EQ(writer.Run({"KV.COMMIT", "1", "key", first.token, "-"}), "OK");
  std::memset(data, 'z', region.bytes);
  EXPECT_EQ(writer.Run({"GET", "key"}), std::string(100000, 'a'));
  munmap(data, region.bytes);
}

TEST(HostileClient, RegionsOfNobodyAreNotHandedOut) {
  LiveServer server;
  RawSession hostile(server);
  ASSERT_TRUE(hostile.Attach());
  for (const uint32_t region : {0u, 999999u, UINT32_MAX}) EXPECT_FALSE(hostile.Want(region).fd);
}

TEST(HostileClient, ForeignReservationsAndLeasesAreNotFound) {
  LiveServer server;
  server.Connect("transport=tcp")->Set("key", std::string(100000, 'k'));
  RawSession one(server), two(server);
  ASSERT_TRUE(one.Attach());
  ASSERT_TRUE(two.Attach());
  const auto mine = one.Alloc("a", 100000);
  EXPECT_NE(two.Run({"KV.COMMIT", "1", "a", mine.token, "-"}).find("no such reservation"),
            std::string::npos);
  EXPECT_EQ(two.Run({"KV.ABORT", "1", "a", mine.token}), "0");
  EXPECT_NE(one.Run({"KV.COMMIT", "1", "b", mine.token, "-"}).find("no such reservation"),
            std::string::npos)
      << "another key";
  one.Run({"KV.LOCATE", "1", "key", "HOLD"});
  EXPECT_EQ(two.Run({"KV.RELEASE", "2", "1", "4611686018427387904"}), "0\n0");
  EXPECT_EQ(server.tenant().holds(), 1u);
}

}  // namespace
}  // namespace moonpool::client
