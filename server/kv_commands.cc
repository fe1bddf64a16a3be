// The KV.* commands: sessions, descriptors, reservations, pins, namespaces.
//
// Batches answer per key: an array with one element per key, errors among them; one bad key never
// fails its neighbours.  Syntax errors fail the command.
#include <algorithm>
#include <array>
#include <optional>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "protocol/seqlock.h"
#include "server/attach_server.h"
#include "server/background.h"
#include "server/connection.h"
#include "server/loop.h"
#include "server/placement.h"
#include "server/server.h"
#include "server/session.h"
#include "server/values.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;
using storage::Entry;
using storage::KeyLock;

constexpr size_t kFirstKey = 2;

// Argument 1: how many groups of `step` arguments follow.  Replies and returns nothing when they
// do not.
std::optional<size_t> Count(Context& c, size_t step) {
  const auto count = protocol::ParseInt64(c[1]);
  if (!count || *count <= 0) {
    c.Error("ERR numkeys should be greater than 0");
    return std::nullopt;
  }
  const auto n = static_cast<uint64_t>(*count);
  if (n > static_cast<uint64_t>(c.server.config().number(Key::kMaxBatchKeys))) {
    c.Error("ERR more keys than max-batch-keys (" +
            std::to_string(c.server.config().number(Key::kMaxBatchKeys)) + ") in one command");
    return std::nullopt;
  }
  if (n > (c.size() - kFirstKey) / step) {
    c.Error("ERR Number of keys can't be greater than number of args");
    return std::nullopt;
  }
  return static_cast<size_t>(n);
}

// [LEASE ms | HOLD] from argument `index` to the end.
std::optional<LeaseRequest> ParseLease(Context& c, size_t index, bool allow_hold) {
  LeaseRequest request;
  for (; index < c.size(); ++index) {
    if (allow_hold && EqualsIgnoreCase(c[index], "HOLD")) {
      request.hold = true;
    } else if (EqualsIgnoreCase(c[index], "LEASE") && index + 1 < c.size()) {
      const auto ms = c.Integer(++index);
      if (!ms) return std::nullopt;
      if (*ms < 0) {
        c.Error("ERR LEASE must not be negative");
        return std::nullopt;
      }
      request.ms = *ms;
    } else {
      c.SyntaxError();
      return std::nullopt;
    }
  }
  return request;
}

// Hashes the keys and fetches what they lead to into the processor's cache.
std::vector<uint64_t> HashAndPrefetch(Context& c, size_t count, size_t step) {
  std::vector<uint64_t> hashes(count);
  storage::Keyspace& keyspace = c.keyspace();
  for (size_t i = 0; i < count; ++i) {
    hashes[i] = storage::HashKey(c[kFirstKey + i * step]);
    keyspace.PrefetchBucket(hashes[i]);
  }
  if (count > 1 && c.server.prefetch()) {
    for (const uint64_t hash : hashes) keyspace.PrefetchEntry(hash);
  }
  return hashes;
}

// --- sessions ----------------------------------------------------------------------------------

