// COMMAND and its subcommands, all read from the table.
#include <algorithm>
#include <array>

#include "protocol/glob.h"
#include "server/command_docs.h"
#include "server/command_families.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;

struct FlagName {
  uint32_t flag;
  std::string_view name;
};
constexpr FlagName kFlagNames[] = {
    {kWrite, "write"},       {kReadOnly, "readonly"},
    {kDenyOom, "denyoom"},   {kAdmin, "admin"},
    {kNoScript, "noscript"}, {kLoading, "loading"},
    {kStale, "stale"},       {kSkipMonitor, "skip_monitor"},
    {kFast, "fast"},         {kNoAuth, "no_auth"},
    {kNoMulti, "no_multi"},  {kMovableKeys, "movablekeys"},
    {kAllowBusy, "allow_busy"},
};

std::string FullName(const Command& command) {
  if (command.container.empty()) return std::string(command.name);
  return std::string(command.container) + "|" + std::string(command.name);
}

std::string Lower(std::string_view text) {
  std::string out(text);
  for (char& ch : out) ch = static_cast<char>(std::tolower(static_cast<unsigned char>(ch)));
  return out;
}

std::string Upper(std::string_view text) {
  std::string out(text);
  for (char& ch : out) ch = static_cast<char>(std::toupper(static_cast<unsigned char>(ch)));
  return out;
}

std::vector<std::string_view> SplitWords(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find(' ', i), text.size());
    words.push_back(text.substr(i, end - i));
    i = end + 1;
  }
  return words;
}

// As redis-server derives them: what the row says, and what follows from the flags.
std::vector<std::string> AclCategories(const Command& command) {
  std::vector<std::string> categories;
  const auto add = [&](std::string_view name) {
    std::string category = "@" + std::string(name);
    if (std::find(categories.begin(), categories.end(), category) == categories.end()) {
      categories.push_back(std::move(category));
    }
  };
  if (command.flags & kWrite) add("write");
  if (command.flags & kReadOnly) add("read");
  for (const std::string_view name : SplitWords(command.acl)) add(name);
  if (command.flags & kAdmin) {
    add("admin");
    add("dangerous");
  }
  add(command.flags & kFast ? "fast" : "slow");
  return categories;
}

// The specs COMMAND INFO shows.  Flags of the form "RW ACCESS DELETE | OW UPDATE" are for a first
// and a second key that the command treats differently.
std::vector<KeySpec> KeySpecs(const Command& command) {
  KeySpec keys = command.keys;
  if (keys.kind == KeySpec::kNone) return {};
  const size_t bar = keys.flags.find(" | ");
  if (bar == std::string_view::npos) return {keys};
  KeySpec second = keys;
  second.first = second.last;
  second.flags = keys.flags.substr(bar + 3);
  keys.last = keys.first;
  keys.flags = keys.flags.substr(0, bar);
  return {keys, second};
}

void ReplyKeySpec(Reply& r, const KeySpec& keys) {
  r.Map(3);
  r.Bulk("flags");
  const std::vector<std::string_view> flags = SplitWords(keys.flags);
  r.Set(flags.size());
  for (const std::string_view flag : flags) {
    // Redis spells how a key is accessed (RO, RW, OW, RM) in capitals, what for in lower case.
    r.Simple(flag.size() == 2 ? std::string(flag) : Lower(flag));
  }
  r.Bulk("begin_search");
  r.Map(2);
  r.Bulk("type");
  r.Bulk("index");
  r.Bulk("spec");
  r.Map(1);
  r.Bulk("index");
  r.Integer(keys.first);
  r.Bulk("find_keys");
  r.Map(2);
  r.Bulk("type");
  const bool range = keys.kind == KeySpec::kRange;
  r.Bulk(range ? "range" : "keynum");
  r.Bulk("spec");
  r.Map(3);
  r.Bulk(range ? "lastkey" : "keynumidx");
  // The last key counts from the first one, or from the end when negative.
  r.Integer(!range ? 0 : keys.last < 0 ? keys.last : keys.last - keys.first);
  r.Bulk(range ? "keystep" : "firstkey");
  r.Integer(range ? keys.step : 1);
  r.Bulk(range ? "limit" : "keystep");
  r.Integer(range ? 0 : keys.step);
}

void ReplyKeySpecs(Reply& r, const Command& command) {
  const auto specs = KeySpecs(command);
  r.Set(specs.size());
  for (const KeySpec& spec : specs) ReplyKeySpec(r, spec);
}

