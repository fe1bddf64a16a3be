// A change is acknowledged when the SSD's log has it, and not before: until then kill -9 would undo
// it.
#include <poll.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "storage/clock.h"
#include "storage/tenant.h"
#include "tests/client/live_server.h"
#include "tests/client/raw_session.h"
#include "tests/storage/ssd_directory.h"
#include "tests/storage/tier_disk.h"

namespace moonpool::client {
namespace {

using storage::Entry;
using storage::KeyLock;
using Words = std::vector<std::string_view>;

constexpr size_t kBytes = 100'000;

class HeldRepliesTest : public testing::Test {
 protected:
  HeldRepliesTest()
      : disk_(std::make_shared<storage::TierDisk>()),
        env_(rocksdb::NewCompositeEnv(disk_)),
        // One loop: who gets an answer knows that what came before has been dealt with.
        server_({{"io-threads", "1"}, {"ssd-directory", directory_.path().c_str()}}, 0,
                env_.get()),
        changing_(server_),
        witness_(server_) {}
  // A server whose log cannot go on does not stop.
  ~HeldRepliesTest() override { disk_->index.writes_held = false; }

  // A value in memory with a copy on the SSD, or on the SSD alone.
  void PutDown(const std::string& name, bool keep) {
    const std::string value(kBytes, 'v');
    ASSERT_EQ(witness_.Run({"SET", name, value}), "OK");
    storage::Tenant& tenant = server_.tenant();
    EXPECT_TRUE(Eventually([&] {
      storage::ValueRef value_in_memory;
      {
        KeyLock lock(tenant.keyspace(), name, storage::UnixMs());
        const Entry* entry = lock.key.Find();
        if (entry->has(Entry::kOnSsd)) return true;
        if (entry->bulk()->place()) return keep;
        value_in_memory = storage::ValueRef::Share(entry->bulk());
      }
      tenant.ssd()->Demote(std::move(value_in_memory), keep);
      return false;
    })) << name;
    EXPECT_TRUE(tenant.ssd()->log().Sync(60'000));
  }

  bool Answered() {
    pollfd socket{changing_.stream().fd(), POLLIN, 0};
    return poll(&socket, 1, 0) > 0;
  }

  // Sends it while the log cannot be written.
  void ExpectHeld(const Words& command, const std::string& reply) {
    SCOPED_TRACE(std::string(command[0]));
    disk_->index.writes_held = true;
    changing_.Send(command);
    changing_.Send({"PING"});  // nor does what follows overtake it
    EXPECT_TRUE(Eventually([&] { return disk_->index.waiting > 0; }));
    EXPECT_EQ(witness_.Run({"PING"}), "PONG");
    EXPECT_FALSE(Answered());
    disk_->index.writes_held = false;
    EXPECT_EQ(changing_.Receive(), reply);
    EXPECT_EQ(changing_.Receive(), "PONG");
  }

  const storage::SsdDirectory directory_;
  const std::shared_ptr<storage::TierDisk> disk_;
  const std::unique_ptr<rocksdb::Env> env_;
  LiveServer server_;
  RawSession changing_;
  RawSession witness_;
};

TEST_F(HeldRepliesTest, UntilTheChangeIsInTheLog) {
  const std::string old_value(kBytes, 'v'), large(kBytes, 'n');
  const struct {
    Words command;
    std::string reply;
  } kChanges[] = {
      {{"SET", "k", large}, "OK"},
      {{"SET", "k", "small"}, "OK"},
      {{"MSET", "other", "1", "k", large}, "OK"},
      {{"GETSET", "k", large}, old_value},
      {{"SETRANGE", "k", "5", "inside"}, std::to_string(kBytes)},
      {{"APPEND", "k", "tail"}, std::to_string(kBytes + 4)},
      {{"DEL", "k"}, "1"},
      {{"UNLINK", "k"}, "1"},
      {{"GETDEL", "k"}, old_value},
      {{"PEXPIREAT", "k", "1"}, "1"},
      {{"EXPIRE", "k", "1000"}, "1"},
      {{"GETEX", "k", "EX", "1000"}, old_value},
      {{"RENAME", "k", "other"}, "OK"},
      {{"KV.DROP", "MATCH", "k*"}, "OK"},
      {{"KV.DROP", "NAMESPACE", "k"}, "OK"},
      {{"FLUSHALL"}, "OK"},
      {{"FLUSHALL", "ASYNC"}, "OK"},
  };
  for (const auto& [command, reply] : kChanges) {
    for (const bool keep : {false, true}) {
      PutDown("k", keep);
      ExpectHeld(command, reply);
    }
  }
  PutDown("k", false);
  ASSERT_EQ(witness_.Run({"EXPIRE", "k", "1000"}), "1");
  ExpectHeld({"PERSIST", "k"}, "1");
}

// A crash that undoes what was taken away would undo what came after, though that left the SSD alone.
TEST_F(HeldRepliesTest, OfWhatFollowsTheChangesOfOthers) {
  const std::string large(kBytes, 'n');
  const Words kTaking[] = {{"DEL", "k"},           {"RENAME", "k", "other"}, {"GETDEL", "k"},
                           {"PEXPIREAT", "k", "1"}, {"FLUSHALL"},            {"SET", "k", "inline"}};
  const Words kFollowing[] = {{"SET", "k", "1"},  {"SET", "k", large}, {"DEL", "k"},
                              {"APPEND", "k", "1"}, {"MSET", "k", "1"},   {"RENAME", "source", "k"},
                              {"SETRANGE", "k", "0", "1"}, {"SET", "k", "1", "EX", "1000"}};
  for (const bool keep : {false, true}) {
    for (const Words& taking : kTaking) {
      for (const Words& following : kFollowing) {
        SCOPED_TRACE(std::string(taking[0]) + ", " + std::string(following[0]));
        if (taking[0] == "FLUSHALL" && following[0] == "RENAME") continue;  // the source goes too
        PutDown("k", keep);
        EXPECT_EQ(witness_.Run({"SET", "source", "1"}), "OK");
        RawSession other(server_);
        disk_->index.writes_held = true;
        other.Send(taking);
        EXPECT_TRUE(Eventually([&] { return disk_->index.waiting > 0; }));
        changing_.Send(following);
        EXPECT_EQ(witness_.Run({"PING"}), "PONG");
        EXPECT_FALSE(Answered());
        disk_->index.writes_held = false;
        static_cast<void>(other.Receive());
        static_cast<void>(changing_.Receive());
      }
    }
  }
}

TEST_F(HeldRepliesTest, OfValuesThatCameThroughSharedMemory) {
  ASSERT_TRUE(changing_.Attach());
  const auto first = changing_.Alloc("k", kBytes);
  ASSERT_TRUE(changing_.Want(first.region).writable);
  ASSERT_TRUE(changing_.Mapped(first.region));
  ASSERT_EQ(changing_.Run({"KV.ABORT", "1", "k", first.token}), "1");
  for (const bool keep : {false, true}) {
    PutDown("k", keep);
    const auto reserved = changing_.Alloc("k", kBytes);
    ExpectHeld({"KV.COMMIT", "1", "k", reserved.token, "-"}, "OK");
  }
  // Copied by the background thread, published by the loop.
  ASSERT_EQ(changing_.Run({"CONFIG", "SET", "shm-commit", "copy"}), "OK");
  PutDown("k", false);
  const auto reserved = changing_.Alloc("k", kBytes);
  ExpectHeld({"KV.COMMIT", "1", "k", reserved.token, "-"}, "OK");
}

TEST_F(HeldRepliesTest, OfEveryoneWhoChangedSomething) {
  std::vector<std::unique_ptr<RawSession>> clients;
  for (int i = 0; i < 10; ++i) {
    PutDown("k" + std::to_string(i), i % 2 == 0);
    clients.push_back(std::make_unique<RawSession>(server_));
  }
  disk_->index.writes_held = true;
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i]->Send({"DEL", "k" + std::to_string(i)});
  }
  EXPECT_TRUE(Eventually([&] { return disk_->index.waiting > 0; }));
  EXPECT_EQ(witness_.Run({"EXISTS", "k0", "k9"}), "0");
  for (const auto& client : clients) {
    pollfd socket{client->stream().fd(), POLLIN, 0};
    EXPECT_EQ(poll(&socket, 1, 0), 0);
  }
  disk_->index.writes_held = false;
  for (const auto& client : clients) EXPECT_EQ(client->Receive(), "1");
}

}  // namespace
}  // namespace moonpool::client