void Hello(Context& c) {
  const auto version = c.Integer(1);
  if (!version) return;
  if (*version != 1) {
    return c.Error("ERR KV.HELLO: this server speaks version 1, not " + std::string(c[1]));
  }
  bool want_shm = true;
  bool redirect = false;
  std::optional<std::string_view> host;
  for (size_t i = 2; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "TRANSPORTS") && i + 1 < c.size()) {
      const auto count = c.Integer(++i);
      if (!count) return;
      if (*count < 0 || static_cast<uint64_t>(*count) > c.size() - i - 1) return c.SyntaxError();
      want_shm = false;
      for (int64_t t = 0; t < *count; ++t) want_shm |= EqualsIgnoreCase(c[++i], "shm");
    } else if (EqualsIgnoreCase(c[i], "HOST") && i + 1 < c.size()) {
      host = c[++i];
    } else if (EqualsIgnoreCase(c[i], "REDIRECT") && i + 1 < c.size() &&
               (EqualsIgnoreCase(c[i + 1], "yes") || EqualsIgnoreCase(c[i + 1], "no"))) {
      redirect = EqualsIgnoreCase(c[++i], "yes");
    } else {
      return c.SyntaxError();
    }
  }
  const bool shm = want_shm && c.server.attach_server() != nullptr &&
                   (!host || *host == c.server.host_id());
  c.connection.set_session(nullptr);  // the old one goes before its successor comes
  c.connection.set_session(std::make_unique<Session>(c.server, c.connection, redirect));
  const Config& config = c.server.config();
  Reply& r = c.reply;
  r.Map(9);
  r.Bulk("version");
  r.Integer(1);
  r.Bulk("node");
  r.Bulk(c.server.run_id());
  r.Bulk("epoch");
  r.Integer(static_cast<int64_t>(c.server.epoch()));
  r.Bulk("host");
  r.Bulk(c.server.host_id());
  r.Bulk("session");
  r.Integer(static_cast<int64_t>(c.connection.session()->id()));
  r.Bulk("tenant");
  r.Bulk(c.tenant.name());
  r.Bulk("limits");
  r.Map(5);
  const std::pair<std::string_view, Key> limits[] = {
      {"bulk-threshold", Key::kBulkThreshold},
      {"max-batch-keys", Key::kMaxBatchKeys},
      {"max-value-bytes", Key::kProtoMaxBulkLen},
      {"lease-default-ms", Key::kLeaseDefault},
      {"lease-max-ms", Key::kLeaseMax},
  };
  for (const auto& [name, key] : limits) {
    r.Bulk(name);
    r.Integer(config.number(key));
  }
  r.Bulk("transports");
  r.Array(shm ? 2 : 1);
  if (shm) {
    const protocol::AttachToken token = c.connection.session()->NewAttachToken();
    r.Map(3);
    r.Bulk("name");
    r.Bulk("shm");
    r.Bulk("attach");
    r.Bulk(c.server.attach_server()->address());
    r.Bulk("token");
    r.Bulk({token.data(), token.size()});
  }
  r.Map(1);
  r.Bulk("name");
  r.Bulk("tcp");
  r.Bulk("regions");
  const auto regions = c.tenant.pool().Regions();
  r.Array(regions.size());
  for (const storage::RegionInfo& region : regions) {
    r.Array(3);
    r.Integer(region.id);
    r.Bulk(protocol::TierName(protocol::Tier::kDram));
    r.Integer(static_cast<int64_t>(region.bytes));
  }
}

// --- reading -----------------------------------------------------------------------------------

void Locate(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  const auto request = ParseLease(c, kFirstKey + *count, true);
  if (!request) return;
  storage::Keyspace& keyspace = c.keyspace();
  Session* session = c.connection.session();
  const std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, 1);
  std::vector<storage::ValueRef> used;
  c.reply.Array(*count);
  uint64_t hits = 0;
  for (size_t i = 0; i < *count; ++i) {
    storage::ValueRef value;
    {
      KeyLock lock(keyspace, c[kFirstKey + i], hashes[i], c.now_ms);
      const Entry* entry = lock.key.Read();
      if (entry == nullptr) {
        c.reply.Null();
        continue;
      }
      ++hits;
      if (!entry->has(Entry::kBulk)) {
        c.reply.Bulk(entry->value());
        continue;
      }
      value = storage::ValueRef::Share(entry->bulk());
    }
    if (session != nullptr) {
      session->Describe(c, value, *request);
    } else {
      c.loop.stats().descriptors.Add();
      protocol::AppendDescriptor(c.reply, DescriptorOf(*value));
    }
    used.push_back(std::move(value));
  }
  c.loop.stats().keyspace_hits.Add(hits);
  c.loop.stats().keyspace_misses.Add(*count - hits);
  if (used.empty()) return;
  std::vector<storage::BulkValue*> values;
  values.reserve(used.size());
  for (const storage::ValueRef& value : used) values.push_back(value.get());
  keyspace.Touch(values);
}

