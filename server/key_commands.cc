// Commands on keys, whatever their values.
#include <algorithm>
#include <optional>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/background.h"
#include "server/connection.h"
#include "server/expiry.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/values.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;
using storage::Entry;
using storage::KeyLock;
using storage::KeysLock;

// Runs `count(key)` on every key argument with all stripes locked; replies with how many were
// true.
template <typename Count>
void CountKeys(Context& c, Count&& count) {
  int64_t counted = 0;
  if (c.size() == 2) {
    KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
    counted = count(lock.key) ? 1 : 0;
  } else {
    std::vector<std::string_view> names;
    names.reserve(c.size() - 1);
    for (size_t i = 1; i < c.size(); ++i) names.push_back(c[i]);
    KeysLock lock(c.keyspace(), names, c.now_ms);
    for (size_t i = 0; i < lock.size(); ++i) counted += count(lock[i]) ? 1 : 0;
  }
  c.reply.Integer(counted);
}

void Del(Context& c) {
  CountKeys(c, [](storage::Keyspace::Key& key) { return key.Erase(); });
}

void Exists(Context& c) {
  CountKeys(c, [](storage::Keyspace::Key& key) { return key.Find() != nullptr; });
}

void Touch(Context& c) {
  CountKeys(c, [](storage::Keyspace::Key& key) { return key.Read() != nullptr; });
}

void Type(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  c.reply.Simple(lock.key.Find() == nullptr ? "none" : "string");
}

void Keys(Context& c) {
  const std::string_view pattern = c[1];
  const bool all = pattern == "*";
  std::vector<std::string> found;
  uint64_t cursor = 0;
  do {
    std::vector<std::string> names;
    cursor = c.keyspace().Scan(cursor, 1024, c.now_ms, &names);
    for (std::string& name : names) {
      if (all || protocol::GlobMatch(pattern, name)) found.push_back(std::move(name));
    }
  } while (cursor != 0);
  // A table that grows or shrinks under the scan may show a key twice.
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  c.reply.Array(found.size());
  for (const std::string& name : found) c.reply.Bulk(name);
}

constexpr int kScanRounds = 4;

void Scan(Context& c) {
  const auto cursor = protocol::ParseUint64(c[1]);
  if (!cursor) return c.Error("ERR invalid cursor");
  int64_t count = 10;
  std::optional<std::string_view> pattern;
  bool strings = true;
  for (size_t i = 2; i < c.size(); i += 2) {
    if (i + 1 == c.size()) return c.SyntaxError();
    if (EqualsIgnoreCase(c[i], "COUNT")) {
      const auto wanted = c.Integer(i + 1);
      if (!wanted) return;
      if (*wanted < 1) return c.SyntaxError();
      count = *wanted;
    } else if (EqualsIgnoreCase(c[i], "MATCH")) {
      pattern = c[i + 1];
    } else if (EqualsIgnoreCase(c[i], "TYPE")) {
      strings = EqualsIgnoreCase(c[i + 1], "string");
    } else {
      return c.SyntaxError();
    }
  }
  std::vector<std::string> names;
  uint64_t next = *cursor;
  // A small keyspace is spread thinly over its stripes; looking at all of them costs less than the
  // client's next round trip.
  for (int round = 0; round < kScanRounds; ++round) {
    next = c.keyspace().Scan(next, static_cast<size_t>(count) - names.size(), c.now_ms, &names);
    if (next == 0 || names.size() >= static_cast<size_t>(count)) break;
  }
  std::erase_if(names, [&](const std::string& name) {
    return !strings || (pattern && !protocol::GlobMatch(*pattern, name));
  });
  c.reply.Array(2);
  char text[protocol::kMaxInt64Text];
  const char* end = protocol::FormatUint64(text, next);
  c.reply.Bulk({text, static_cast<size_t>(end - text)});
  c.reply.Array(names.size());
  for (const std::string& name : names) c.reply.Bulk(name);
}