void ReplyInfo(Reply& r, const Command& command) {
  r.Array(10);
  r.Bulk(FullName(command));
  r.Integer(command.arity);
  uint32_t flags = command.flags;
  if (command.keys.kind == KeySpec::kCounted) flags |= kMovableKeys;
  r.Set(static_cast<size_t>(
      std::count_if(std::begin(kFlagNames), std::end(kFlagNames),
                    [&](const FlagName& f) { return (flags & f.flag) != 0; })));
  for (const FlagName& flag : kFlagNames) {
    if (flags & flag.flag) r.Simple(flag.name);
  }
  const bool range = command.keys.kind == KeySpec::kRange;
  r.Integer(range ? command.keys.first : 0);
  r.Integer(range ? command.keys.last : 0);
  r.Integer(range ? command.keys.step : 0);
  const auto categories = AclCategories(command);
  r.Set(categories.size());
  for (const std::string& category : categories) r.Simple(category);
  const auto tips = SplitWords(CommandTips(command));
  r.Set(tips.size());
  for (const std::string_view tip : tips) r.Bulk(tip);
  ReplyKeySpecs(r, command);
  if (command.subcommands.empty()) return r.Set(0);
  r.Array(command.subcommands.size());
  for (const Command& subcommand : command.subcommands) ReplyInfo(r, subcommand);
}

// "config|get" as well as "config".
const Command* FindByFullName(std::string_view name) {
  const size_t bar = name.find('|');
  const Command* command = CommandTable::Get().Find(name.substr(0, bar));
  if (bar == std::string_view::npos || command == nullptr) return command;
  for (const Command& subcommand : command->subcommands) {
    if (EqualsIgnoreCase(subcommand.name, name.substr(bar + 1))) return &subcommand;
  }
  return nullptr;
}

// `specs`: how many key specs the command has; `key`: which one the next key argument belongs to.
void ReplyArguments(Reply& r, const std::vector<ArgumentDoc>& arguments, size_t specs,
                    size_t* key) {
  r.Array(arguments.size());
  for (const ArgumentDoc& argument : arguments) {
    const bool flags = argument.optional || argument.multiple;
    const bool nested = !argument.arguments.empty();
    const bool plain = !nested && argument.type != "pure-token";
    r.Map(2 + (plain ? 1 : 0) + (argument.type == "key" ? 1 : 0) +
          (argument.token.empty() ? 0 : 1) + (flags ? 1 : 0) + (nested ? 1 : 0));
    r.Bulk("name");
    r.Bulk(argument.name);
    r.Bulk("type");
    r.Bulk(argument.type);
    if (plain) {
      r.Bulk("display_text");
      r.Bulk(argument.name);
    }
    if (argument.type == "key") {
      r.Bulk("key_spec_index");
      r.Integer(static_cast<int64_t>(*key));
      *key = std::min(*key + 1, specs - 1);
    }
    if (!argument.token.empty()) {
      r.Bulk("token");
      r.Bulk(argument.token);
    }
    if (flags) {
      r.Bulk("flags");
      r.Set((argument.optional ? 1 : 0) + (argument.multiple ? 1 : 0));
      if (argument.optional) r.Simple("optional");
      if (argument.multiple) r.Simple("multiple");
    }
    if (nested) {
      r.Bulk("arguments");
      ReplyArguments(r, argument.arguments, specs, key);
    }
  }
}

void ReplyDocs(Reply& r, const Command& command) {
  r.Bulk(FullName(command));
  const bool arguments = !command.syntax.empty();
  const bool container = !command.subcommands.empty();
  r.Map(4 + (arguments ? 1 : 0) + (container ? 1 : 0));
  r.Bulk("summary");
  r.Bulk(command.summary);
  r.Bulk("since");
  r.Bulk(command.since);
  r.Bulk("group");
  r.Bulk(command.group);
  r.Bulk("complexity");
  r.Bulk(command.complexity);
  if (arguments) {
    r.Bulk("arguments");
    size_t key = 0;
    ReplyArguments(r, ParseSyntax(command.syntax), KeySpecs(command).size(), &key);
  }
  if (container) {
    r.Bulk("subcommands");
    r.Map(command.subcommands.size());
    for (const Command& subcommand : command.subcommands) ReplyDocs(r, subcommand);
  }
}

void CommandAll(Context& c) {
  if (c.size() > 1) return UnknownSubcommand(c);
  const auto commands = CommandTable::Get().commands();
  c.reply.Array(commands.size());
  for (const Command* command : commands) ReplyInfo(c.reply, *command);
}

void CommandInfo(Context& c) {
  if (c.size() == 2) {
    const auto commands = CommandTable::Get().commands();
    c.reply.Array(commands.size());
    for (const Command* command : commands) ReplyInfo(c.reply, *command);
    return;
  }
  c.reply.Array(c.size() - 2);
  for (size_t i = 2; i < c.size(); ++i) {
    const Command* command = FindByFullName(c[i]);
    command == nullptr ? c.reply.Null() : ReplyInfo(c.reply, *command);
  }
}

void CommandDocs(Context& c) {
  std::vector<const Command*> wanted;
  if (c.size() == 2) {
    const auto commands = CommandTable::Get().commands();
    wanted.assign(commands.begin(), commands.end());
  }
  for (size_t i = 2; i < c.size(); ++i) {
    if (const Command* command = FindByFullName(c[i])) wanted.push_back(command);
  }
  c.reply.Map(wanted.size());
  for (const Command* command : wanted) ReplyDocs(c.reply, *command);
}

