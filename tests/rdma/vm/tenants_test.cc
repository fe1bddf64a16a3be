// Two tenants of one server, each with its own user and session: what one learns is of no use to the
// other.  The server's commands know one tenant; its RDMA, which is the boundary, knows any number.
#include "server/rdma.h"
#include "storage/upkeep.h"
#include "tests/rdma/vm/raw_client.h"

namespace moonpool::rdma::test {
namespace {

constexpr uint64_t kBytes = 1 << 20;
constexpr uint64_t kEpoch = 7;

class VmTenants : public testing::Test {
 protected:
  VmTenants() : nics_(OpenNics()) {
    for (const char* name : {"first", "second"}) {
      storage::TenantOptions options;
      options.name = name;
      options.quota_bytes = 64 << 20;
      options.region_bytes = 16 << 20;
      tenants_.push_back(Must(storage::Tenant::Create(options), "tenant"));
    }
    server::Rdma::Options options;
    options.config = &config_;
    options.epoch = kEpoch;
    options.tenants = tenants_;
    options.on_queue_pairs = [](uint64_t, size_t) {};
    server_ = Must(server::Rdma::Start(options), "server");
    std::vector<storage::Tenant*> kept_up;
    for (const auto& tenant : tenants_) kept_up.push_back(tenant.get());
    upkeep_ = std::make_unique<storage::Upkeep>(kept_up);
  }
  ~VmTenants() override {
    server_->Stop();
    upkeep_ = nullptr;
    server_ = nullptr;
  }

  storage::ValueRef Put(size_t tenant, uint64_t value) {
    storage::WriteHandle handle = Must(tenants_[tenant]->Reserve(kBytes, 0), "Reserve");
    FillKnown(handle.data(), kBytes, value);
    return std::move(handle).Publish();
  }
  // A queue pair of a new session of the tenant.
  std::unique_ptr<RawClient> Client(size_t tenant) {
    const uint64_t session = ++sessions_;
    server_->BeginSession(session, *tenants_[tenant]);
    EndpointTarget target{kEpoch, session, server_->port(), Told(*nics_)};
    return std::make_unique<RawClient>(*nics_, target, *ParseToken(server_->NewToken(session)));
  }
  // Where a client is told that the value is, once its region is registered.
  static Message Learn(RawClient& client, const storage::ValueRef& value) {
    const storage::Extent& extent = value->extent();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    Message told;
    do {
      told = client.Ask(extent.region->id(), extent.offset);
      if (told.type == Message::kRegion) {
        told.address += extent.offset - told.offset;
        break;
      }
      usleep(1000);
    } while (std::chrono::steady_clock::now() < end);
    EXPECT_EQ(told.type, Message::kRegion);
    return told;
  }
  // Keys that somebody else learnt: one attempt costs its queue pair.
  Completion::Status Attempt(size_t tenant, WorkRequest::Kind kind, uint64_t address,
                             uint32_t key) {
    return Client(tenant)->Do(kind, address, key);
  }

  server::Config config_;
  std::unique_ptr<NicSet> nics_;
  std::vector<std::unique_ptr<storage::Tenant>> tenants_;
  std::unique_ptr<server::Rdma> server_;
  std::unique_ptr<storage::Upkeep> upkeep_;
  uint64_t sessions_ = 0;
};

TEST_F(VmTenants, KeysOfOneAreOfNoUseToTheOther) {
  using Kind = WorkRequest::Kind;
  const storage::ValueRef values[] = {Put(0, 1), Put(1, 2)};
  auto mine = Client(0);
  auto theirs = Client(1);
  const Message own = Learn(*mine, values[0]);
  const Message foreign = Learn(*theirs, values[1]);
  // Each reads its own.
  EXPECT_EQ(mine->Do(Kind::kRead, own.address, own.key), Completion::Status::kOk);
  EXPECT_EQ(FirstWrong(mine->data(), 4096, 1), std::nullopt);
  EXPECT_EQ(theirs->Do(Kind::kRead, foreign.address, foreign.key), Completion::Status::kOk);
  EXPECT_EQ(FirstWrong(theirs->data(), 4096, 2), std::nullopt);
  // Neither reads the other's, with the key that the other was told, nor with its own.
  EXPECT_EQ(Attempt(1, Kind::kRead, own.address, own.key), Refused(*nics_));
  EXPECT_EQ(Attempt(0, Kind::kRead, foreign.address, foreign.key), Refused(*nics_));
  EXPECT_EQ(Attempt(1, Kind::kRead, own.address, foreign.key), Refused(*nics_));
  // Nor the generations.
  EXPECT_EQ(Attempt(1, Kind::kRead, mine->accept().generations_address,
                    mine->accept().generations_key),
            Refused(*nics_));
  EXPECT_EQ(Attempt(1, Kind::kWrite, own.address, own.key), Refused(*nics_));
  EXPECT_EQ(FirstWrong(values[0]->data(), kBytes, 1), std::nullopt);
  // What was learnt is no less good for that in the right session.
  EXPECT_EQ(Attempt(0, Kind::kRead, own.address, own.key), Completion::Status::kOk);
}

TEST_F(VmTenants, RegionsOfOneAreUnknownToTheOther) {
  const storage::ValueRef value = Put(0, 1);
  const Message own = Learn(*Client(0), value);
  // The second has nothing: every number that the first has is none of its.
  EXPECT_EQ(Client(1)->Ask(own.id, own.offset).type, Message::kUnknown);
}

}  // namespace
}  // namespace moonpool::rdma::test
