// GET, SET and the other commands on string values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/connection.h"
#include "server/expiry.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/values.h"
#include "storage/key_partitions.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;
using storage::Entry;
using storage::KeyLock;
using storage::KeysLock;

void Get(Context& c) {
  ValueReplies replies(c);
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  replies.Whole(lock.key, lock.key.Read());
}

void StrLen(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Read();
  c.reply.Integer(entry == nullptr ? 0 : static_cast<int64_t>(ValueLength(*entry)));
}

struct SetOptions {
  bool if_absent = false;
  bool if_present = false;
  bool get = false;
  bool keep_expiry = false;
  std::optional<int64_t> expiry_ms;
};

void SetWith(Context& c, size_t value_index, const SetOptions& options) {
  auto value = c.TakeValue(value_index);
  if (!value) return;
  ValueReplies replies(c);
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  if (options.get || options.if_absent || options.if_present) {
    const Entry* old = lock.key.Find();
    if (options.get && !replies.Whole(lock.key, old)) return;
    if ((options.if_absent && old != nullptr) || (options.if_present && old == nullptr)) {
      if (!options.get) c.reply.Null();
      return;
    }
  }
  StoreValue(c, lock.key, std::move(*value), options.keep_expiry);
  if (options.expiry_ms) lock.key.SetExpiry(*options.expiry_ms);
  if (!options.get) c.reply.Ok();
}

void Set(Context& c) {
  SetOptions options;
  std::optional<ExpiryUnit> unit;
  size_t expiry_index = 0;
  for (size_t i = 3; i < c.size(); ++i) {
    const std::string_view word = c[i];
    if (EqualsIgnoreCase(word, "NX") && !options.if_present) {
      options.if_absent = true;
    } else if (EqualsIgnoreCase(word, "XX") && !options.if_absent) {
      options.if_present = true;
    } else if (EqualsIgnoreCase(word, "GET")) {
      options.get = true;
    } else if (EqualsIgnoreCase(word, "KEEPTTL") && !unit) {
      options.keep_expiry = true;
    } else if (const auto found = ParseExpiryWord(word);
               found && (!unit || unit == found) && !options.keep_expiry && i + 1 < c.size()) {
      unit = found;  // of "EX 1 EX 2" the last counts
      expiry_index = ++i;
    } else {
      return c.SyntaxError();
    }
  }
  if (unit) {
    options.expiry_ms = ParseExpiry(c, expiry_index, *unit, false);
    if (!options.expiry_ms) return;
  }
  SetWith(c, 2, options);
}

void SetNx(Context& c) {
  auto value = c.TakeValue(2);
  if (!value) return;
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  if (lock.key.Find() != nullptr) return c.reply.Integer(0);
  StoreValue(c, lock.key, std::move(*value));
  c.reply.Integer(1);
}

void SetWithExpiry(Context& c, const ExpiryUnit& unit) {
  SetOptions options;
  options.expiry_ms = ParseExpiry(c, 2, unit, false);
  if (options.expiry_ms) SetWith(c, 3, options);
}
void SetEx(Context& c) { SetWithExpiry(c, {true, false}); }
void PSetEx(Context& c) { SetWithExpiry(c, {false, false}); }

void GetSet(Context& c) {
  SetOptions options;
  options.get = true;
  SetWith(c, 2, options);
}

void GetDel(Context& c) {
  ValueReplies replies(c);
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  Entry* entry = lock.key.Read();
  if (replies.Whole(lock.key, entry) && entry != nullptr) lock.key.Erase();
}

void GetEx(Context& c) {
  bool persist = false;
  std::optional<ExpiryUnit> unit;
  size_t expiry_index = 0;
  for (size_t i = 2; i < c.size(); ++i) {
    const auto found = ParseExpiryWord(c[i]);
    if (EqualsIgnoreCase(c[i], "PERSIST") && !unit) {
      persist = true;
    } else if (found && (!unit || unit == found) && !persist && i + 1 < c.size()) {
      unit = found;
      expiry_index = ++i;
    } else {
      return c.SyntaxError();
    }
  }
  ValueReplies replies(c);
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  Entry* entry = lock.key.Read();
  if (entry == nullptr) {
    replies.Whole(lock.key, nullptr);
    return;
  }
  // A wrong time is an error only where there is a key to give it to.
  std::optional<int64_t> at;
  if (unit && !(at = ParseExpiry(c, expiry_index, *unit, false))) return;
  if (!replies.Whole(lock.key, entry)) return;
  if (persist) {
    lock.key.ClearExpiry();
  } else if (at && *at <= c.now_ms) {
    lock.key.Erase();
  } else if (at) {
    lock.key.SetExpiry(*at);
  }
}

