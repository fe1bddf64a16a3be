// What a command is: one row of a table, a handler, and what the handler gets to see.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/reply_buffer.h"
#include "protocol/status.h"
#include "storage/bulk_value.h"
#include "storage/device_memory.h"

namespace moonpool::storage {
struct Entry;
class Keyspace;
class Tenant;
}  // namespace moonpool::storage

namespace moonpool::server {

class Connection;
class Loop;
class Server;
struct Context;

// --- replies -------------------------------------------------------------------------------

// Replies, with large values spliced in by reference: their bytes go from the extent to the
// socket.  Threads: the loop's.
class Reply : public protocol::ReplyBuffer {
 public:
  struct Splice {
    size_t position;  // in the buffer; the value's bytes go before the byte there
    storage::ValueRef value;
    uint64_t offset;
    uint64_t length;
  };

  // A bulk string that is [offset, offset + length) of a value.
  void BulkValue(storage::ValueRef value, uint64_t offset, uint64_t length) {
    BulkHeader(length);
    splices_.push_back({size(), std::move(value), offset, length});
    Raw("\r\n");
  }
  std::vector<Splice>& splices() { return splices_; }

  // Where the next reply will begin; Rollback() forgets what was written since.
  struct Mark {
    size_t size;
    size_t splices;
  };
  Mark mark() const { return {size(), splices_.size()}; }
  void Rollback(const Mark& mark) {
    Truncate(mark.size);
    splices_.erase(splices_.begin() + static_cast<ptrdiff_t>(mark.splices), splices_.end());
  }
  void Reset() {
    Clear();
    splices_.clear();
  }

 private:
  std::vector<Splice> splices_;
};

// --- arguments -----------------------------------------------------------------------------

// A long argument, received into memory of its own.
struct Body {
  storage::WriteHandle extent;   // where the value will live, if the command stores it
  storage::ValueRef value;       // what TakeValue() made of it
  std::unique_ptr<char[]> heap;  // otherwise
  size_t size = 0;
  std::string failure;           // not empty: there was no memory, the bytes were dropped

  char* data() { return extent ? extent.data() : heap.get(); }
};

struct Argument {
  const char* data = nullptr;
  size_t size = 0;
  Body* body = nullptr;

  operator std::string_view() const { return {data, size}; }  // NOLINT: that is what it is
  std::string_view view() const { return {data, size}; }
};

// --- the table -----------------------------------------------------------------------------

enum CommandFlag : uint32_t {
  kWrite = 1u << 0,
  kReadOnly = 1u << 1,
  kDenyOom = 1u << 2,
  kAdmin = 1u << 3,
  kFast = 1u << 4,
  kNoAuth = 1u << 5,
  kLoading = 1u << 6,
  kStale = 1u << 7,
  kNoScript = 1u << 8,
  kSkipMonitor = 1u << 9,
  kMovableKeys = 1u << 10,
  kNoMulti = 1u << 11,
  kNoAsyncLoading = 1u << 12,
  kAllowBusy = 1u << 13,
  kSentinel = 1u << 14,
  kNoMandatoryKeys = 1u << 15,
};

// How to find the keys among the arguments (0 is the command's name).
struct KeySpec {
  enum Kind : uint8_t { kNone, kRange, kCounted };
  Kind kind = kNone;
  int8_t first = 0;  // kRange: the first key.  kCounted: the argument that holds their number
  int8_t last = 0;   // kRange: the last key, -1: the last argument
  int8_t step = 1;   // from one key to the next
  std::string_view flags;  // "RO ACCESS", as COMMAND INFO shows them
};
constexpr KeySpec NoKeys() { return {}; }
constexpr KeySpec OneKey(std::string_view flags) { return {KeySpec::kRange, 1, 1, 1, flags}; }
constexpr KeySpec KeyRange(int8_t first, int8_t last, int8_t step, std::string_view flags) {
  return {KeySpec::kRange, first, last, step, flags};
}
// KV.*: argument 1 is how many keys follow, `step` arguments apart.
constexpr KeySpec CountedKeys(int8_t step, std::string_view flags) {
  return {KeySpec::kCounted, 1, 0, step, flags};
}

// Which arguments are values: long ones are received straight into extents.
struct ValueArguments {
  int8_t first = 0;  // 0: none
  int8_t step = 0;   // 0: only that one
  // Which argument is the key of the value at `index`.
  size_t KeyOf(size_t index) const { return step > 0 ? index - 1 : 1; }
};

using Handler = void (*)(Context&);

struct Command {
  std::string_view name;  // lower case; of a subcommand, without its container
  Handler handler;
  int arity;  // arguments with the name; negative: at least
  uint32_t flags;
  KeySpec keys;
  std::string_view acl;  // "string fast", without '@'; read/write/... follow from the flags
  std::string_view group;
  std::string_view since;
  std::string_view complexity;
  std::string_view summary;
  std::string_view syntax;  // "key value [NX | XX] [GET]", see command_docs.h
  ValueArguments values = {};
  std::span<const Command> subcommands = {};
  // Filled in by the table.
  std::string_view container = {};
  uint16_t id = 0;
};

// The keys' positions among `argc` arguments; empty when the command takes none or they are
// not as the command needs them.
std::vector<size_t> KeyPositions(const Command& command, std::span<const Argument> arguments);

class CommandTable {
 public:
  static const CommandTable& Get();