void RandomKey(Context& c) {
  if (const auto name = c.keyspace().RandomKey(c.now_ms)) {
    c.reply.Bulk(*name);
  } else {
    c.reply.Null();
  }
}

void RenameGeneric(Context& c, bool if_absent) {
  const std::string_view names[] = {c[1], c[2]};
  const bool same = names[0] == names[1];
  KeysLock lock(c.keyspace(), names, c.now_ms);
  Entry* from = lock[0].Find();
  if (from == nullptr) return c.Error("ERR no such key");
  if (same) return if_absent ? c.reply.Integer(0) : c.reply.Ok();
  if (if_absent && lock[1].Find() != nullptr) return c.reply.Integer(0);
  from = lock[0].Find();
  std::optional<int64_t> expiry_ms;
  if (from->has(Entry::kHasExpiry)) expiry_ms = from->expiry_ms();
  const auto pin = from->has(Entry::kPinned) ? lock[0].GetPin() : std::nullopt;
  if (from->has(Entry::kOnSsd)) {
    lock[1].TakeOnSsd(lock[0], expiry_ms.value_or(0));
  } else if (from->has(Entry::kBulk)) {
    lock[1].SetBulk(lock[0].TakeBulk());
  } else {
    const std::string value(from->value());
    lock[0].Erase();
    lock[1].Set(value);
  }
  if (expiry_ms) lock[1].SetExpiry(*expiry_ms);
  if (pin) lock[1].SetPin(*pin);
  if_absent ? c.reply.Integer(1) : c.reply.Ok();
}
void Rename(Context& c) { RenameGeneric(c, false); }
void RenameNx(Context& c) { RenameGeneric(c, true); }

void Copy(Context& c) {
  bool replace = false;
  for (size_t i = 3; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "REPLACE")) {
      replace = true;
    } else if (EqualsIgnoreCase(c[i], "DB") && i + 1 < c.size()) {
      const auto db = c.Integer(++i);
      if (!db) return;
      if (*db < INT32_MIN || *db > INT32_MAX) {
        return c.Error("ERR value is out of range, value must between -2147483648 and 2147483647");
      }
      if (*db != 0) return c.Error("ERR DB index is out of range");
    } else {
      return c.SyntaxError();
    }
  }
  const std::string_view names[] = {c[1], c[2]};
  if (names[0] == names[1]) {
    return c.Error("ERR source and destination objects are the same");
  }
  KeysLock lock(c.keyspace(), names, c.now_ms);
  if (lock[0].Find() == nullptr) return c.reply.Integer(0);
  if (!replace && lock[1].Find() != nullptr) return c.reply.Integer(0);
  const Entry* from = lock[0].Find();
  if (from->has(Entry::kOnSsd) && c.WaitsFor(from, lock[0].hash())) return;
  std::optional<int64_t> expiry_ms;
  if (from->has(Entry::kHasExpiry)) expiry_ms = from->expiry_ms();
  if (from->has(Entry::kBulk)) {
    lock[1].SetBulk(c.tenant.pool().Alias(*from->bulk()));
  } else {
    const std::string value(from->value());
    lock[1].Set(value);
  }
  if (expiry_ms) lock[1].SetExpiry(*expiry_ms);
  c.reply.Integer(1);
}

