// From the one-line syntax of a command to the argument tree that COMMAND DOCS shows.
//
//   key                a value; its type follows from its name
//   NX                 a word to type as it is
//   EX seconds         a value behind such a word
//   [a | b]            optional; one of several
//   <a b>              several that belong together
//   x [x ...]          one or more of x
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moonpool::server {

struct Command;

struct ArgumentDoc {
  std::string name;
  std::string type;   // key string integer double pattern unix-time pure-token oneof block
  std::string token;  // the word in front, or the word itself
  bool optional = false;
  bool multiple = false;
  std::vector<ArgumentDoc> arguments;  // of oneof and block
};

// COMMAND INFO's tips for clients of a cluster, separated by spaces: which nodes a command must go
// to and what becomes of their replies.  Values: https://redis.io/docs/reference/command-tips/
std::string_view CommandTips(const Command& command);

// The table's syntax lines are well formed; a malformed one aborts (it is a bug, and a test
// parses them all).
std::vector<ArgumentDoc> ParseSyntax(std::string_view syntax);

}  // namespace moonpool::server