template <typename Act>
void ForEachLease(Context& c, size_t count, Act&& act) {
  c.reply.Array(count);
  for (size_t i = 0; i < count; ++i) {
    const auto lease = protocol::ParseUint64(c[kFirstKey + i]);
    c.reply.Integer(lease && c.connection.session() != nullptr ? act(*lease) : 0);
  }
}

void Renew(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  const auto request = ParseLease(c, kFirstKey + *count, false);
  if (!request) return;
  ForEachLease(c, *count, [&](uint64_t lease) {
    return c.connection.session()->Renew(lease, *request, c.now_ms);
  });
}

void Release(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  if (c.size() != kFirstKey + *count) return c.SyntaxError();
  ForEachLease(c, *count, [&](uint64_t lease) {
    return c.connection.session()->Release(lease) ? 1 : 0;
  });
}

void Match(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  bool with_tiers = false;
  if (c.size() == kFirstKey + *count + 1 &&
      EqualsIgnoreCase(c[kFirstKey + *count], "WITHTIERS")) {
    with_tiers = true;
  } else if (c.size() != kFirstKey + *count) {
    return c.SyntaxError();
  }
  const std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, 1);
  size_t present = 0;
  for (; present < *count; ++present) {
    KeyLock lock(c.keyspace(), c[kFirstKey + present], hashes[present], c.now_ms);
    if (lock.key.Find() == nullptr) break;
  }
  const auto n = static_cast<int64_t>(present);
  if (!with_tiers) return c.reply.Integer(n);
  c.reply.Array(4);
  c.reply.Integer(n);
  c.reply.Integer(0);
  c.reply.Integer(n);
  c.reply.Integer(0);
}

// --- writing -----------------------------------------------------------------------------------

void Alloc(Context& c) {
  const auto count = Count(c, 2);
  if (!count) return;
  bool if_absent = false;
  bool if_present = false;
  int64_t expiry_ms = 0;
  std::optional<std::string_view> prefer;
  for (size_t i = kFirstKey + *count * 2; i < c.size(); ++i) {
    const bool seconds = EqualsIgnoreCase(c[i], "EX");
    if (EqualsIgnoreCase(c[i], "NX") && !if_present) {
      if_absent = true;
    } else if (EqualsIgnoreCase(c[i], "XX") && !if_absent) {
      if_present = true;
    } else if ((seconds || EqualsIgnoreCase(c[i], "PX")) && expiry_ms == 0 &&
               i + 1 < c.size()) {
      const auto time = c.Integer(++i);
      if (!time) return;
      // Bounded so that now + expiry cannot overflow at the commit either.
      constexpr int64_t kMost = INT64_MAX / 4000;
      if (*time <= 0 || *time > (seconds ? kMost : kMost * 1000)) {
        return c.Error("ERR invalid expire time in 'kv.alloc' command");
      }
      expiry_ms = seconds ? *time * 1000 : *time;
    } else if (EqualsIgnoreCase(c[i], "PREFER") && i + 1 < c.size()) {
      prefer = c[++i];
    } else {
      return c.SyntaxError();
    }
  }
  Session* session = c.connection.session();
  if (session == nullptr || !session->attached()) {
    return c.Error(
        "ERR KV.ALLOC needs a session with an attached shared-memory socket: say KV.HELLO and "
        "connect to it, or write with SET");
  }
  const int64_t longest = c.server.config().number(Key::kProtoMaxBulkLen);
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    const std::string_view key = c[kFirstKey + i * 2];
    const auto length = protocol::ParseInt64(c[kFirstKey + i * 2 + 1]);
    if (!length || *length <= 0 || *length > longest) {
      c.Error("ERR length is out of range (1 to proto-max-bulk-len)");
      continue;
    }
    // One tier so far, so the choice is only checked.
    if (const auto tier = c.server.placement().Choose(key, prefer); !tier) {
      c.Error("ERR PREFER: " + tier.error().message);
      continue;
    }
    auto handle =
        c.tenant.ReserveInArena(session->id(), static_cast<uint64_t>(*length), c.now_ms);
    if (!handle) {
      c.OutOfMemory(handle.error().message);
      continue;
    }
    const storage::Extent extent = handle->extent();
    Session::Reservation reservation;
    reservation.handle = std::move(*handle);
    reservation.key = key;
    reservation.if_absent = if_absent;
    reservation.if_present = if_present;
    reservation.expiry_ms = expiry_ms;
    const auto token = session->AddReservation(std::move(reservation));
    if (!token) {
      c.Error("ERR too many reservations wait for KV.COMMIT (session-max-reservations)");
      continue;
    }
    c.loop.stats().reservations.Add();
    c.reply.Array(4);
    c.reply.Integer(static_cast<int64_t>(*token));
    c.reply.Integer(extent.region->id());
    c.reply.Integer(static_cast<int64_t>(extent.offset));
    c.reply.Integer(static_cast<int64_t>(extent.length));
  }
}

