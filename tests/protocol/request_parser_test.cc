#include "protocol/request_parser.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tests/protocol/parser_driver.h"
#include "tests/protocol/random.h"

namespace moonpool::protocol {

static void PrintTo(const Parsed& parsed, std::ostream* out) {
  *out << testing::PrintToString(parsed.commands) << " error '" << parsed.error << "'";
}

namespace {

using namespace std::string_literals;
using Commands = std::vector<std::vector<std::string>>;
using test::Random;

std::string Frame(const std::vector<std::string>& arguments) {
  std::string frame = "*" + std::to_string(arguments.size()) + "\r\n";
  for (const std::string& argument : arguments) {
    frame += "$" + std::to_string(argument.size()) + "\r\n" + argument + "\r\n";
  }
  return frame;
}

Parsed Ok(Commands commands) {
  return {std::move(commands), ""};
}

Parsed Parse(std::string_view input, const ParserLimits& limits = {}) {
  const Parsed slow = ParseAtOnce(input, limits, false);
  EXPECT_EQ(slow, ParseAtOnce(input, limits, true)) << "with and without ParseWhole: " << input;
  return slow;
}

std::string ErrorOf(std::string_view input, const ParserLimits& limits = {}) {
  return Parse(input, limits).error;
}

// --- what comes out ------------------------------------------------------------------------------

TEST(RequestParserTest, ArraysOfBulkStrings) {
  EXPECT_EQ(Parse("*1\r\n$4\r\nPING\r\n"), Ok({{"PING"}}));
  EXPECT_EQ(Parse("*2\r\n$3\r\nGET\r\n$0\r\n\r\n"), Ok({{"GET", ""}}));
  EXPECT_EQ(Parse("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n*1\r\n$1\r\nx\r\r\n"),
            Ok({{"SET", "k", "*1\r\n$1\r\nx\r"}}));
  // Every byte value, and the 12-byte header forms on both sides of ParseWhole's seven digits.
  std::string all(256, '\0');
  for (int i = 0; i < 256; ++i) all[static_cast<size_t>(i)] = static_cast<char>(i);
  EXPECT_EQ(Parse(Frame({"ECHO", all})), Ok({{"ECHO", all}}));
  const std::string million(1234567, 'm');
  EXPECT_EQ(Parse(Frame({"SET", "k", million})), Ok({{"SET", "k", million}}));
  const std::string ten_million(12345678, 'M');
  EXPECT_EQ(Parse(Frame({"SET", "k", ten_million})), Ok({{"SET", "k", ten_million}}));
}

TEST(RequestParserTest, ManyArguments) {
  for (const size_t count : {9, 10, 1023, 1024, 1025, 5000}) {
    std::vector<std::string> arguments(count, "a");
    arguments[count - 1] = "last";
    EXPECT_EQ(Parse(Frame(arguments)), Ok({arguments})) << count;
  }
}

TEST(RequestParserTest, EmptyAndNegativeArraysAreIgnored) {
  for (const char* empty :
       {"*0\r\n", "*-1\r\n", "*-9223372036854775808\r\n", "\r\n", "\n", "  \r\n"}) {
    EXPECT_EQ(Parse(empty), Ok({})) << empty;
    EXPECT_EQ(Parse(std::string(empty) + "*1\r\n$4\r\nPING\r\n" + empty + "PING\r\n"),
              Ok({{"PING"}, {"PING"}}))
        << empty;
  }
}

TEST(RequestParserTest, PipelinesOfBothKinds) {
  const std::string set = Frame({"SET", "k", "v"});
  EXPECT_EQ(Parse(set + "GET k\r\n" + set + set + "\r\nPING\n" + Frame({"GET", "k"})),
            Ok({{"SET", "k", "v"},
                {"GET", "k"},
                {"SET", "k", "v"},
                {"SET", "k", "v"},
                {"PING"},
                {"GET", "k"}}));
  // What came before an error still counts.
  EXPECT_EQ(Parse(set + "*1\r\n:1\r\n" + set),
            (Parsed{{{"SET", "k", "v"}}, "Protocol error: expected '$', got ':'"}));
}

TEST(RequestParserTest, TheByteBehindCarriageReturnIsNotLookedAt) {
  // As Redis; ParseWhole and Parse must agree on it.
  EXPECT_EQ(Parse("*1\rX$4\rYPINGZZ*1\r\n$4\r\nPONG\r\n"), Ok({{"PING"}, {"PONG"}}));
}

TEST(RequestParserTest, InlineCommandsAreUnquotedLikeRedisCliWritesThem) {
  const struct {
    std::string line;
    std::vector<std::string> arguments;
  } cases[] = {
      {"PING", {"PING"}},
      {"  SET\t k   v  ", {"SET", "k", "v"}},
      {"SET k \"\"", {"SET", "k", ""}},
      {"SET k ''", {"SET", "k", ""}},
      {R"(SET k "a b")", {"SET", "k", "a b"}},
      {R"(SET k 'a b')", {"SET", "k", "a b"}},
      {R"(SET k "\n\r\t\b\a\\\"\q")", {"SET", "k", "\n\r\t\b\a\\\"q"}},
      {R"(SET k "\x00\x41\xff\xFf")", {"SET", "k", "\0A\xff\xff"s}},
      {R"(SET k "\x4g\x")", {"SET", "k", "x4gx"}},
      {R"(SET k '\n\x41\\ ')", {"SET", "k", R"(\n\x41\\ )"}},
      {R"(SET k 'it\'s')", {"SET", "k", "it's"}},
      {R"(SET k "it's")", {"SET", "k", "it's"}},
      {R"(SET k 'say "hi"')", {"SET", "k", "say \"hi\""}},
      {R"(pre"fix ed" x)", {"prefix ed", "x"}},
      {R"(back\slash)", {"back\\slash"}},
      {"$5 :1 +OK -ERR", {"$5", ":1", "+OK", "-ERR"}},
      {"a\x80\xff b", {"a\x80\xff", "b"}},
      {"a\vb\fc", {"a", "b", "c"}},
      {"GET k\0 ignored"s, {"GET", "k"}},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Parse(c.line + "\r\n"), Ok({c.arguments})) << c.line;
    EXPECT_EQ(Parse(c.line + "\n"), Ok({c.arguments})) << c.line;
  }
}