std::vector<std::string_view> Names(const Context& c, size_t first, size_t step) {
  std::vector<std::string_view> names;
  names.reserve(c.size() / step);
  for (size_t i = first; i < c.size(); i += step) names.push_back(c[i]);
  return names;
}

void MGet(Context& c) {
  ValueReplies replies(c);
  const auto names = Names(c, 1, 1);
  const bool gather = c.keyspace().wants_batches();
  std::vector<uint64_t> hashes;
  storage::KeyPartitions partitions(gather ? c.keyspace().partition_set() : nullptr);
  {
    KeysLock lock(c.keyspace(), names, c.now_ms);
    c.reply.Array(names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      const Entry* entry = lock[i].Read();
      if (gather && (entry == nullptr || !entry->is_inline())) {
        hashes.push_back(lock[i].hash());
        partitions.Add(names[i]);
      }
      replies.Whole(lock[i], entry);
    }
  }
  if (!c.loop.missing().any() &&
      !c.keyspace().NoteBatch(hashes, storage::BatchKind::kRead, partitions.slots())) {
    replies.DoNotCount();
  }
}

void MSetGeneric(Context& c, bool if_absent) {
  if (c.size() % 2 == 0) {
    return c.Error("ERR wrong number of arguments for '" + std::string(c.command.name) +
                   "' command");
  }
  std::vector<GivenValue> values;
  for (size_t i = 2; i < c.size(); i += 2) {
    auto value = c.TakeValue(i);
    if (!value) return;
    values.push_back(std::move(*value));
  }
  const auto names = Names(c, 1, 2);
  if (c.keyspace().wants_batches()) {
    std::vector<uint64_t> hashes;
    storage::KeyPartitions partitions(c.keyspace().partition_set());
    for (size_t i = 0; i < names.size(); ++i) {
      if (!values[i].bulk) continue;
      hashes.push_back(storage::HashKey(names[i]));
      partitions.Add(names[i]);
    }
    c.keyspace().NoteBatch(hashes, storage::BatchKind::kWrite, partitions.slots());
  }
  KeysLock lock(c.keyspace(), names, c.now_ms);
  if (if_absent) {
    for (size_t i = 0; i < names.size(); ++i) {
      if (lock[i].Find() != nullptr) return c.reply.Integer(0);
    }
  }
  for (size_t i = 0; i < names.size(); ++i) StoreValue(c, lock[i], std::move(values[i]));
  if_absent ? c.reply.Integer(1) : c.reply.Ok();
}
void MSet(Context& c) { MSetGeneric(c, false); }
void MSetNx(Context& c) { MSetGeneric(c, true); }

// Stores build(old bytes, new bytes), `length` bytes long, in the place of the old value.  Small
// results are built under the lock; large ones outside it, again and again until the old value
// has not changed meanwhile.  Returns false when it replied with an error.
template <typename Plan, typename Build>
bool Rewrite(Context& c, Plan&& plan, Build&& build) {
  const auto threshold = static_cast<uint64_t>(c.server.config().number(Key::kBulkThreshold));
  for (;;) {
    std::optional<ValueSnapshot> old;
    uint64_t length = 0;
    {
      KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
      Entry* entry = lock.key.Find();
      if (c.WaitsFor(entry, lock.key.hash())) return false;
      const std::string_view bytes = entry == nullptr ? std::string_view() : ValueBytes(*entry);
      const std::optional<uint64_t> planned = plan(entry, bytes.size());
      if (!planned) return false;
      length = *planned;
      if (length < threshold) {
        // `bytes` may be overwritten in place.
        const std::string kept(bytes);
        build(kept, lock.key.SetUninitialized(length, true)->value_data());
        return true;
      }
      old.emplace(entry);
    }
    auto handle = c.tenant.Reserve(length, c.now_ms, c.server.placement().Choose(c[1], 0));
    if (!handle) {
      if (!c.WaitsForMemory(handle.error(), length)) c.OutOfMemory(handle.error().message);
      return false;
    }
    build(old->bytes(), handle->data());
    KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
    if (!old->Matches(lock.key.Find())) continue;
    lock.key.SetBulk(std::move(*handle).Publish(), true);
    return true;
  }
}