// One key of a KV.COMMIT, between its reservation and its place in the keyspace.
struct Pending {
  std::string error;  // not empty: what to reply
  Session::Reservation reservation;
  storage::WriteHandle copy;  // shm-commit copy: where the bytes go
  std::optional<uint32_t> crc;
};

Pending TakePending(Context& c, size_t index) {
  Pending pending;
  const std::string_view key = c[index];
  const auto token = protocol::ParseUint64(c[index + 1]);
  const std::string_view crc = c[index + 2];
  if (crc != "-") {
    const auto value = protocol::ParseUint64(crc);
    if (!value || *value > UINT32_MAX) {
      pending.error = "ERR crc is not a 32-bit number or '-'";
      return pending;
    }
    pending.crc = static_cast<uint32_t>(*value);
  }
  Session* session = c.connection.session();
  auto reservation = session != nullptr && token ? session->TakeReservation(*token, key)
                                                 : std::nullopt;
  if (!reservation) {
    pending.error = "ERR no such reservation (committed, aborted, expired, or for another key)";
    return pending;
  }
  if (!c.tenant.pool().ArenaSealed(reservation->handle.extent().region->id())) {
    pending.error = "ERR the write arena is not mapped and sealed yet";
    return pending;
  }
  pending.reservation = std::move(*reservation);
  return pending;
}

void PublishPending(Context& c, Pending& pending) {
  if (!pending.error.empty()) return c.Error(pending.error);
  Session::Reservation& reservation = pending.reservation;
  KeyLock lock(c.keyspace(), reservation.key, c.now_ms);
  const bool exists = lock.key.Find() != nullptr;
  if ((reservation.if_absent && exists) || (reservation.if_present && !exists)) {
    c.loop.stats().aborts.Add();
    return c.reply.Null();
  }
  storage::WriteHandle& handle = pending.copy ? pending.copy : reservation.handle;
  lock.key.SetBulk(std::move(handle).Publish(pending.crc));
  if (reservation.expiry_ms > 0) lock.key.SetExpiry(c.now_ms + reservation.expiry_ms);
  c.loop.stats().commits.Add();
  c.reply.Ok();
}

void Commit(Context& c) {
  const auto count = Count(c, 3);
  if (!count) return;
  if (c.size() != kFirstKey + *count * 3) return c.SyntaxError();
  const bool copy = c.server.config().text(Key::kShmCommit) == "copy";
  if (!copy) {
    c.reply.Array(*count);
    for (size_t i = 0; i < *count; ++i) {
      Pending pending = TakePending(c, kFirstKey + i * 3);
      PublishPending(c, pending);
    }
    return;
  }
  auto all = std::make_shared<std::vector<Pending>>();
  for (size_t i = 0; i < *count; ++i) {
    Pending& pending = all->emplace_back(TakePending(c, kFirstKey + i * 3));
    if (!pending.error.empty()) continue;
    auto target = c.tenant.Reserve(pending.reservation.handle.length(), c.now_ms);
    if (target) {
      pending.copy = std::move(*target);
    } else {
      c.loop.stats().oom_replies.Add();
      pending.error = "OOM " + target.error().message;
    }
  }
  // The bytes are copied on another thread; the connection goes on when that is done.
  c.connection.Suspend(
      c.command, c.server.background(),
      [all] {
        for (Pending& pending : *all) {
          if (!pending.copy) continue;
          // The writer may still be writing; what it gets published is its own affair, but the
          // copy must not be undefined behaviour.
          protocol::RacyCopy(pending.copy.data(), pending.reservation.handle.data(),
                             pending.copy.length());
        }
      },
      [all](Context& resumed) {
        resumed.reply.Array(all->size());
        for (Pending& pending : *all) PublishPending(resumed, pending);
      });
}