TEST(RequestParserTest, UnbalancedQuotes) {
  for (const char* line : {"\"", "'", "SET k \"a", "SET k 'a", R"(SET k "a\")", R"(SET k 'a\')",
                           R"(SET k "a"b)", R"(SET k 'a'b)", R"(SET k "a"'b')", R"(SET k "\x41)"}) {
    EXPECT_EQ(ErrorOf(std::string(line) + "\r\n"), "Protocol error: unbalanced quotes in request")
        << line;
  }
}

TEST(RequestParserTest, InlineTextDoesNotLeakIntoTheNextFrame) {
  RequestParser parser;
  const ParserLimits limits;
  ASSERT_EQ(parser.Parse("SET key value\r\n", limits), RequestParser::Event::kCommand);
  ASSERT_EQ(parser.frame_bytes(), 15u);
  ASSERT_TRUE(parser.is_inline());
  parser.NextFrame();
  EXPECT_TRUE(parser.InlineText().empty());
  ASSERT_EQ(parser.Parse("*1\r\n$4\r\nPING\r\n", limits), RequestParser::Event::kCommand);
  EXPECT_FALSE(parser.is_inline());
  ASSERT_EQ(parser.arguments().size(), 1u);
  EXPECT_EQ(parser.arguments()[0].offset, 8u);
  EXPECT_EQ(parser.arguments()[0].size, 4u);
}

// --- errors and limits ---------------------------------------------------------------------------

