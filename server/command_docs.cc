#include "server/command_docs.h"

#include <algorithm>
#include <cctype>

#include "protocol/status.h"
#include "server/command.h"

namespace moonpool::server {

namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

bool IsToken(std::string_view word) {
  return std::all_of(word.begin(), word.end(), [](char c) {
    return std::isupper(static_cast<unsigned char>(c)) || c == '-' || std::isdigit(c);
  });
}

std::string TypeOf(std::string_view name) {
  static constexpr std::string_view kIntegers[] = {
      "seconds", "milliseconds", "count", "index",     "increment", "decrement",
      "offset",  "start",        "end",   "numkeys",   "numleases", "lease",
      "length",  "token",        "crc",   "client-id", "protover",  "destination-db",
      "version", "cursor"};
  if (name == "key" || name == "newkey" || name == "source" || name == "destination") return "key";
  if (name.starts_with("unix-time")) return "unix-time";
  if (name == "pattern") return "pattern";
  if (std::find(std::begin(kIntegers), std::end(kIntegers), name) != std::end(kIntegers)) {
    return "integer";
  }
  return "string";
}

class SyntaxParser {
 public:
  explicit SyntaxParser(std::string_view text) : text_(text) {}

  std::vector<ArgumentDoc> Parse() {
    std::vector<ArgumentDoc> arguments = Sequence();
    MOONPOOL_CHECK(position_ == text_.size());
    return arguments;
  }

 private:
  void SkipSpaces() {
    while (position_ < text_.size() && text_[position_] == ' ') ++position_;
  }
  char Peek() {
    SkipSpaces();
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  bool AtEndOfSequence() {
    const char c = Peek();
    return c == '\0' || c == ']' || c == '>' || c == '|';
  }
  std::string_view Word() {
    const size_t start = position_;
    while (position_ < text_.size() && std::string_view(" []<>|").find(text_[position_]) ==
                                           std::string_view::npos) {
      ++position_;
    }
    return text_.substr(start, position_ - start);
  }

  std::vector<ArgumentDoc> Sequence() {
    std::vector<ArgumentDoc> sequence;
    std::string_view before;  // the source of the element before
    while (!AtEndOfSequence()) {
      const size_t start = position_;
      // "x [x ...]": more of what stands before.
      const std::string more = "[" + std::string(before) + " ...]";
      if (!before.empty() && text_.substr(position_).starts_with(more)) {
        position_ += more.size();
        sequence.back().multiple = true;
        before = {};
        continue;
      }
      sequence.push_back(Element());
      before = text_.substr(start, position_ - start);
    }
    return sequence;
  }

  ArgumentDoc Element() {
    const char c = Peek();
    if (c == '[' || c == '<') {
      ++position_;
      ArgumentDoc group = Alternatives();
      MOONPOOL_CHECK(Peek() == (c == '[' ? ']' : '>'));
      ++position_;
      group.optional |= c == '[';
      return group;
    }
    ArgumentDoc argument;
    const std::string_view word = Word();
    MOONPOOL_CHECK(!word.empty());
    argument.name = Lower(word);
    if (!IsToken(word)) {
      argument.type = TypeOf(argument.name);
      return argument;
    }
    const char next = Peek();
    const bool takes_value = !AtEndOfSequence() && next != '[' &&
                             (next == '<' || std::islower(static_cast<unsigned char>(next)));
    if (takes_value) argument = Element();
    if (!takes_value) argument.type = "pure-token";
    argument.token = word;
    return argument;
  }

  ArgumentDoc Alternatives() {
    std::vector<ArgumentDoc> choices;
    do {
      if (Peek() == '|') ++position_;
      std::vector<ArgumentDoc> sequence = Sequence();
      MOONPOOL_CHECK(!sequence.empty());
      if (sequence.size() == 1) {
        choices.push_back(std::move(sequence.front()));
      } else {
        ArgumentDoc block;
        block.type = "block";
        block.name = sequence.front().name;
        block.arguments = std::move(sequence);
        choices.push_back(std::move(block));
      }
    } while (Peek() == '|');
    if (choices.size() == 1) return std::move(choices.front());
    ArgumentDoc oneof;
    oneof.type = "oneof";
    oneof.name = choices.front().name;
    oneof.arguments = std::move(choices);
    return oneof;
  }

  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace

std::string_view CommandTips(const Command& command) {
  struct Tip {
    std::string_view container;
    std::string_view name;
    std::string_view tips;
  };
  static constexpr std::string_view kSum = "request_policy:multi_shard response_policy:agg_sum";
  static constexpr std::string_view kAllShards =
      "request_policy:all_shards response_policy:all_succeeded";
  static constexpr std::string_view kAllNodes =
      "request_policy:all_nodes response_policy:all_succeeded";
  static constexpr std::string_view kVaries = "nondeterministic_output";
  static constexpr std::string_view kVariesByShard =
      "nondeterministic_output request_policy:all_shards response_policy:special";
  static constexpr std::string_view kOrderVaries = "nondeterministic_output_order";
  static constexpr Tip kTips[] = {
      {"", "command", kOrderVaries},
      {"", "dbsize", "request_policy:all_shards response_policy:agg_sum"},
      {"", "del", kSum},
      {"", "exists", kSum},
      {"", "flushall", kAllShards},
      {"", "flushdb", kAllShards},
      {"", "info", kVariesByShard},
      {"", "keys", "request_policy:all_shards nondeterministic_output_order"},
      {"", "kv.drop", kAllShards},
      {"", "mget", "request_policy:multi_shard"},
      {"", "mset", "request_policy:multi_shard response_policy:all_succeeded"},
      {"", "msetnx", "request_policy:multi_shard response_policy:agg_min"},
      {"", "ping", kAllShards},
      {"", "pttl", kVaries},
      {"", "randomkey", "request_policy:all_shards nondeterministic_output"},
      {"", "scan", "nondeterministic_output request_policy:special"},
      {"", "time", kVaries},
      {"", "touch", kSum},
      {"", "ttl", kVaries},
      {"", "unlink", kSum},
      {"client", "info", kVaries},
      {"client", "list", kVaries},
      {"command", "docs", kOrderVaries},
      {"command", "info", kOrderVaries},
      {"command", "list", kOrderVaries},
      {"config", "set", kAllNodes},
      {"memory", "stats", kVariesByShard},
      {"object", "encoding", kVaries},
      {"object", "freq", kVaries},
      {"object", "idletime", kVaries},
      {"object", "refcount", kVaries},
  };
  for (const Tip& tip : kTips) {
    if (tip.name == command.name && tip.container == command.container) return tip.tips;
  }
  return {};
}

std::vector<ArgumentDoc> ParseSyntax(std::string_view syntax) {
  return SyntaxParser(syntax).Parse();
}

}  // namespace moonpool::server