void Abort(Context& c) {
  const auto count = Count(c, 2);
  if (!count) return;
  if (c.size() != kFirstKey + *count * 2) return c.SyntaxError();
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    const auto token = protocol::ParseUint64(c[kFirstKey + i * 2 + 1]);
    Session* session = c.connection.session();
    const bool aborted = session != nullptr && token &&
                         session->TakeReservation(*token, c[kFirstKey + i * 2]).has_value();
    if (aborted) c.loop.stats().aborts.Add();
    c.reply.Integer(aborted ? 1 : 0);
  }
}

// --- pins and namespaces -------------------------------------------------------------------------

void PinKeys(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  storage::Pin pin;
  for (size_t i = kFirstKey + *count; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "HARD")) {
      pin.hard = true;
    } else if (EqualsIgnoreCase(c[i], "TTL") && i + 1 < c.size()) {
      const auto ms = c.Integer(++i);
      if (!ms) return;
      if (*ms <= 0 || *ms > INT64_MAX - c.now_ms) {
        return c.Error("ERR invalid TTL in 'kv.pin' command");
      }
      pin.until_ms = c.now_ms + *ms;
    } else {
      return c.SyntaxError();
    }
  }
  const double most = c.server.config().real(Key::kHardPinLimit) *
                      static_cast<double>(c.tenant.budget().limit());
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    KeyLock lock(c.keyspace(), c[kFirstKey + i], c.now_ms);
    const Entry* entry = lock.key.Find();
    if (entry == nullptr) {
      c.reply.Integer(0);
    } else if (pin.hard && static_cast<double>(c.keyspace().hard_pinned_bytes() +
                                               ValueLength(*entry)) > most) {
      c.OutOfMemory("hard-pin-limit is reached");
    } else {
      lock.key.SetPin(pin);
      c.reply.Integer(1);
    }
  }
}

void UnpinKeys(Context& c) {
  const auto count = Count(c, 1);
  if (!count) return;
  if (c.size() != kFirstKey + *count) return c.SyntaxError();
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    KeyLock lock(c.keyspace(), c[kFirstKey + i], c.now_ms);
    c.reply.Integer(lock.key.Find() != nullptr && lock.key.ClearPin() ? 1 : 0);
  }
}

void Drop(Context& c) {
  bool accepted;
  if (EqualsIgnoreCase(c[1], "MATCH")) {
    accepted = c.keyspace().VoidPattern(std::string(c[2]));
  } else if (EqualsIgnoreCase(c[1], "NAMESPACE")) {
    if (c[2].empty()) return c.Error("ERR a namespace needs a name; FLUSHALL removes everything");
    accepted = c.keyspace().VoidPrefix(std::string(c[2]));
  } else {
    return c.SyntaxError();
  }
  if (!accepted) return c.Error("TRYAGAIN too many KV.DROPs are still being swept");
  c.reply.Ok();
}

// --- for people and tools --------------------------------------------------------------------------

void Text(Reply& r, std::string_view name, std::string_view value) {
  r.Bulk(name);
  r.Bulk(value);
}
void Number(Reply& r, std::string_view name, uint64_t value) {
  r.Bulk(name);
  r.Integer(static_cast<int64_t>(value));
}