TEST(RequestParserTest, ErrorTextsAreThoseOfRedis) {
  const struct {
    std::string input;
    std::string error;
  } cases[] = {
      {"*\r\n", "Protocol error: invalid multibulk length"},
      {"*x\r\n", "Protocol error: invalid multibulk length"},
      {"*+1\r\n", "Protocol error: invalid multibulk length"},
      {"*01\r\n", "Protocol error: invalid multibulk length"},
      {"* 1\r\n", "Protocol error: invalid multibulk length"},
      {"*1 \r\n", "Protocol error: invalid multibulk length"},
      {"*-0\r\n", "Protocol error: invalid multibulk length"},
      {"*1048577\r\n", "Protocol error: invalid multibulk length"},
      {"*9223372036854775808\r\n", "Protocol error: invalid multibulk length"},
      {"*18446744073709551617\r\n", "Protocol error: invalid multibulk length"},
      {"*1\r\n:1\r\n", "Protocol error: expected '$', got ':'"},
      {"*2\r\n$3\r\nGET\r\nk\r\n", "Protocol error: expected '$', got 'k'"},
      {"*2\r\n$3\r\nGETT\r\n$1\r\nk\r\n", "Protocol error: expected '$', got '\n'"},
      {"*1\r\n$\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$x\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$03\r\nGET\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$9223372036854775807\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$99999999999999999999\r\n", "Protocol error: invalid bulk length"},
      {"*1\r\n$18446744073709551615\r\n", "Protocol error: invalid bulk length"},
      {"*" + std::string(70000, '1'), "Protocol error: too big mbulk count string"},
      {"*1\r\n$" + std::string(70000, '1'), "Protocol error: too big bulk count string"},
      {std::string(70000, 'a'), "Protocol error: too big inline request"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(ErrorOf(c.input), c.error) << c.input.substr(0, 80);
  }
}

TEST(RequestParserTest, LimitsAreInclusive) {
  ParserLimits limits;
  limits.max_bulk_bytes = 5;
  limits.max_arguments = 3;
  EXPECT_EQ(Parse(Frame({"a", "b", "12345"}), limits), Ok({{"a", "b", "12345"}}));
  EXPECT_EQ(ErrorOf(Frame({"a", "b", "123456"}), limits), "Protocol error: invalid bulk length");
  EXPECT_EQ(ErrorOf(Frame({"a", "b", "c", "d"}), limits),
            "Protocol error: invalid multibulk length");
}

TEST(RequestParserTest, StrangersGetSmallLimits) {
  ParserLimits limits;
  limits.authenticated = false;
  std::vector<std::string> ten(10, "a");
  ten[9].assign(16384, 'x');
  EXPECT_EQ(Parse(Frame(ten), limits), Ok({ten}));
  ten[9] += 'x';
  EXPECT_EQ(ErrorOf(Frame(ten), limits), "Protocol error: unauthenticated bulk length");
  EXPECT_EQ(ErrorOf(Frame(std::vector<std::string>(11, "a")), limits),
            "Protocol error: unauthenticated multibulk length");
  // The error comes before the bytes do, and a body is no way round it.
  limits.body_threshold = 100;
  EXPECT_EQ(ErrorOf("*1\r\n$16385\r\n", limits), "Protocol error: unauthenticated bulk length");
  EXPECT_EQ(ErrorOf("*11\r\n", limits), "Protocol error: unauthenticated multibulk length");
}

TEST(RequestParserTest, LineLimitsDoNotDependOnHowTheBytesArrive) {
  ParserLimits limits;
  limits.max_inline_bytes = 100;
  for (const size_t size : {99, 100, 101, 102, 103, 200}) {
    const std::string line = std::string(size, 'a') + "\n";
    const Parsed at_once = Parse(line, limits);
    EXPECT_EQ(at_once.error.empty(), size <= 100) << size;
    ParserDriver bytewise(limits, true);
    for (const char c : line) bytewise.Feed({&c, 1});
    EXPECT_EQ(bytewise.parsed(), at_once) << size;
  }
  constexpr size_t kMaxHeader = 64 * 1024;
  for (const std::string before : {"", "*1\r\n"}) {
    for (const size_t size : {kMaxHeader - 1, kMaxHeader, kMaxHeader + 1, kMaxHeader + 2}) {
      std::string line(size, '1');
      line[0] = before.empty() ? '*' : '$';
      const Parsed at_once = Parse(before + line + "\r\n");
      ParserDriver driver({}, true);
      driver.Feed(before);
      for (size_t i = 0; i < line.size(); i += 1000) driver.Feed(line.substr(i, 1000));
      driver.Feed("\r");
      driver.Feed("\n");
      EXPECT_EQ(driver.parsed(), at_once) << size;
      EXPECT_EQ(at_once.error.find("too big") != std::string::npos, size > kMaxHeader) << size;
    }
  }
}

TEST(RequestParserTest, CountsThatNeverArriveReserveNothing) {
  RequestParser parser;
  const ParserLimits limits;
  ASSERT_EQ(parser.Parse("*1048576\r\n$536870912\r\n", limits), RequestParser::Event::kNeedMore);
  EXPECT_LE(parser.arguments().capacity() * sizeof(RequestParser::Argument), 64u * 1024);
  // The fast path calls back for what is there, not for what is promised.
  size_t count = 0, calls = 0;
  EXPECT_EQ(RequestParser::ParseWhole("*1024\r\n$1\r\na\r\n$1\r\nb\r\n", limits, &count,
                                      [&](std::string_view) { ++calls; }),
            0u);
  EXPECT_EQ(calls, 2u);
}

// --- bodies --------------------------------------------------------------------------------------

TEST(RequestParserTest, LongBulkStringsBecomeBodies) {
  ParserLimits limits;
  limits.body_threshold = 4;
  RequestParser parser;
  // The buffer holds three bytes of the body; the caller cuts them out and goes on without them.
  ASSERT_EQ(parser.Parse("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\nabc", limits),
            RequestParser::Event::kBody);
  EXPECT_EQ(parser.arguments().size(), 2u);
  EXPECT_EQ(parser.body_bytes(), 6u);
  EXPECT_EQ(parser.frame_bytes(), 24u);
  EXPECT_FALSE(parser.idle());
  parser.BodyTaken();
  const std::string head = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$6\r\n";
  EXPECT_EQ(parser.Parse(head, limits), RequestParser::Event::kNeedMore);
  EXPECT_EQ(parser.Parse(head + "\r", limits), RequestParser::Event::kNeedMore);
  ASSERT_EQ(parser.Parse(head + "\r\n*1\r\n", limits), RequestParser::Event::kCommand);
  EXPECT_EQ(parser.frame_bytes(), head.size() + 2);
  ASSERT_EQ(parser.arguments().size(), 3u);
  EXPECT_EQ(parser.arguments()[1].body, RequestParser::Argument::kInline);
  EXPECT_EQ(parser.arguments()[2].body, 0u);
  EXPECT_EQ(parser.arguments()[2].size, 6u);
  parser.NextFrame();
  EXPECT_TRUE(parser.idle());
}

TEST(RequestParserTest, BodiesAreNumberedPerFrame) {
  ParserLimits limits;
  limits.body_threshold = 4;
  const std::vector<std::string> arguments = {"MSET", "key1", "v", "k", "value two", "", "12345"};
  ParserDriver driver(limits, true);
  driver.Feed(Frame(arguments) + Frame(arguments));
  EXPECT_EQ(driver.parsed(), Ok({arguments, arguments}));
  EXPECT_EQ(driver.bodies_seen(), 8u);
  EXPECT_EQ(driver.whole_frames(), 0u);
}

TEST(RequestParserTest, TheFastPathLeavesBodiesAlone) {
  ParserLimits limits;
  limits.body_threshold = 5;
  const std::string frame = Frame({"GET", "12345"});
  size_t count = 0;
  const auto ignore = [](std::string_view) {};
  EXPECT_EQ(RequestParser::ParseWhole(frame, limits, &count, ignore), 0u);
  limits.body_threshold = 6;
  EXPECT_EQ(RequestParser::ParseWhole(frame, limits, &count, ignore), frame.size());
  EXPECT_EQ(count, 2u);
}

// --- fragmentation -------------------------------------------------------------------------------

const std::vector<std::string>& Corpus() {
  static const std::vector<std::string> corpus = {
      "*1\r\n$4\r\nPING\r\n", "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\nhello\r\nworld\r\n",
      "*0\r\n*-1\r\n*1\r\n$0\r\n\r\n",
      "SET k \"a \\x41 b\"\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\n\r\nGET 'x y'\r\n",
      // A header longer than the next one's: what was searched of one must not count for the next.
      Frame(std::vector<std::string>(12, "a")) + "*1\r\n$4\r\nPING\r\nA\nB\n" +
          Frame(std::vector<std::string>(100, "b")) + "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
      Frame({"MSET", "a", "12345678901234567890", "b", "", "c", "\r\n$5\r\n*1\r\n"}) +
          Frame({"GET", "a"}),
      "*1\rX$4\rYPINGZZPING\r\n", "*2\r\n$3\r\nGET\r\n:1\r\n", "*1\r\n$-5\r\n",
      "*1\r\n$4\r\nPING\r\n*99999999999\r\n", "GET \"unbalanced\r\nPING\r\n",
      "*3\r\n$5\r\nhello\r\n$5\r\nworld\r\n",  // unfinished
  };
  return corpus;
}

TEST(RequestParserFragmentTest, EveryPlaceToSplitGivesTheSame) {
  for (const std::string& input : Corpus()) {
    for (const size_t threshold : {SIZE_MAX, size_t{0}, size_t{1}, size_t{4}, size_t{20}}) {
      ParserLimits limits;
      limits.body_threshold = threshold;
      const Parsed expected = ParseAtOnce(input, {});
      for (const bool fast_path : {false, true}) {
        SCOPED_TRACE(testing::Message() << "threshold " << threshold << " fast path " << fast_path
                                        << " input " << testing::PrintToString(input));
        EXPECT_EQ(ParseAtOnce(input, limits, fast_path), expected);
        for (size_t split = 0; split <= input.size(); ++split) {
          ParserDriver driver(limits, fast_path);
          driver.Feed(std::string_view(input).substr(0, split));
          driver.Feed(std::string_view(input).substr(split));
          ASSERT_EQ(driver.parsed(), expected) << "split at " << split;
        }
        for (size_t step = 1; step < 8; ++step) {
          ParserDriver driver(limits, fast_path);
          for (size_t i = 0; i < input.size(); i += step) {
            driver.Feed(std::string_view(input).substr(i, step));
          }
          ASSERT_EQ(driver.parsed(), expected) << "in steps of " << step;
        }
      }
    }
  }
}

TEST(RequestParserFragmentTest, IdleMeansThatNothingOfTheNextFrameWasSeen) {
  // The server tries ParseWhole whenever the parser is idle, and never calls NextFrame() after it.
  const ParserLimits limits;
  for (const char* start : {"*", "*1", "*100", "*100\r", "GET", "$", "*1\r\n", "*1\r\n$"}) {
    RequestParser parser;
    EXPECT_TRUE(parser.idle());
    ASSERT_EQ(parser.Parse("", limits), RequestParser::Event::kNeedMore);
    EXPECT_TRUE(parser.idle());
    ASSERT_EQ(parser.Parse(start, limits), RequestParser::Event::kNeedMore);
    EXPECT_FALSE(parser.idle()) << start;
  }
}

TEST(RequestParserFragmentTest, WorkIsLinearHoweverTheBytesArrive) {
  // A quadratic search would look at 2^30 bytes or more for each of these and take minutes.
  ParserLimits limits;
  limits.max_inline_bytes = SIZE_MAX;
  for (const char* start : {"", "*1\r\n$1000000\r\n"}) {
    std::string frame = start;
    frame.reserve(300'000);
    RequestParser parser;
    while (frame.size() < 300'000) {
      frame += 'a';
      ASSERT_EQ(parser.Parse(frame, limits), RequestParser::Event::kNeedMore);
    }
  }
}

// --- random --------------------------------------------------------------------------------------

std::string RandomStream(Random& random) {
  std::string stream;
  for (uint64_t frames = random.Between(1, 6); frames > 0; --frames) {
    if (random.Chance(0.15)) {
      stream +=
          random.Text(random.Below(20), "abc \t\"'\\x1") + (random.Chance(0.5) ? "\r\n" : "\n");
      continue;
    }
    std::vector<std::string> arguments(random.Chance(0.1) ? random.Below(30) : random.Below(5));
    for (std::string& argument : arguments) {
      argument =
          random.Text(random.Chance(0.1) ? random.Below(300) : random.Below(12), "ab\r\n$*1");
    }
    stream += Frame(arguments);
  }
  return stream;
}

void Damage(Random& random, std::string& stream) {
  for (uint64_t hits = random.Below(4); hits > 0 && !stream.empty(); --hits) {
    const size_t at = random.Below(stream.size());
    const char byte = random.Pick("0123456789*$\r\n-+ \"'\\x\0\xff"s);
    switch (random.Below(4)) {
      case 0:
        stream[at] = byte;
        break;
      case 1:
        stream.insert(at, 1, byte);
        break;
      case 2:
        stream.erase(at, random.Between(1, 3));
        break;
      case 3:
        stream.resize(at);
        break;
    }
  }
}

ParserLimits RandomLimits(Random& random) {
  ParserLimits limits;
  if (random.Chance(0.3)) limits.max_bulk_bytes = static_cast<int64_t>(random.Below(20));
  if (random.Chance(0.3)) limits.max_arguments = static_cast<int64_t>(random.Below(6));
  if (random.Chance(0.3)) limits.max_inline_bytes = random.Below(20);
  if (random.Chance(0.5)) limits.body_threshold = random.Below(20);
  limits.authenticated = random.Chance(0.8);
  return limits;
}

TEST(RequestParserRandomTest, WhatIsWrittenIsRead) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < 2000; ++round) {
    Commands commands;
    std::string stream;
    for (uint64_t n = random.Between(1, 5); n > 0; --n) {
      std::vector<std::string> arguments(random.Between(1, 6));
      for (std::string& argument : arguments) argument = random.Bytes(random.Below(40));
      stream += Frame(arguments);
      commands.push_back(std::move(arguments));
    }
    ParserLimits limits;
    if (random.Chance(0.5)) limits.body_threshold = random.Below(40);
    ParserDriver driver(limits, true);
    for (size_t i = 0; i < stream.size();) {
      const size_t size = random.Between(1, 30);
      driver.Feed(std::string_view(stream).substr(i, size));
      i += size;
    }
    ASSERT_EQ(driver.parsed(), Ok(commands));
    ASSERT_TRUE(driver.between_frames());
  }
}