  // By name, case-insensitive; null when there is none.
  const Command* Find(std::string_view name) const;
  // The subcommand if `command` is a container and argument 1 names one; else `command`.
  static const Command* Resolve(const Command* command, std::span<const Argument> arguments);

  // Top-level commands, sorted by name.
  std::span<const Command* const> commands() const { return sorted_; }
  // All, subcommands included, by id.
  std::span<const Command* const> by_id() const { return by_id_; }

 private:
  CommandTable();
  void Add(std::span<const Command> commands);

  std::vector<std::vector<Command>> families_;
  std::vector<std::vector<Command>> subcommands_;
  std::vector<const Command*> sorted_;
  std::vector<const Command*> by_id_;
  std::vector<const Command*> buckets_;  // open addressing by name
};

// The families; each is defined in its own file.
std::span<const Command> StringCommands();
std::span<const Command> KeyCommands();
std::span<const Command> ConnectionCommands();
std::span<const Command> ServerCommands();
std::span<const Command> KvCommands();

// Handlers any container shares: <container> HELP, and what answers an unknown subcommand.
void CommandHelp(Context& context);
void UnknownSubcommand(Context& context);

// --- waiting -------------------------------------------------------------------------------

// What a command cannot go on without.  A handler that finds something missing notes it here and
// returns, before it has changed anything; the connection runs the command again when it is there.
struct Missing {
  struct Value {
    uint64_t hash;
    storage::SsdPlace place;
  };
  std::vector<Value> values;  // on the SSD
  std::vector<storage::ValueRef> on_device;  // whose bytes only a device can read
  // What came up for this command, by version: good for it even where memory was too short to keep it.
  std::span<const std::pair<uint64_t, storage::ValueRef>> came_up;
  // What was fetched for this command from a device: that value, and one with its bytes.
  std::span<const std::pair<storage::ValueRef, storage::ValueRef>> fetched;
  uint64_t memory_bytes = 0;
  storage::DeviceSet growing = 0;  // devices of which a region is being made
  bool elsewhere = false;          // they were waited for: what they had no room for goes elsewhere
  bool final = false;    // this is the last try: what is still missing will not come
  bool refused = false;  // and so the command cannot be carried out

  // The bytes of the value that is at `place`, if they came up.
  storage::BulkValue* CameUp(const storage::SsdPlace& place) const {
    for (const auto& [id, value] : came_up) {
      if (id == place.id) return value.get();
    }
    return nullptr;
  }
  storage::BulkValue* Fetched(const storage::BulkValue* value) const {
    for (const auto& [source, copy] : fetched) {
      if (source.get() == value) return copy.get();
    }
    return nullptr;
  }
  bool any() const {
    return !values.empty() || !on_device.empty() || memory_bytes != 0 || growing != 0 || refused;
  }
  void Clear() { *this = Missing(); }
};

// --- running a command -----------------------------------------------------------------------

struct ParsedCommand {
  const Command* command;  // null: unknown
  uint32_t first_argument;
  uint32_t arguments;
  uint64_t key_hash;  // of the first key, if the command has one in a fixed place
  size_t frame_end;   // where the next command begins in the input
};

// A value that a command was given: inline bytes, or an extent already filled.
struct GivenValue {
  std::string_view bytes;
  storage::ValueRef bulk;
  storage::DeviceSet wanted_on = 0;  // the devices it is to move to
};

struct Context {
  Server& server;
  Loop& loop;
  Connection& connection;
  storage::Tenant& tenant;
  const Command& command;
  std::span<Argument> arguments;
  uint64_t key_hash;
  int64_t now_ms;
  Reply& reply;
  // What begins to move to devices when the command is done and holds no locks.
  std::vector<std::pair<storage::ValueRef, storage::DeviceSet>> moves_up{};

  ~Context();
  size_t size() const { return arguments.size(); }
  std::string_view operator[](size_t index) const { return arguments[index]; }
  storage::Keyspace& keyspace() const;

  void Error(std::string_view text) { reply.Error(text); }
  void SyntaxError() { Error("ERR syntax error"); }
  // Parses argument `index`; replies with the error and returns nothing when it is none.
  std::optional<int64_t> Integer(size_t index);
  // Argument `index` as a value to store: takes the extent it was received into, or moves long
  // bytes into one.  Replies -OOM and returns nothing when there is no memory.
  std::optional<GivenValue> TakeValue(size_t index);
  // Replies with -OOM for a reservation that failed.
  void OutOfMemory(const std::string& why);
  // The same, unless memory will come: then true, and the command is run again.
  bool WaitsForMemory(const moonpool::Error& error, uint64_t bytes);
  // The value of `entry`, which may be null, is on the SSD or on a device and must come to memory
  // first.  On the last try false for commands that only read: to them it is a miss.
  bool WaitsFor(const storage::Entry* entry, uint64_t hash);
  // The large value of `entry`, which may be null, if its bytes are in memory for this command.
  storage::BulkValue* BulkOf(const storage::Entry* entry) const;
  // Likewise, or on a device that this connection's client reaches: maps, or reads over RDMA.
  storage::BulkValue* ReachableOf(const storage::Entry* entry) const;
  // Likewise, or on a device that our NICs read.
  storage::BulkValue* MovableOf(const storage::Entry* entry) const;
  // The devices that it maps, and may write to.
  storage::DeviceSet reach() const;
  bool ReachesByNics() const;
};

}  // namespace moonpool::server
