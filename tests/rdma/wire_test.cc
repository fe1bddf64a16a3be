#include "rdma/wire.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/protocol/random.h"

namespace moonpool::rdma {
namespace {

TEST(RdmaWire, RequestsComeBackAsTheyWere) {
  ConnectRequest request;
  request.epoch = 0x1122334455667788;
  request.session = 99;
  request.token[0] = 1;
  request.token[15] = 255;
  request.limits = {300, 220, 12};
  std::string bytes = Encode(request);
  EXPECT_LE(bytes.size(), kMaxRequestBytes);
  bytes.resize(kMaxRequestBytes);  // as they arrive
  const auto decoded = DecodeRequest(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->epoch, request.epoch);
  EXPECT_EQ(decoded->session, request.session);
  EXPECT_EQ(decoded->token, request.token);
  EXPECT_EQ(decoded->limits.depth, 300);
  EXPECT_EQ(decoded->limits.inline_bytes, 220);
  EXPECT_EQ(decoded->limits.reads, 12);
}

TEST(RdmaWire, AcceptancesComeBackAsTheyWere) {
  ConnectAccept accept;
  accept.nic = 3;
  accept.epoch = 7;
  accept.limits = {64, 0, 1};
  accept.generations_address = 0x7f0000001000;
  accept.generations_bytes = 8 << 20;
  accept.generations_key = 0xdeadbeef;
  std::string bytes = Encode(accept);
  bytes.resize(kMaxAcceptBytes);
  const auto decoded = DecodeAccept(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->nic, 3);
  EXPECT_EQ(decoded->epoch, 7u);
  EXPECT_EQ(decoded->limits.depth, 64);
  EXPECT_EQ(decoded->generations_address, accept.generations_address);
  EXPECT_EQ(decoded->generations_bytes, accept.generations_bytes);
  EXPECT_EQ(decoded->generations_key, accept.generations_key);
}

TEST(RdmaWire, RefusalsSayWhy) {
  std::string bytes = Encode(ConnectReject{RejectReason::kUsedToken, 1, 2});
  bytes.resize(kMaxRejectBytes);
  const auto decoded = DecodeReject(bytes);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->reason, RejectReason::kUsedToken);
  EXPECT_EQ(decoded->newest_version, 2);
  EXPECT_NE(RejectText(static_cast<RejectReason>(250)), "");
}

TEST(RdmaWire, WhatIsNotOfTheProtocolIsRefused) {
  EXPECT_FALSE(DecodeRequest(""));
  EXPECT_FALSE(DecodeRequest(std::string(kMaxRequestBytes, '\0')));
  EXPECT_FALSE(DecodeAccept(std::string(kMaxAcceptBytes, '\xff')));
  EXPECT_FALSE(DecodeReject(Encode(ConnectRequest{}).substr(0, 7)));
  ConnectRequest backwards;
  backwards.oldest_version = 3;
  backwards.newest_version = 2;
  EXPECT_FALSE(DecodeRequest(Encode(backwards)));
  ConnectRequest without_room;
  without_room.limits.depth = 0;
  EXPECT_FALSE(DecodeRequest(Encode(without_room)));
  ConnectAccept newer;
  newer.version = kNewestVersion + 1;
  EXPECT_FALSE(DecodeAccept(Encode(newer)));
}

TEST(RdmaWire, MessagesStayWithinWhatTheyAreAbout) {
  const auto decode = [](const Message& message) {
    return DecodeMessage({reinterpret_cast<const char*>(&message), sizeof(message)});
  };
  Message message;
  message.type = Message::kRegion;
  message.offset = 4096;
  message.length = 4096;
  message.total = 8192;
  EXPECT_TRUE(decode(message));
  message.length = 4097;
  EXPECT_FALSE(decode(message));
  message.length = UINT64_MAX;
  EXPECT_FALSE(decode(message));
  message = {};
  EXPECT_FALSE(decode(message)) << "type 0";
  message.type = Message::kBufferDropped + 1;
  EXPECT_FALSE(decode(message));
  EXPECT_FALSE(DecodeMessage("short"));
}

TEST(RdmaWire, RandomBytesDoNoHarm) {
  moonpool::test::Random random;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = random.Bytes(random.Below(80));
    // Some with the right beginning.
    if (random.Chance(0.5) && bytes.size() >= 4) bytes.replace(0, 4, Encode(ConnectReject{}), 0, 4);
    if (const auto request = DecodeRequest(bytes)) {
      EXPECT_GT(request->limits.depth, 0);
    }
    (void)DecodeAccept(bytes);
    (void)DecodeReject(bytes);
    if (const auto message = DecodeMessage(bytes)) {
      EXPECT_LE(message->offset + message->length, message->total);
    }
  }
}

TEST(RdmaWire, TokensAsText) {
  Token token{};
  token[0] = 0xab;
  token[15] = 0x01;
  EXPECT_EQ(TokenText(token), "ab000000000000000000000000000001");
  EXPECT_EQ(ParseToken(TokenText(token)), token);
  EXPECT_EQ(ParseToken("ab"), std::nullopt);
  EXPECT_EQ(ParseToken("zz000000000000000000000000000001"), std::nullopt);
}

}  // namespace
}  // namespace moonpool::rdma