void ExpireGeneric(Context& c, const ExpiryUnit& unit) {
  bool nx = false, xx = false, gt = false, lt = false;
  for (size_t i = 3; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "NX")) {
      nx = true;
    } else if (EqualsIgnoreCase(c[i], "XX")) {
      xx = true;
    } else if (EqualsIgnoreCase(c[i], "GT")) {
      gt = true;
    } else if (EqualsIgnoreCase(c[i], "LT")) {
      lt = true;
    } else {
      return c.Error("ERR Unsupported option " + std::string(c[i]));
    }
  }
  if (nx && (xx || gt || lt)) {
    return c.Error("ERR NX and XX, GT or LT options at the same time are not compatible");
  }
  if (gt && lt) return c.Error("ERR GT and LT options at the same time are not compatible");
  const auto at = ParseExpiry(c, 2, unit, true);
  if (!at) return;
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Integer(0);
  const bool has = entry->has(Entry::kHasExpiry);
  // No expiry counts as infinitely far away.
  const bool refused = (nx && has) || (xx && !has) || (gt && (!has || *at <= entry->expiry_ms())) ||
                       (lt && has && *at >= entry->expiry_ms());
  if (refused) return c.reply.Integer(0);
  if (*at <= c.now_ms) {
    lock.key.Erase();
  } else {
    lock.key.SetExpiry(*at);
  }
  c.reply.Integer(1);
}
void Expire(Context& c) { ExpireGeneric(c, {true, false}); }
void PExpire(Context& c) { ExpireGeneric(c, {false, false}); }
void ExpireAt(Context& c) { ExpireGeneric(c, {true, true}); }
void PExpireAt(Context& c) { ExpireGeneric(c, {false, true}); }

// -2 without a key, -1 without an expiry, else form(expiry in ms since 1970).
template <typename Form>
void ReplyExpiry(Context& c, Form&& form) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Integer(-2);
  if (!entry->has(Entry::kHasExpiry)) return c.reply.Integer(-1);
  c.reply.Integer(form(entry->expiry_ms()));
}
void Ttl(Context& c) {
  ReplyExpiry(c, [&](int64_t at) { return (std::max<int64_t>(at - c.now_ms, 0) + 500) / 1000; });
}
void PTtl(Context& c) {
  ReplyExpiry(c, [&](int64_t at) { return std::max<int64_t>(at - c.now_ms, 0); });
}
void ExpireTime(Context& c) {
  ReplyExpiry(c, [](int64_t at) {
    return static_cast<int64_t>((static_cast<uint64_t>(at) + 500) / 1000);
  });
}
void PExpireTime(Context& c) {
  ReplyExpiry(c, [](int64_t at) { return at; });
}

void Persist(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr || !entry->has(Entry::kHasExpiry)) return c.reply.Integer(0);
  lock.key.ClearExpiry();
  c.reply.Integer(1);
}

void DbSize(Context& c) { c.reply.Integer(static_cast<int64_t>(c.keyspace().Size())); }

void Flush(Context& c) {
  bool async = false;
  if (c.size() > 2) return c.SyntaxError();
  if (c.size() == 2) {
    async = EqualsIgnoreCase(c[1], "ASYNC");
    if (!async && !EqualsIgnoreCase(c[1], "SYNC")) return c.SyntaxError();
  }
  auto cleared = c.keyspace().Clear();
  if (async) {
    c.server.background().Run(
        [doomed = std::shared_ptr<storage::Keyspace::Cleared>(std::move(cleared))] {});
  }
  c.reply.Ok();
}

bool LfuPolicy(storage::MaxmemoryPolicy policy) {
  return policy == storage::MaxmemoryPolicy::kAllKeysLfu ||
         policy == storage::MaxmemoryPolicy::kVolatileLfu ||
         policy == storage::MaxmemoryPolicy::kAllKeysS3Fifo ||
         policy == storage::MaxmemoryPolicy::kAllKeysPrefix;
}