TEST(RequestParserRandomTest, DamagedStreamsGiveTheSameInAnyFragments) {
  Random random;
  SCOPED_TRACE(random.Replay());
  for (int round = 0; round < 20000; ++round) {
    std::string stream = RandomStream(random);
    Damage(random, stream);
    const ParserLimits limits = RandomLimits(random);
    const Parsed expected = ParseAtOnce(stream, limits, false);
    ASSERT_EQ(ParseAtOnce(stream, limits, true), expected) << testing::PrintToString(stream);
    ParserDriver driver(limits, random.Chance(0.7));
    for (size_t i = 0; i < stream.size();) {
      const size_t size = random.Between(1, random.Chance(0.5) ? 4 : 40);
      driver.Feed(std::string_view(stream).substr(i, size));
      i += size;
    }
    ASSERT_EQ(driver.parsed(), expected) << testing::PrintToString(stream);
  }
}

// Whatever ParseWhole accepts, Parse must accept too, with the same arguments and length.
void ExpectAgreement(std::string_view bytes, const ParserLimits& limits, size_t* accepted) {
  // The copy ends where the block ends: a read past it is AddressSanitizer's to find.
  const std::unique_ptr<char[]> copy(new char[bytes.size()]);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  const std::string_view input(copy.get(), bytes.size());
  std::vector<std::string_view> arguments;
  size_t count = 0;
  const size_t used = RequestParser::ParseWhole(
      input, limits, &count, [&](std::string_view text) { arguments.push_back(text); });
  if (used == 0) return;
  ++*accepted;
  RequestParser parser;
  ASSERT_EQ(parser.Parse(input, limits), RequestParser::Event::kCommand);
  ASSERT_EQ(parser.frame_bytes(), used);
  ASSERT_EQ(parser.arguments().size(), count);
  ASSERT_EQ(arguments.size(), count);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(input.substr(parser.arguments()[i].offset, parser.arguments()[i].size), arguments[i]);
  }
}

