// What a client must not be able to do, tried on a real device.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <thread>

#include "tests/protocol/random.h"
#include "tests/rdma/vm/fixture.h"
#include "tests/rdma/vm/raw_client.h"

namespace moonpool::rdma::test {
namespace {

using testing::HasSubstr;

class VmSafety : public VmTest {
 protected:
  // What Open() says with such a token and session.
  std::string Refusal(uint64_t session, const Token& token) {
    LiveClient client(*client_nics_, Target(session), [&]() -> Result<Token> { return token; });
    const Status status = client.endpoint().Open();
    return status ? "accepted" : status.error().message;
  }
};

TEST_F(VmSafety, Tokens) {
  service_->BeginSession(1, pool_->memory());
  service_->BeginSession(2, pool_->memory());
  Token wrong = service_->IssueToken(1);
  wrong[0] ^= 1;
  EXPECT_THAT(Refusal(1, wrong), HasSubstr("the token is not one of this server's"));
  EXPECT_THAT(Refusal(2, service_->IssueToken(1)), HasSubstr("the token is of another session"));
  const Token good = service_->IssueToken(1);
  // Presented by the lanes of both NICs, where there are two: one is accepted.
  EXPECT_EQ(Refusal(1, good), "accepted");
  EXPECT_THAT(Refusal(1, good), HasSubstr("the token was used before"));
  const Token late = service_->IssueToken(1);
  service_->EndSession(1);
  EXPECT_THAT(Refusal(1, late), HasSubstr("the token is not one of this server's"));
}

TEST_F(VmSafety, AnotherEpochIsRefused) {
  service_->BeginSession(1, pool_->memory());
  EndpointTarget target = Target(1);
  target.epoch = kEpoch - 1;
  LiveClient client(*client_nics_, target,
                    [&]() -> Result<Token> { return service_->IssueToken(1); });
  const Status status = client.endpoint().Open();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("the server has been restarted"));
}

TEST_F(VmSafety, NobodyListens) {
  EndpointTarget target = Target(1);
  target.port = 1;
  LiveClient client(*client_nics_, target, []() -> Result<Token> { return Token{}; });
  const Status status = client.endpoint().Open();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, testing::AnyOf(HasSubstr("nobody listens there"),
                                                     HasSubstr("Connection refused")));
}

class VmHostile : public VmSafety {
 protected:
  // A lane of its own for each attempt: one that fails costs the queue pair.
  Completion::Status Attempt(WorkRequest::Kind kind, uint64_t address, uint32_t key) {
    service_->BeginSession(++sessions_, pool_->memory());
    const uint64_t session = sessions_;
    RawClient client(*client_nics_, Target(session), service_->IssueToken(session));
    accept_ = client.accept();
    return client.Do(kind, address, key);
  }
  ConnectAccept accept_;
  uint64_t sessions_ = 100;
};

TEST_F(VmHostile, OtherTenantsKeysAndWritesFailAtTheDevice) {
  const storage::ValueRef mine = pool_->Put(1 << 20, 1);
  LivePool other(*service_, 16 << 20, 64 << 20);
  const storage::ValueRef theirs = other.Put(1 << 20, 2);
  const auto reach = [](LivePool& pool, const storage::ValueRef& value) {
    return *pool.memory()->Find(value->extent().region->id(), value->extent().offset, 0);
  };
  const TenantMemory::Reach own = reach(*pool_, mine);
  const TenantMemory::Reach foreign = reach(other, theirs);
  const Completion::Status refused = Refused(*client_nics_);
  // The attempt itself is sound: with the own tenant's key it works.
  EXPECT_EQ(Attempt(WorkRequest::Kind::kRead, own.address, own.key), Completion::Status::kOk);
  EXPECT_EQ(Attempt(WorkRequest::Kind::kRead, foreign.address, foreign.key), refused);
  // The own key does not reach the other's memory either, nor beyond the region.
  EXPECT_EQ(Attempt(WorkRequest::Kind::kRead, foreign.address, own.key), refused);
  EXPECT_EQ(Attempt(WorkRequest::Kind::kRead, own.address + own.length - 100, own.key), refused);
  // Nothing of the pool can be written, neither values nor generations.
  EXPECT_EQ(Attempt(WorkRequest::Kind::kWrite, own.address, own.key), refused);
  EXPECT_EQ(
      Attempt(WorkRequest::Kind::kWrite, accept_.generations_address, accept_.generations_key),
      refused);
  EXPECT_EQ(FirstWrong(mine->data(), 1 << 20, 1), std::nullopt);
  EXPECT_EQ(FirstWrong(theirs->data(), 1 << 20, 2), std::nullopt);
}

