// Who gets a queue pair, and who does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rdma/raw_client.h"
#include "tests/rdma/session_rig.h"

namespace moonpool::rdma {
namespace {

using test::FakeTenant;
using test::RawClient;
using test::SessionRig;
using testing::HasSubstr;

class Admission : public testing::Test {
 protected:
  Admission() : tenant_(*rig_.server_nics), raw_(rig_) {
    rig_.service->BeginSession(7, tenant_.memory);
    rig_.service->BeginSession(8, tenant_.memory);
  }
  ConnectRequest Good(uint64_t session) {
    ConnectRequest request;
    request.epoch = SessionRig::kEpoch;
    request.session = session;
    request.token = rig_.service->IssueToken(session);
    return request;
  }
  SessionRig rig_{1};
  FakeTenant tenant_;
  RawClient raw_;
};

TEST_F(Admission, WithAGoodToken) {
  const ConnectionEvent event = raw_.Ask(Encode(Good(7)));
  ASSERT_EQ(event.kind, ConnectionEvent::Kind::kEstablished);
  const auto accept = DecodeAccept(event.private_data);
  ASSERT_TRUE(accept);
  EXPECT_EQ(accept->epoch, SessionRig::kEpoch);
  EXPECT_EQ(accept->generations_bytes, tenant_.generations.size() * 8);
  // It may be used before the server has counted it.
  EXPECT_TRUE(rig_.WaitFor([&] { return rig_.service->counters().accepted == 1; }));
}

TEST_F(Admission, WhatItOpensCannotBeWritten) {
  tenant_.Show(4);
  const TenantMemory::Reach region = *tenant_.memory->Find(4, 0, 0);
  const auto attempt = [&](WorkRequest::Kind kind, bool generations) {
    const auto accept = DecodeAccept(raw_.Ask(Encode(Good(7))).private_data);
    return raw_.Do(kind, *accept, generations ? accept->generations_address : region.address,
                   generations ? accept->generations_key : region.key);
  };
  EXPECT_EQ(attempt(WorkRequest::Kind::kRead, false), Completion::Status::kOk);
  EXPECT_EQ(attempt(WorkRequest::Kind::kRead, true), Completion::Status::kOk);
  EXPECT_EQ(attempt(WorkRequest::Kind::kWrite, false), Completion::Status::kRemoteRefused);
  EXPECT_EQ(attempt(WorkRequest::Kind::kWrite, true), Completion::Status::kRemoteRefused);
}

TEST_F(Admission, AnotherTenantsMemoryCannotBeRead) {
  FakeTenant other(*rig_.server_nics);
  other.Show(9);
  const TenantMemory::Reach region = *other.memory->Find(9, 0, 0);
  const auto accept = DecodeAccept(raw_.Ask(Encode(Good(7))).private_data);
  EXPECT_EQ(raw_.Do(WorkRequest::Kind::kRead, *accept, region.address, region.key),
            Completion::Status::kRemoteRefused);
}

TEST_F(Admission, ATokenIsGoodOnce) {
  const std::string request = Encode(Good(7));
  EXPECT_EQ(raw_.Ask(request).kind, ConnectionEvent::Kind::kEstablished);
  EXPECT_EQ(raw_.Refused(request), RejectReason::kUsedToken);
}

TEST_F(Admission, WrongTokens) {
  ConnectRequest request = Good(7);
  request.token[3] ^= 1;
  EXPECT_EQ(raw_.Refused(Encode(request)), RejectReason::kUnknownToken);
  // Stolen by another session.
  request = Good(7);
  request.session = 8;
  EXPECT_EQ(raw_.Refused(Encode(request)), RejectReason::kWrongSession);
  // Of a session that is over.
  request = Good(7);
  rig_.service->EndSession(7);
  EXPECT_EQ(raw_.Refused(Encode(request)), RejectReason::kUnknownToken);
  EXPECT_EQ(rig_.service->counters().rejected, 3u);
  std::lock_guard lock(rig_.mu);
  EXPECT_THAT(rig_.log.back(), HasSubstr("the token is not one of this server's"));
}

TEST_F(Admission, AnotherEpoch) {
  ConnectRequest request = Good(7);
  ++request.epoch;
  EXPECT_EQ(raw_.Refused(Encode(request)), RejectReason::kWrongEpoch);
}

TEST_F(Admission, AnotherVersion) {
  ConnectRequest request = Good(7);
  request.oldest_version = request.newest_version = kNewestVersion + 1;
  EXPECT_EQ(raw_.Refused(Encode(request)), RejectReason::kVersion);
  request = Good(7);
  request.newest_version = kNewestVersion + 5;
  const ConnectionEvent event = raw_.Ask(Encode(request));
  ASSERT_EQ(event.kind, ConnectionEvent::Kind::kEstablished);
  EXPECT_EQ(DecodeAccept(event.private_data)->version, kNewestVersion);
}

TEST_F(Admission, WhatIsNoRequest) {
  EXPECT_EQ(raw_.Refused("hello"), RejectReason::kBadRequest);
  EXPECT_EQ(raw_.Refused(""), RejectReason::kBadRequest);
}

TEST(AdmissionLimits, AreTheSmallerOfBoth) {
  ServiceOptions options;
  options.limits = {64, 16, 4};
  SessionRig rig(1, options);
  FakeTenant tenant(*rig.server_nics);
  rig.service->BeginSession(7, tenant.memory);
  RawClient raw(rig);
  ConnectRequest request;
  request.epoch = SessionRig::kEpoch;
  request.session = 7;
  request.token = rig.service->IssueToken(7);
  request.limits = {256, 8, 16};
  const auto accept = DecodeAccept(raw.Ask(Encode(request)).private_data);
  ASSERT_TRUE(accept);
  EXPECT_EQ(accept->limits.depth, 64);
  EXPECT_EQ(accept->limits.inline_bytes, 8);
  EXPECT_EQ(accept->limits.reads, 4);
}

TEST(AdmissionLimits, TokensExpire) {
  ServiceOptions options;
  options.token_lifetime_ms = 0;
  SessionRig rig(1, options);
  FakeTenant tenant(*rig.server_nics);
  auto client = rig.Client(7, tenant);
  const Status status = client->Open();
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("refused: the token has expired"));
}

TEST(AdmissionLimits, QueuePairsOfASession) {
  ServiceOptions options;
  options.lanes_per_session = 1;
  SessionRig rig(2, options);
  FakeTenant tenant(*rig.server_nics);
  auto client = rig.Client(7, tenant);
  ASSERT_TRUE(client->Open());
  size_t open = 0;
  std::string why;
  EXPECT_TRUE(rig.WaitFor([&] {
    client->Pump();
    open = 0;
    why.clear();
    for (const LaneInfo& lane : client->lanes()) {
      open += lane.open ? 1 : 0;
      why += lane.why;
    }
    return !why.empty();  // the answer to the other one has come
  }));
  EXPECT_EQ(open, 1u);
  EXPECT_EQ(why, "refused: too many queue pairs");
}

TEST(AdmissionLimits, QueuePairsAtAll) {
  ServiceOptions options;
  options.lanes = 1;
  SessionRig rig(1, options);
  FakeTenant tenant(*rig.server_nics);
  auto one = rig.Client(7, tenant);
  ASSERT_TRUE(one->Open());
  auto other = rig.Client(8, tenant);
  EXPECT_FALSE(other->Open());
  one = nullptr;
  ASSERT_TRUE(rig.WaitClosed(7));
  other = rig.Client(8, tenant);
  EXPECT_TRUE(other->Open());
}

}  // namespace
}  // namespace moonpool::rdma