void ObjectEncoding(Context& c) {
  KeyLock lock(c.keyspace(), c[2], c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  constexpr uint64_t kEmbeddedBytes = 44;  // Redis's OBJ_ENCODING_EMBSTR_SIZE_LIMIT
  const uint64_t length = ValueLength(*entry);
  const bool here = !entry->has(Entry::kOnSsd) &&
                    !(entry->has(Entry::kBulk) && entry->bulk()->device() != nullptr);
  if (here && length <= protocol::kMaxInt64Text &&
      protocol::ParseInt64(ValueBytes(*entry))) {
    return c.reply.Bulk("int");
  }
  c.reply.Bulk(length <= kEmbeddedBytes ? "embstr" : "raw");
}

constexpr std::string_view kSwitching =
    " Please note that when switching between policies at runtime LRU and LFU data will take "
    "some time to adjust.";

void ObjectFreq(Context& c) {
  KeyLock lock(c.keyspace(), c[2], c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  if (!LfuPolicy(c.keyspace().policy())) {
    return c.Error("ERR An LFU maxmemory policy is not selected, access frequency not tracked." +
                   std::string(kSwitching));
  }
  c.reply.Integer(storage::LfuUses(entry->access, c.now_ms, c.keyspace().lfu_options()));
}

void ObjectIdleTime(Context& c) {
  KeyLock lock(c.keyspace(), c[2], c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  if (LfuPolicy(c.keyspace().policy())) {
    return c.Error("ERR An LFU maxmemory policy is selected, idle time not tracked." +
                   std::string(kSwitching));
  }
  c.reply.Integer(static_cast<int64_t>(storage::LruIdleSeconds(entry->access, c.now_ms)));
}

void ObjectRefCount(Context& c) {
  KeyLock lock(c.keyspace(), c[2], c.now_ms);
  lock.key.Find() == nullptr ? c.reply.Null() : c.reply.Integer(1);
}

constexpr KeySpec kObjectKey = KeyRange(2, 2, 1, "RO");

const Command kObject[] = {
    {"encoding", ObjectEncoding, 3, kReadOnly, kObjectKey, "keyspace", "generic", "2.2.3", "O(1)",
     "Returns the internal encoding of a Redis object.", "key"},
    {"freq", ObjectFreq, 3, kReadOnly, kObjectKey, "keyspace", "generic", "4.0.0", "O(1)",
     "Returns the logarithmic access frequency counter of a Redis object.", "key"},
    {"help", CommandHelp, 2, kLoading | kStale, NoKeys(), "keyspace", "generic", "6.2.0", "O(1)",
     "Returns helpful text about the different subcommands.", ""},
    {"idletime", ObjectIdleTime, 3, kReadOnly, kObjectKey, "keyspace", "generic", "2.2.3", "O(1)",
     "Returns the time since the last access to a Redis object.", "key"},
    {"refcount", ObjectRefCount, 3, kReadOnly, kObjectKey, "keyspace", "generic", "2.2.3", "O(1)",
     "Returns the reference count of a value of a key.", "key"},
};


const Command kCommands[] = {
    {"copy", Copy, -3, kWrite | kDenyOom, KeyRange(1, 2, 1, "RO ACCESS | OW UPDATE"), "keyspace",
     "generic", "6.2.0", "O(1)", "Copies the value of a key to a new key.",
     "source destination [DB destination-db] [REPLACE]"},
    {"dbsize", DbSize, 1, kReadOnly | kFast, NoKeys(), "keyspace", "server", "1.0.0", "O(1)",
     "Returns the number of keys in the database.", ""},
    {"del", Del, -2, kWrite, KeyRange(1, -1, 1, "RM DELETE"), "keyspace", "generic", "1.0.0",
     "O(N)", "Deletes one or more keys.", "key [key ...]"},
    {"exists", Exists, -2, kReadOnly | kFast, KeyRange(1, -1, 1, "RO"), "keyspace", "generic",
     "1.0.0", "O(N)", "Determines whether one or more keys exist.", "key [key ...]"},
    {"expire", Expire, -3, kWrite | kFast, OneKey("RW UPDATE"), "keyspace", "generic", "1.0.0",
     "O(1)", "Sets the expiration time of a key in seconds.", "key seconds [NX | XX | GT | LT]"},
    {"expireat", ExpireAt, -3, kWrite | kFast, OneKey("RW UPDATE"), "keyspace", "generic",
     "1.2.0", "O(1)", "Sets the expiration time of a key to a Unix timestamp.",
     "key unix-time-seconds [NX | XX | GT | LT]"},
    {"expiretime", ExpireTime, 2, kReadOnly | kFast, OneKey("RO ACCESS"), "keyspace", "generic",
     "7.0.0", "O(1)", "Returns the expiration time of a key as a Unix timestamp.", "key"},
    {"flushall", Flush, -1, kWrite, NoKeys(), "keyspace dangerous", "server", "1.0.0", "O(N)",
     "Removes all keys from all databases.", "[ASYNC | SYNC]"},
    {"flushdb", Flush, -1, kWrite, NoKeys(), "keyspace dangerous", "server", "1.0.0", "O(N)",
     "Remove all keys from the current database.", "[ASYNC | SYNC]"},
    {"keys", Keys, 2, kReadOnly, NoKeys(), "keyspace dangerous", "generic", "1.0.0", "O(N)",
     "Returns all key names that match a pattern.", "pattern"},
    {"object", UnknownSubcommand, -2, 0, NoKeys(), "", "generic", "2.2.3", "Depends on subcommand.",
     "A container for object introspection commands.", "", {}, kObject},
    {"persist", Persist, 2, kWrite | kFast, OneKey("RW UPDATE"), "keyspace", "generic", "2.2.0",
     "O(1)", "Removes the expiration time of a key.", "key"},
    {"pexpire", PExpire, -3, kWrite | kFast, OneKey("RW UPDATE"), "keyspace", "generic", "2.6.0",
     "O(1)", "Sets the expiration time of a key in milliseconds.",
     "key milliseconds [NX | XX | GT | LT]"},
    {"pexpireat", PExpireAt, -3, kWrite | kFast, OneKey("RW UPDATE"), "keyspace", "generic",
     "2.6.0", "O(1)", "Sets the expiration time of a key to a Unix milliseconds timestamp.",
     "key unix-time-milliseconds [NX | XX | GT | LT]"},
    {"pexpiretime", PExpireTime, 2, kReadOnly | kFast, OneKey("RO ACCESS"), "keyspace", "generic",
     "7.0.0", "O(1)", "Returns the expiration time of a key as a Unix milliseconds timestamp.",
     "key"},
    {"pttl", PTtl, 2, kReadOnly | kFast, OneKey("RO ACCESS"), "keyspace", "generic", "2.6.0",
     "O(1)", "Returns the expiration time in milliseconds of a key.", "key"},
    {"randomkey", RandomKey, 1, kReadOnly, NoKeys(), "keyspace", "generic", "1.0.0", "O(1)",
     "Returns a random key name from the database.", ""},
    {"rename", Rename, 3, kWrite, KeyRange(1, 2, 1, "RW ACCESS DELETE | OW UPDATE"), "keyspace",
     "generic", "1.0.0", "O(1)", "Renames a key and overwrites the destination.", "key newkey"},
    {"renamenx", RenameNx, 3, kWrite | kFast,
     KeyRange(1, 2, 1, "RW ACCESS DELETE | OW INSERT"), "keyspace", "generic", "1.0.0", "O(1)", "Renames a key only when the target key name doesn't exist.",
     "key newkey"},
    {"scan", Scan, -2, kReadOnly, NoKeys(), "keyspace", "generic", "2.8.0", "O(1) per call",
     "Iterates over the key names in the database.",
     "cursor [MATCH pattern] [COUNT count] [TYPE type]"},
    {"touch", Touch, -2, kReadOnly | kFast, KeyRange(1, -1, 1, "RO"), "keyspace", "generic",
     "3.2.1", "O(N)",
     "Returns the number of existing keys out of those specified after updating the time they were "
     "last accessed.",
     "key [key ...]"},
    {"ttl", Ttl, 2, kReadOnly | kFast, OneKey("RO ACCESS"), "keyspace", "generic", "1.0.0",
     "O(1)", "Returns the expiration time in seconds of a key.", "key"},
    {"type", Type, 2, kReadOnly | kFast, OneKey("RO"), "keyspace", "generic", "1.0.0", "O(1)",
     "Determines the type of value stored at a key.", "key"},
    {"unlink", Del, -2, kWrite | kFast, KeyRange(1, -1, 1, "RM DELETE"), "keyspace", "generic",
     "4.0.0", "O(N)", "Asynchronously deletes one or more keys.", "key [key ...]"},
};

}  // namespace

std::span<const Command> KeyCommands() { return kCommands; }

}  // namespace moonpool::server