// Replies with the error of a string that would be too long.
bool LengthAllowed(Context& c, uint64_t length) {
  if (length <= static_cast<uint64_t>(c.server.config().number(Key::kProtoMaxBulkLen))) {
    return true;
  }
  c.Error("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
  return false;
}

void Append(Context& c) {
  const std::string_view tail = c[2];
  uint64_t length = 0;
  const bool stored = Rewrite(
      c,
      [&](const Entry*, uint64_t old) -> std::optional<uint64_t> {
        length = old + tail.size();
        if (!LengthAllowed(c, length)) return std::nullopt;
        return length;
      },
      [&](std::string_view old, char* to) {
        std::copy_n(old.data(), old.size(), to);
        std::copy_n(tail.data(), tail.size(), to + old.size());
      });
  if (stored) c.reply.Integer(static_cast<int64_t>(length));
}

void SetRange(Context& c) {
  const auto offset = c.Integer(2);
  if (!offset) return;
  if (*offset < 0) return c.Error("ERR offset is out of range");
  const std::string_view piece = c[3];
  if (piece.empty()) return StrLen(c);
  const auto start = static_cast<uint64_t>(*offset);
  uint64_t length = 0;
  const bool stored = Rewrite(
      c,
      [&](const Entry*, uint64_t old) -> std::optional<uint64_t> {
        length = std::max(old, start + piece.size());
        if (start > UINT64_MAX - piece.size() || !LengthAllowed(c, start + piece.size())) {
          return std::nullopt;
        }
        return length;
      },
      [&](std::string_view old, char* to) {
        std::copy_n(old.data(), old.size(), to);
        if (start > old.size()) std::memset(to + old.size(), 0, start - old.size());
        std::copy_n(piece.data(), piece.size(), to + start);
      });
  if (stored) c.reply.Integer(static_cast<int64_t>(length));
}

void GetRange(Context& c) {
  const auto first = c.Integer(2);
  if (!first) return;
  const auto last = c.Integer(3);
  if (!last) return;
  ValueReplies replies(c);
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Read();
  const auto length = entry == nullptr ? 0 : static_cast<int64_t>(ValueLength(*entry));
  int64_t start = *first;
  int64_t end = *last;
  if (entry == nullptr || (start < 0 && end < 0 && start > end)) return c.reply.Bulk("");
  if (start < 0) start = std::max<int64_t>(start + length, 0);
  if (end < 0) end = std::max<int64_t>(end + length, 0);
  end = std::min(end, length - 1);
  if (length == 0 || start > end) return c.reply.Bulk("");
  if (c.BulkOf(entry) == nullptr) {
    if (c.WaitsFor(entry, lock.key.hash())) return;
    if (!entry->is_inline()) return c.reply.Bulk("");  // nor can it be had now
  }
  replies.Part(*entry, static_cast<uint64_t>(start), static_cast<uint64_t>(end - start + 1));
}

void IncrementBy(Context& c, int64_t by) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Read();
  int64_t value = 0;
  if (c.WaitsFor(entry, lock.key.hash())) return;
  if (entry != nullptr) {
    const auto old = protocol::ParseInt64(ValueBytes(*entry));
    if (!old) return c.Error("ERR value is not an integer or out of range");
    value = *old;
  }
  if (__builtin_add_overflow(value, by, &value)) {
    return c.Error("ERR increment or decrement would overflow");
  }
  char text[protocol::kMaxInt64Text];
  const char* end = protocol::FormatInt64(text, value);
  lock.key.Set({text, static_cast<size_t>(end - text)}, true);
  c.reply.Integer(value);
}
void Incr(Context& c) { IncrementBy(c, 1); }
void Decr(Context& c) { IncrementBy(c, -1); }
void IncrBy(Context& c) {
  if (const auto by = c.Integer(2)) IncrementBy(c, *by);
}
void DecrBy(Context& c) {
  const auto by = c.Integer(2);
  if (!by) return;
  if (*by == INT64_MIN) return c.Error("ERR decrement would overflow");
  IncrementBy(c, -*by);
}

void IncrByFloat(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Read();
  std::optional<long double> value = 0;
  if (c.WaitsFor(entry, lock.key.hash())) return;
  if (entry != nullptr) value = protocol::ParseLongDouble(ValueBytes(*entry));
  const auto by = protocol::ParseLongDouble(c[2]);
  if (!value || !by) return c.Error("ERR value is not a valid float");
  const long double sum = *value + *by;
  if (std::isnan(sum) || std::isinf(sum)) {
    return c.Error("ERR increment would produce NaN or Infinity");
  }
  const std::string text = protocol::FormatLongDouble(sum);
  lock.key.Set(text, true);
  c.reply.Bulk(text);
}