void Info(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  Reply& r = c.reply;
  const bool bulk = entry->has(Entry::kBulk);
  const auto pin = lock.key.GetPin();
  r.Map(bulk ? 13 : 6);
  Text(r, "stored", bulk ? "extent" : "inline");
  Text(r, "tier", protocol::TierName(protocol::Tier::kDram));
  Number(r, "length", ValueLength(*entry));
  Number(r, "heap-bytes", entry->block_bytes());
  r.Bulk("ttl-ms");
  r.Integer(entry->has(Entry::kHasExpiry) ? entry->expiry_ms() - c.now_ms : -1);
  Text(r, "pin", !pin ? "none" : pin->hard ? "hard" : "soft");
  if (!bulk) return;
  const storage::BulkValue& value = *entry->bulk();
  const storage::Extent& extent = value.extent();
  Number(r, "region", extent.region->id());
  Number(r, "offset", extent.offset);
  Number(r, "extent-bytes", storage::ExtentAllocator::RoundUp(extent.length));
  Number(r, "slot", extent.slot);
  Number(r, "generation", extent.generation);
  r.Bulk("crc");
  value.crc() ? r.Integer(*value.crc()) : r.Null();
  // Leases, holds, and replies on their way out.
  Number(r, "pinned-by", value.references() - 1);
}

void Regions(Context& c) {
  const auto regions = c.tenant.pool().Regions();
  c.reply.Array(regions.size());
  for (const storage::RegionInfo& region : regions) {
    Reply& r = c.reply;
    r.Map(9);
    Number(r, "region", region.id);
    Text(r, "kind", region.kind == storage::Region::Kind::kShared ? "shared" : "arena");
    Text(r, "tier", protocol::TierName(protocol::Tier::kDram));
    Text(r, "state", region.draining ? "draining" : "active");
    Number(r, "session", region.session);
    Number(r, "bytes", region.bytes);
    Number(r, "populated-bytes", region.populated_bytes);
    Number(r, "extent-bytes", region.extent_bytes);
    Number(r, "extents", region.extents);
  }
}

void Sessions(Context& c) {
  const auto sessions = c.server.Sessions();
  c.reply.Array(sessions.size());
  for (const auto& session : sessions) {
    Reply& r = c.reply;
    r.Map(9);
    Number(r, "session", session->id);
    Number(r, "client", session->client_id);
    Text(r, "addr", session->address);
    Text(r, "tenant", session->tenant);
    Text(r, "transport", session->attached.load(std::memory_order_relaxed) ? "shm" : "tcp");
    Text(r, "redirect", session->redirect ? "yes" : "no");
    Number(r, "leases", session->leases.get());
    Number(r, "holds", session->holds.get());
    Number(r, "reservations", session->reservations.get());
  }
}

void Stats(Context& c) {
  const Server& s = c.server;
  const storage::MemoryBudget& budget = c.tenant.budget();
  const storage::KeyspaceStats keyspace = c.keyspace().stats();
  const std::pair<std::string_view, uint64_t> rows[] = {
      {"keys", c.keyspace().Size()},
      {"hits", s.Total(&LoopStats::keyspace_hits)},
      {"misses", s.Total(&LoopStats::keyspace_misses)},
      {"evicted", keyspace.evicted},
      {"expired", keyspace.expired},
      {"descriptors", s.Total(&LoopStats::descriptors)},
      {"leases", s.Total(&LoopStats::leases)},
      {"holds", s.Total(&LoopStats::holds)},
      {"holds-refused", s.Total(&LoopStats::holds_refused)},
      {"reservations", s.Total(&LoopStats::reservations)},
      {"commits", s.Total(&LoopStats::commits)},
      {"aborts", s.Total(&LoopStats::aborts)},
      {"oom", s.Total(&LoopStats::oom_replies)},
      {"bulk-bytes-in", s.Total(&LoopStats::bulk_input_bytes)},
      {"bulk-bytes-out", s.Total(&LoopStats::bulk_output_bytes)},
      {"limit-bytes", budget.limit()},
      {"inline-bytes", budget.inline_bytes()},
      {"extent-bytes", budget.extent_bytes()},
      {"region-bytes", budget.region_bytes()},
      {"hard-pinned-bytes", c.keyspace().hard_pinned_bytes()},
  };
  c.reply.Map(std::size(rows));
  for (const auto& [name, value] : rows) Number(c.reply, name, value);
}