TEST(RequestParserRandomTest, TheFastPathAgreesOnEverythingItAccepts) {
  Random random;
  SCOPED_TRACE(random.Replay());
  size_t accepted = 0;
  for (int round = 0; round < 30000; ++round) {
    std::string stream = RandomStream(random);
    if (random.Chance(0.7)) Damage(random, stream);
    if (stream.empty()) continue;
    ASSERT_NO_FATAL_FAILURE(ExpectAgreement(stream, RandomLimits(random), &accepted))
        << testing::PrintToString(stream);
  }
  EXPECT_GT(accepted, 1000u);  // else this test looked at nothing
}

TEST(RequestParserRandomTest, TheFastPathReadsNothingBehindTheEnd) {
  // Every prefix, and every near miss of a header, in a block that ends where the text does.
  const ParserLimits limits;
  size_t accepted = 0;
  const std::string frame = Frame({"SET", std::string(123, 'k'), std::string(1234, 'v')});
  for (size_t size = 1; size <= frame.size(); ++size) {
    ExpectAgreement(std::string_view(frame).substr(0, size), limits, &accepted);
  }
  EXPECT_EQ(accepted, 1u);
  for (const char* text : {"*",
                           "*\n",
                           "*1\n",
                           "*12\n",
                           "*\r\n",
                           "*0\r\n",
                           "*1\r\n",
                           "**\r\n",
                           "*0\n\n",
                           "*123456\n",
                           "*1234567\n",
                           "*12345678\n",
                           "*1234567\r",
                           "*1234567\r\n",
                           "*12345678\r\n",
                           "*999999999\r\n",
                           "*1\r\n$",
                           "*1\r\n$\n",
                           "*1\r\n$0\n",
                           "*1\r\n$0\r\n",
                           "*1\r\n$0\r\n\n",
                           "*1\r\n$1\r\n\n",
                           "*1\r\n$1\r\na\n",
                           "*1\r\n$9999999\r\n",
                           "*1\r\n$99999999\r\n",
                           "*1\r\n$1\n",
                           "*1\r\n\n\n\n\n",
                           "*1\r\n$1\r",
                           "*1\r\n$12345678\n",
                           "*1\r\n$1234567\n",
                           "*1\r\n$-1\r\n",
                           "\n",
                           "\n\n\n\n",
                           "*1\r\n$0\r\n\r",
                           "*2\r\n$0\r\n\r\n$\n",
                           "*2\r\n$0\r\n\r\n$1\n"}) {
    ASSERT_NO_FATAL_FAILURE(ExpectAgreement(text, limits, &accepted)) << text;
  }
  EXPECT_EQ(accepted, 1u);
}

}  // namespace
}  // namespace moonpool::protocol