const Command kCommands[] = {
    {"append", Append, 3, kWrite | kDenyOom | kFast, OneKey("RW INSERT"), "string", "string",
     "2.0.0", "O(1)", "Appends a string to the value of a key. Creates the key if it doesn't exist.",
     "key value"},
    {"decr", Decr, 2, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"), "string", "string",
     "1.0.0", "O(1)",
     "Decrements the integer value of a key by one. Uses 0 as initial value if the key doesn't "
     "exist.",
     "key"},
    {"decrby", DecrBy, 3, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"), "string",
     "string", "1.0.0", "O(1)",
     "Decrements a number from the integer value of a key. Uses 0 as initial value if the key "
     "doesn't exist.",
     "key decrement"},
    {"get", Get, 2, kReadOnly | kFast, OneKey("RO ACCESS"), "string", "string", "1.0.0", "O(1)",
     "Returns the string value of a key.", "key"},
    {"getdel", GetDel, 2, kWrite | kFast, OneKey("RW ACCESS DELETE"), "string", "string", "6.2.0",
     "O(1)", "Returns the string value of a key after deleting the key.", "key"},
    {"getex", GetEx, -2, kWrite | kFast, OneKey("RW ACCESS UPDATE"), "string", "string", "6.2.0",
     "O(1)", "Returns the string value of a key after setting its expiration time.",
     "key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | "
     "PERSIST]"},
    {"getrange", GetRange, 4, kReadOnly, OneKey("RO ACCESS"), "string", "string", "2.4.0", "O(N)",
     "Returns a substring of the string stored at a key.", "key start end"},
    {"getset", GetSet, 3, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"), "string",
     "string", "1.0.0", "O(1)",
     "Returns the previous string value of a key after setting it to a new value.", "key value",
     {2, 0}},
    {"incr", Incr, 2, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"), "string", "string",
     "1.0.0", "O(1)",
     "Increments the integer value of a key by one. Uses 0 as initial value if the key doesn't "
     "exist.",
     "key"},
    {"incrby", IncrBy, 3, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"), "string",
     "string", "1.0.0", "O(1)",
     "Increments the integer value of a key by a number. Uses 0 as initial value if the key "
     "doesn't exist.",
     "key increment"},
    {"incrbyfloat", IncrByFloat, 3, kWrite | kDenyOom | kFast, OneKey("RW ACCESS UPDATE"),
     "string", "string", "2.6.0", "O(1)",
     "Increment the floating point value of a key by a number. Uses 0 as initial value if the key "
     "doesn't exist.",
     "key increment"},
    {"mget", MGet, -2, kReadOnly | kFast, KeyRange(1, -1, 1, "RO ACCESS"), "string", "string",
     "1.0.0", "O(N)", "Atomically returns the string values of one or more keys.",
     "key [key ...]"},
    {"mset", MSet, -3, kWrite | kDenyOom, KeyRange(1, -1, 2, "OW UPDATE"), "string", "string",
     "1.0.1", "O(N)", "Atomically creates or modifies the string values of one or more keys.",
     "<key value> [<key value> ...]", {2, 2}},
    {"msetnx", MSetNx, -3, kWrite | kDenyOom, KeyRange(1, -1, 2, "OW INSERT"), "string", "string",
     "1.0.1", "O(N)",
     "Atomically modifies the string values of one or more keys only when all keys don't exist.",
     "<key value> [<key value> ...]", {2, 2}},
    {"psetex", PSetEx, 4, kWrite | kDenyOom, OneKey("OW UPDATE"), "string", "string", "2.6.0",
     "O(1)",
     "Sets both string value and expiration time in milliseconds of a key. The key is created if "
     "it doesn't exist.",
     "key milliseconds value", {3, 0}},
    {"set", Set, -3, kWrite | kDenyOom, OneKey("RW ACCESS UPDATE VARIABLE_FLAGS"), "string",
     "string", "1.0.0", "O(1)",
     "Sets the string value of a key, ignoring its type. The key is created if it doesn't exist.",
     "key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT "
     "unix-time-milliseconds | KEEPTTL]",
     {2, 0}},
    {"setex", SetEx, 4, kWrite | kDenyOom, OneKey("OW UPDATE"), "string", "string", "2.0.0",
     "O(1)",
     "Sets the string value and expiration time of a key. Creates the key if it doesn't exist.",
     "key seconds value", {3, 0}},
    {"setnx", SetNx, 3, kWrite | kDenyOom | kFast, OneKey("OW INSERT"), "string", "string",
     "1.0.0", "O(1)", "Set the string value of a key only when the key doesn't exist.",
     "key value", {2, 0}},
    {"setrange", SetRange, 4, kWrite | kDenyOom, OneKey("RW UPDATE"), "string", "string", "2.2.0",
     "O(N)",
     "Overwrites a part of a string value with another by an offset. Creates the key if it "
     "doesn't exist.",
     "key offset value"},
    {"strlen", StrLen, 2, kReadOnly | kFast, OneKey("RO"), "string", "string", "2.2.0", "O(1)",
     "Returns the length of a string value.", "key"},
    {"substr", GetRange, 4, kReadOnly, OneKey("RO ACCESS"), "string", "string", "1.0.0", "O(N)",
     "Returns a substring from a string value.", "key start end"},
};

}  // namespace

std::span<const Command> StringCommands() { return kCommands; }

}  // namespace moonpool::server