void CommandCount(Context& c) {
  c.reply.Integer(static_cast<int64_t>(CommandTable::Get().commands().size()));
}

void CommandList(Context& c) {
  std::string_view by, what;
  if (c.size() > 2) {
    if (c.size() != 5 || !EqualsIgnoreCase(c[2], "FILTERBY")) return c.SyntaxError();
    by = c[3];
    what = c[4];
    if (!EqualsIgnoreCase(by, "MODULE") && !EqualsIgnoreCase(by, "ACLCAT") &&
        !EqualsIgnoreCase(by, "PATTERN")) {
      return c.SyntaxError();
    }
  }
  std::vector<std::string> names;
  for (const Command* command : CommandTable::Get().by_id()) {
    const std::string name = FullName(*command);
    if (by.empty() && !command->container.empty()) continue;
    if (EqualsIgnoreCase(by, "MODULE")) continue;
    if (EqualsIgnoreCase(by, "ACLCAT")) {
      const auto categories = AclCategories(*command);
      if (std::find(categories.begin(), categories.end(), "@" + std::string(what)) ==
          categories.end()) {
        continue;
      }
    }
    if (EqualsIgnoreCase(by, "PATTERN") && !protocol::GlobMatch(what, name, true)) continue;
    names.push_back(name);
  }
  c.reply.Array(names.size());
  for (const std::string& name : names) c.reply.Bulk(name);
}

void CommandGetKeys(Context& c) {
  const std::span<Argument> arguments = c.arguments.subspan(2);
  const Command* command = CommandTable::Get().Find(arguments[0]);
  if (command == nullptr) return c.Error("ERR Invalid command specified");
  const Command* container = command->subcommands.empty() ? nullptr : command;
  command = CommandTable::Resolve(command, arguments);
  // A container that does something itself is COMMAND alone, and that takes no keys.
  if (command == container) return c.Error("ERR Invalid command specified");
  const auto argc = static_cast<int>(arguments.size());
  if (command->arity > 0 ? argc != command->arity : argc < -command->arity) {
    return c.Error("ERR Invalid number of arguments specified for command");
  }
  if (command->keys.kind == KeySpec::kNone) {
    return c.Error("ERR The command has no key arguments");
  }
  const auto positions = KeyPositions(*command, arguments);
  if (positions.empty()) return c.Error("ERR Invalid arguments specified for command");
  c.reply.Array(positions.size());
  for (const size_t position : positions) c.reply.Bulk(arguments[position]);
}

}  // namespace

void CommandHelp(Context& c) {
  const Command* container = CommandTable::Get().Find(c.command.container);
  c.reply.Array(1 + container->subcommands.size() * 2);
  c.reply.Simple(Upper(container->name) + " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:");
  for (const Command& subcommand : container->subcommands) {
    std::string line = Upper(subcommand.name);
    if (!subcommand.syntax.empty()) line += " " + std::string(subcommand.syntax);
    c.reply.Simple(line);
    c.reply.Simple("    " + std::string(subcommand.summary));
  }
}

void UnknownSubcommand(Context& c) {
  c.Error("ERR unknown subcommand '" + std::string(c[1].substr(0, 128)) + "'. Try " +
          Upper(c.command.name) + " HELP.");
}

namespace {

constexpr uint32_t kQuery = kLoading | kStale;

const Command kSubcommands[] = {
    {"count", CommandCount, 2, kQuery, NoKeys(), "connection", "server", "2.8.13", "O(1)",
     "Returns a count of commands.", ""},
    {"docs", CommandDocs, -2, kQuery, NoKeys(), "connection", "server", "7.0.0", "O(N)",
     "Returns documentary information about one, multiple or all commands.",
     "[command-name [command-name ...]]"},
    {"getkeys", CommandGetKeys, -4, kQuery, NoKeys(), "connection", "server", "2.8.13", "O(N)",
     "Extracts the key names from an arbitrary command.", "command [arg [arg ...]]"},
    {"help", CommandHelp, 2, kQuery, NoKeys(), "connection", "server", "5.0.0", "O(1)",
     "Returns helpful text about the different subcommands.", ""},
    {"info", CommandInfo, -2, kQuery, NoKeys(), "connection", "server", "2.8.13", "O(N)",
     "Returns information about one, multiple or all commands.",
     "[command-name [command-name ...]]"},
    {"list", CommandList, -2, kQuery, NoKeys(), "connection", "server", "7.0.0", "O(N)",
     "Returns a list of command names.",
     "[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]"},
};

}  // namespace

const Command kCommandCommand = {
    "command", CommandAll, -1, kQuery, NoKeys(), "connection", "server", "2.8.13", "O(N)",
    "Returns detailed information about all commands.", "", {}, kSubcommands};

}  // namespace moonpool::server