constexpr std::string_view kGroup = "kv";
constexpr std::string_view kSince = "0.1.0";

const Command kCommands[] = {
    {"kv.abort", Abort, -4, kWrite | kFast, CountedKeys(2, "RW"), "kv", kGroup, kSince, "O(N)",
     "Gives reservations of KV.ALLOC back.", "numkeys <key token> [<key token> ...]"},
    {"kv.alloc", Alloc, -4, kWrite | kDenyOom | kNoMulti, CountedKeys(2, "OW"), "kv", kGroup,
     kSince, "O(N)",
     "Reserves extents that this session's client fills through shared memory.",
     "numkeys <key length> [<key length> ...] [NX | XX] [EX seconds | PX milliseconds] "
     "[PREFER tiers]"},
    {"kv.commit", Commit, -5, kWrite, CountedKeys(3, "OW UPDATE"), "kv", kGroup, kSince, "O(N)",
     "Makes filled extents the values of their keys.",
     "numkeys <key token crc> [<key token crc> ...]"},
    {"kv.drop", Drop, 3, kWrite, NoKeys(), "kv dangerous", kGroup, kSince,
     "O(1), O(N) in the background",
     "Removes keys by glob pattern or by prefix; they are gone at once, their memory follows.",
     "<MATCH pattern | NAMESPACE name>"},
    {"kv.hello", Hello, -2, kFast | kNoMulti | kNoScript, NoKeys(), "kv connection", kGroup,
     kSince, "O(1)", "Begins a KV session and tells which transports this client can use.",
     "version [TRANSPORTS <count transport [transport ...]>] [HOST id] [REDIRECT <yes | no>]"},
    {"kv.info", Info, 2, kReadOnly | kFast, OneKey("RO"), "kv", kGroup, kSince, "O(1)",
     "Tells where and how a key's value is stored.", "key"},
    {"kv.locate", Locate, -3, kReadOnly | kFast, CountedKeys(1, "RO ACCESS"), "kv", kGroup,
     kSince, "O(N)", "Returns small values inline and descriptors of large ones, under a lease.",
     "numkeys key [key ...] [LEASE milliseconds] [HOLD]"},
    {"kv.match", Match, -3, kReadOnly | kFast, CountedKeys(1, "RO"), "kv", kGroup, kSince, "O(N)",
     "Counts how many of the keys, from the first on, are present.",
     "numkeys key [key ...] [WITHTIERS]"},
    {"kv.pin", PinKeys, -3, kWrite | kFast, CountedKeys(1, "RW"), "kv", kGroup, kSince, "O(N)",
     "Keeps keys from eviction: HARD always, else as long as there is anything else to evict.",
     "numkeys key [key ...] [TTL milliseconds] [HARD]"},
    {"kv.regions", Regions, 1, kReadOnly, NoKeys(), "kv admin", kGroup, kSince, "O(N)",
     "Lists the memory regions of the pool.", ""},
    {"kv.release", Release, -3, kFast, NoKeys(), "kv", kGroup, kSince, "O(N)",
     "Ends leases and holds of this session.", "numleases lease [lease ...]"},
    {"kv.renew", Renew, -3, kFast, NoKeys(), "kv", kGroup, kSince, "O(N)",
     "Extends leases of this session.", "numleases lease [lease ...] [LEASE milliseconds]"},
    {"kv.sessions", Sessions, 1, kReadOnly | kAdmin, NoKeys(), "kv admin", kGroup, kSince, "O(N)",
     "Lists the KV sessions.", ""},
    {"kv.stats", Stats, 1, kReadOnly, NoKeys(), "kv", kGroup, kSince, "O(1)",
     "Returns the counters of the pool and its transports.", ""},
    {"kv.unpin", UnpinKeys, -3, kWrite | kFast, CountedKeys(1, "RW"), "kv", kGroup, kSince,
     "O(N)", "Lets pinned keys be evicted again.", "numkeys key [key ...]"},
};

}  // namespace

std::span<const Command> KvCommands() { return kCommands; }

}  // namespace moonpool::server