TEST_F(VmSafety, AWithdrawnRegionCannotBeRead) {
  auto client = Connected(1);
  ClientBuffer buffer(1 << 20);
  const storage::ValueRef value = pool_->Put(1 << 20, 3);
  const LiveClient::Want want(value->extent(), buffer.data());
  ASSERT_EQ(client->Read({want})[0], Outcome::kDone) << client->error();
  // The client is not asked: it is busy elsewhere.
  pool_->exporter().Withdraw(want.region);
  EXPECT_EQ(client->Read({want})[0],
            OverIwarp(*client_nics_) ? Outcome::kUnreachable : Outcome::kNotThere);
}

TEST_F(VmSafety, AnArenaCanBeProvenOnceItIsWithdrawn) {
  auto arena = std::shared_ptr<storage::Region>(
      Must(storage::Region::Create(900, storage::Region::Kind::kArena, 4 << 20, {}), "arena"));
  {
    // Its writer: it fills the arena and lets go of it.
    char* const data = storage::MapAligned(arena->fd(), arena->bytes(), PROT_READ | PROT_WRITE);
    ASSERT_NE(data, nullptr);
    FillKnown(data, arena->bytes(), 4);
    munmap(data, arena->bytes());
  }
  ASSERT_TRUE(arena->SealArena());
  const Status exported = pool_->exporter().Export(arena);
  ASSERT_TRUE(exported) << exported.error().message;
  auto client = Connected(1);
  ClientBuffer buffer(4 << 20);
  LiveClient::Want want;
  want.region = 900;
  want.length = 4 << 20;
  want.to = buffer.data();
  want.generation = pool_->pool().generations().counter(0);
  EXPECT_EQ(client->Read({want})[0], Outcome::kDone) << client->error();
  EXPECT_EQ(FirstWrong(buffer.data(), buffer.bytes(), 4), std::nullopt);
  pool_->exporter().Withdraw(900);
  EXPECT_TRUE(arena->ProveNoWriters());
}

// Values come and go while they are read; what is said to be read is what was asked for.
TEST_F(VmSafety, NoWrongBytesUnderPressure) {
  moonpool::test::Random random;
  auto client = Connected(1);
  constexpr size_t kValues = 24;
  constexpr uint64_t kBytes = 300'000;
  std::mutex mu;
  struct Current {
    storage::ValueRef ref;
    uint64_t value = 0;
  };
  std::vector<Current> current(kValues);
  uint64_t next = 1;
  for (Current& entry : current) entry = {pool_->Put(kBytes, next), next}, ++next;
  std::atomic<bool> stop{false};
  std::thread writer([&, seed = random.Next()] {
    moonpool::test::Random choose(seed);
    while (!stop) {
      const size_t i = choose.Below(kValues);
      // The old one goes first: the new one takes its place in memory.
      {
        std::lock_guard lock(mu);
        current[i].ref.Reset();
      }
      storage::ValueRef fresh = pool_->Put(kBytes, next);
      std::lock_guard lock(mu);
      current[i] = {std::move(fresh), next++};
    }
  });
  ClientBuffer buffer(kValues * kBytes);
  ASSERT_TRUE(client->cache().Declare(buffer.data(), buffer.bytes()));
  size_t done = 0;
  size_t changed = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (std::chrono::steady_clock::now() < end) {
    std::vector<LiveClient::Want> wants;
    std::vector<uint64_t> values;
    {
      std::lock_guard lock(mu);
      for (const Current& entry : current) {
        if (!entry.ref) continue;
        wants.emplace_back(entry.ref->extent(), buffer.data() + wants.size() * kBytes);
        values.push_back(entry.value);
      }
    }
    const auto outcomes = client->Read(wants);
    for (size_t i = 0; i < outcomes.size(); ++i) {
      if (outcomes[i] == Outcome::kChanged) ++changed;
      if (outcomes[i] != Outcome::kDone) continue;
      ++done;
      ASSERT_EQ(FirstWrong(wants[i].to, kBytes, values[i]), std::nullopt);
    }
  }
  stop = true;
  writer.join();
  EXPECT_GT(done, 100u);
  EXPECT_GT(changed, 10u);
}

}  // namespace
}  // namespace moonpool::rdma::test
