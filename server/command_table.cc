#include <algorithm>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/command.h"
#include "server/stats.h"

namespace moonpool::server {

namespace {

// FNV-1a over the lower-cased name: names are short and the table is fixed.
uint32_t NameHash(std::string_view name) {
  uint32_t hash = 2166136261u;
  for (const char c : name) {
    hash = (hash ^ (static_cast<unsigned char>(c) | 0x20u)) * 16777619u;
  }
  return hash ^ (hash >> 15);
}

}  // namespace

std::vector<size_t> KeyPositions(const Command& command, std::span<const Argument> arguments) {
  std::vector<size_t> positions;
  const auto count = static_cast<int64_t>(arguments.size());
  const KeySpec& keys = command.keys;
  if (keys.kind == KeySpec::kRange) {
    const int64_t last = keys.last < 0 ? count + keys.last : keys.last;
    for (int64_t i = keys.first; i <= last && i < count; i += keys.step) {
      positions.push_back(static_cast<size_t>(i));
    }
  } else if (keys.kind == KeySpec::kCounted && count > keys.first) {
    const auto wanted = protocol::ParseInt64(arguments[static_cast<size_t>(keys.first)]);
    if (!wanted || *wanted <= 0 || *wanted > count) return positions;
    for (int64_t i = 0; i < *wanted; ++i) {
      const int64_t position = keys.first + 1 + i * keys.step;
      if (position >= count) return {};
      positions.push_back(static_cast<size_t>(position));
    }
  }
  return positions;
}

const CommandTable& CommandTable::Get() {
  static const CommandTable table;
  return table;
}

CommandTable::CommandTable() {
  families_.reserve(8);
  subcommands_.reserve(kMaxCommands);
  for (const auto& family : {StringCommands(), KeyCommands(), ConnectionCommands(),
                             ServerCommands(), KvCommands()}) {
    Add(family);
  }
  MOONPOOL_CHECK(by_id_.size() <= kMaxCommands);
  std::sort(sorted_.begin(), sorted_.end(),
            [](const Command* a, const Command* b) { return a->name < b->name; });
  buckets_.resize(1024);
  for (const Command* command : sorted_) {
    size_t i = NameHash(command->name) % buckets_.size();
    while (buckets_[i] != nullptr) i = (i + 1) % buckets_.size();
    buckets_[i] = command;
  }
}

void CommandTable::Add(std::span<const Command> commands) {
  std::vector<Command>& family = families_.emplace_back(commands.begin(), commands.end());
  for (Command& command : family) {
    command.id = static_cast<uint16_t>(by_id_.size());
    by_id_.push_back(&command);
    sorted_.push_back(&command);
    if (command.subcommands.empty()) continue;
    std::vector<Command>& subcommands = subcommands_.emplace_back(
        command.subcommands.begin(), command.subcommands.end());
    for (Command& subcommand : subcommands) {
      subcommand.container = command.name;
      subcommand.id = static_cast<uint16_t>(by_id_.size());
      by_id_.push_back(&subcommand);
    }
    command.subcommands = subcommands;
  }
}

const Command* CommandTable::Find(std::string_view name) const {
  for (size_t i = NameHash(name) % buckets_.size(); buckets_[i] != nullptr;
       i = (i + 1) % buckets_.size()) {
    if (protocol::EqualsIgnoreCase(buckets_[i]->name, name)) return buckets_[i];
  }
  return nullptr;
}

const Command* CommandTable::Resolve(const Command* command,
                                     std::span<const Argument> arguments) {
  if (command->subcommands.empty() || arguments.size() < 2) return command;
  for (const Command& subcommand : command->subcommands) {
    if (protocol::EqualsIgnoreCase(subcommand.name, arguments[1])) return &subcommand;
  }
  return command;
}

}  // namespace moonpool::server
