#include "protocol/reply_buffer.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "tests/protocol/random.h"

namespace moonpool::protocol {
namespace {

using namespace std::string_literals;
using test::Random;

template <typename Write>
std::string Bytes(int resp, Write&& write) {
  ReplyBuffer out;
  out.set_resp(resp);
  write(out);
  return std::string(out.view());
}

TEST(ReplyBufferTest, WhatBothVersionsShare) {
  for (const int resp : {2, 3}) {
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Ok(); }), "+OK\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Simple("PONG"); }), "+PONG\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Simple(""); }), "+\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Integer(-42); }), ":-42\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Integer(INT64_MIN); }),
              ":-9223372036854775808\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Bulk(""); }), "$0\r\n\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Bulk({}); }), "$0\r\n\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Bulk("a\r\n\0b"s); }), "$5\r\na\r\n\0b\r\n"s);
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.BulkHeader(1ull << 40); }),
              "$1099511627776\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.BulkInteger(-7); }), "$2\r\n-7\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.BulkInteger(INT64_MIN); }),
              "$20\r\n-9223372036854775808\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Array(0); }), "*0\r\n");
    EXPECT_EQ(Bytes(resp, [](ReplyBuffer& out) { out.Array(1000); }), "*1000\r\n");
  }
}

TEST(ReplyBufferTest, WhatDependsOnTheVersion) {
  const struct {
    void (*write)(ReplyBuffer&);
    const char* resp2;
    const char* resp3;
  } cases[] = {
      {[](ReplyBuffer& out) { out.Null(); }, "$-1\r\n", "_\r\n"},
      {[](ReplyBuffer& out) { out.NullArray(); }, "*-1\r\n", "_\r\n"},
      {[](ReplyBuffer& out) { out.Map(3); }, "*6\r\n", "%3\r\n"},
      {[](ReplyBuffer& out) { out.Set(3); }, "*3\r\n", "~3\r\n"},
      {[](ReplyBuffer& out) { out.Boolean(true); }, ":1\r\n", "#t\r\n"},
      {[](ReplyBuffer& out) { out.Boolean(false); }, ":0\r\n", "#f\r\n"},
      {[](ReplyBuffer& out) { out.Double(0); }, "$1\r\n0\r\n", ",0\r\n"},
      {[](ReplyBuffer& out) { out.Double(1.5); }, "$3\r\n1.5\r\n", ",1.5\r\n"},
      {[](ReplyBuffer& out) { out.Double(-0.1); }, "$20\r\n-0.10000000000000001\r\n",
       ",-0.10000000000000001\r\n"},
      {[](ReplyBuffer& out) { out.Double(1e300); }, "$23\r\n1.0000000000000001e+300\r\n",
       ",1.0000000000000001e+300\r\n"},
      {[](ReplyBuffer& out) { out.Double(std::numeric_limits<double>::infinity()); },
       "$3\r\ninf\r\n", ",inf\r\n"},
      {[](ReplyBuffer& out) { out.Double(-std::numeric_limits<double>::infinity()); },
       "$4\r\n-inf\r\n", ",-inf\r\n"},
      {[](ReplyBuffer& out) { out.Verbatim("a\r\nb"); }, "$4\r\na\r\nb\r\n",
       "=8\r\ntxt:a\r\nb\r\n"},
      {[](ReplyBuffer& out) { out.Verbatim(""); }, "$0\r\n\r\n", "=4\r\ntxt:\r\n"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Bytes(2, c.write), c.resp2);
    EXPECT_EQ(Bytes(3, c.write), c.resp3);
  }
}

TEST(ReplyBufferTest, ErrorsStayOnOneLine) {
  EXPECT_EQ(Bytes(2, [](ReplyBuffer& out) { out.Error("ERR unknown command 'a\r\nb\nc'"); }),
            "-ERR unknown command 'a  b c'\r\n");
  EXPECT_EQ(Bytes(2, [](ReplyBuffer& out) { out.Error(""); }), "-\r\n");
}

TEST(ReplyBufferRandomTest, RepliesFollowEachOtherThroughGrowth) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < 200; ++round) {
    ReplyBuffer out;
    std::string expected;
    for (uint64_t n = random.Below(60); n > 0; --n) {
      const std::string text =
          random.Bytes(random.Chance(0.1) ? random.Below(5000) : random.Below(50));
      const auto value = static_cast<int64_t>(random.Next() >> random.Below(64));
      switch (random.Below(5)) {
        case 0:
          out.Bulk(text);
          expected += "$" + std::to_string(text.size()) + "\r\n" + text + "\r\n";
          break;
        case 1:
          out.Integer(value);
          expected += ":" + std::to_string(value) + "\r\n";
          break;
        case 2:
          out.Raw(text);
          expected += text;
          break;
        case 3:
          out.Null();
          expected += "$-1\r\n";
          break;
        case 4:
          out.Array(static_cast<size_t>(value));
          expected += "*" + std::to_string(value) + "\r\n";
          break;
      }
    }
    ASSERT_EQ(out.view(), expected);
  }
}

// --- the buffer underneath -----------------------------------------------------------------------

TEST(ByteBufferRandomTest, AgreesWithAString) {
  Random random;
  SCOPED_TRACE(random.Replay());
  ByteBuffer buffer;
  std::string model;
  for (int step = 0; step < 20000; ++step) {
    switch (random.Below(6)) {
      case 0: {
        const std::string bytes = random.Bytes(random.Below(200));
        buffer.Append(bytes);
        model += bytes;
        break;
      }
      case 1: {
        const std::string bytes = random.Bytes(random.Below(100));
        char* to = buffer.Reserve(bytes.size() + random.Below(100));
        if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
        buffer.Advance(bytes.size());
        model += bytes;
        break;
      }
      case 2: {
        const size_t position = random.Below(model.size() + 1);
        const size_t count = random.Below(model.size() - position + 1);
        buffer.Erase(position, count);
        model.erase(position, count);
        break;
      }
      case 3: {
        const size_t size = model.size() - random.Below(model.size() + 1) / 8;
        buffer.Truncate(size);
        model.resize(size);
        break;
      }
      case 4:
        buffer.ShrinkTo(random.Below(300));
        break;
      case 5:
        if (!random.Chance(0.02)) break;
        buffer.Clear();
        model.clear();
        break;
    }
    ASSERT_EQ(buffer.view(), model);
    ASSERT_EQ(buffer.empty(), model.empty());
    ASSERT_GE(buffer.capacity(), buffer.size());
  }
}

TEST(ByteBufferTest, GivesMemoryBackOnlyWhenItIsNotNeeded) {
  ByteBuffer buffer;
  buffer.Append(std::string(10000, 'x'));
  buffer.Truncate(100);
  buffer.ShrinkTo(50);
  EXPECT_GE(buffer.capacity(), 10000u);
  buffer.ShrinkTo(100);
  EXPECT_EQ(buffer.capacity(), 100u);
  EXPECT_EQ(buffer.view(), std::string(100, 'x'));
  buffer.Clear();
  buffer.ShrinkTo(0);
  EXPECT_EQ(buffer.capacity(), 0u);
  buffer.Append("again");
  EXPECT_EQ(buffer.view(), "again");
}

}  // namespace
}  // namespace moonpool::protocol
