// KV.ALLOC, KV.COMMIT and KV.ABORT: values written through shared memory.
#include <algorithm>
#include <optional>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "protocol/seqlock.h"
#include "server/background.h"
#include "server/connection.h"
#include "server/kv_arguments.h"
#include "server/loop.h"
#include "server/placement.h"
#include "server/server.h"
#include "server/session.h"
#include "server/values.h"
#include "storage/key_partitions.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;
using storage::KeyLock;

// One key of a KV.COMMIT, between its reservation and its place in the keyspace.
struct Pending {
  std::string error;  // not empty: what to reply
  Session::Reservation reservation;
  storage::WriteHandle copy;  // shm-commit copy: where the bytes go
  std::optional<uint32_t> crc;
};

// Takes a reservation whose client writes there no more: it was never told of it, or says so, with
// KV.COMMIT and with KV.ABORT.  What is dropped then is free at once, on a device as well.
std::optional<Session::Reservation> TakeWritten(Session* session, std::optional<uint64_t> token,
                                                std::string_view key) {
  if (session == nullptr || !token) return std::nullopt;
  std::optional<Session::Reservation> reservation = session->TakeReservation(*token, key);
  if (reservation) reservation->handle.WriterDone();
  return reservation;
}

Pending TakePending(Context& c, size_t index) {
  Pending pending;
  const std::string_view key = c[index];
  const auto token = protocol::ParseUint64(c[index + 1]);
  if (!ParseCrc(c[index + 2], &pending.crc, &pending.error)) return pending;
  auto reservation = TakeWritten(c.connection.session(), token, key);
  if (!reservation || reservation->overdue) {
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
  StoreBulk(c, lock.key, std::move(handle).Publish(pending.crc), reservation.wanted_on);
  if (reservation.expiry_ms > 0) lock.key.SetExpiry(c.now_ms + reservation.expiry_ms);
  c.loop.stats().commits.Add();
  c.reply.Ok();
}

}  // namespace

uint64_t BytesToWaitFor(const Context& c, size_t key, size_t count, size_t step) {
  constexpr uint64_t kMost = 16 << 20;
  const auto length = [&](size_t i) {
    return protocol::ParseUint64(c[kFirstKey + i * step + step - 1]).value_or(0);
  };
  uint64_t bytes = length(key);
  // The others' lengths were not looked at yet.
  while (++key < count && bytes < kMost) bytes += std::min(length(key), kMost);
  return bytes;
}

bool ParseCrc(std::string_view text, std::optional<uint32_t>* crc, std::string* error) {
  if (text == "-") return true;
  const auto value = protocol::ParseUint64(text);
  if (!value || *value > UINT32_MAX) {
    *error = "ERR crc is not a 32-bit number or '-'";
    return false;
  }
  *crc = static_cast<uint32_t>(*value);
  return true;
}

std::optional<WriteOptions> ParseWriteOptions(Context& c, size_t index, size_t values) {
  WriteOptions options;
  for (size_t i = index; i < c.size(); ++i) {
    const bool seconds = EqualsIgnoreCase(c[i], "EX");
    if (EqualsIgnoreCase(c[i], "NX") && !options.if_present) {
      options.if_absent = true;
    } else if (EqualsIgnoreCase(c[i], "XX") && !options.if_absent) {
      options.if_present = true;
    } else if ((seconds || EqualsIgnoreCase(c[i], "PX")) && options.expiry_ms == 0 &&
               i + 1 < c.size()) {
      const auto time = c.Integer(++i);
      if (!time) return std::nullopt;
      // Bounded so that now + expiry cannot overflow at the commit either.
      constexpr int64_t kMost = INT64_MAX / 4000;
      if (*time <= 0 || *time > (seconds ? kMost : kMost * 1000)) {
        c.Error("ERR invalid expire time in '" + std::string(c.command.name) + "' command");
        return std::nullopt;
      }
      options.expiry_ms = seconds ? *time * 1000 : *time;
    } else if (EqualsIgnoreCase(c[i], "PREFER") && i + 1 < c.size()) {
      options.prefer = c[++i];
    } else if (EqualsIgnoreCase(c[i], "CRC") && values > 0 && options.crcs.empty() &&
               values < c.size() - i) {
      options.crcs.resize(values);
      std::string error;
      for (auto& crc : options.crcs) {
        if (ParseCrc(c[++i], &crc, &error)) continue;
        c.Error(error);
        return std::nullopt;
      }
    } else {
      c.SyntaxError();
      return std::nullopt;
    }
  }
  return options;
}

void KvAlloc(Context& c) {
  const auto count = KeyCount(c, 2);
  if (!count) return;
  const auto options = ParseWriteOptions(c, kFirstKey + *count * 2);
  if (!options) return;
  Session* session = c.connection.session();
  if (session == nullptr || !session->attached()) {
    return c.Error(
        "ERR KV.ALLOC needs a session with an attached shared-memory socket: say KV.HELLO and "
        "connect to it, or write with SET");
  }
  if (c.keyspace().wants_batches()) {
    std::vector<uint64_t> hashes(*count);
    storage::KeyPartitions partitions(c.keyspace().partition_set());
    for (size_t i = 0; i < *count; ++i) {
      hashes[i] = storage::HashKey(c[kFirstKey + i * 2]);
      partitions.Add(c[kFirstKey + i * 2]);
    }
    c.keyspace().NoteBatch(hashes, storage::BatchKind::kWrite, partitions.slots());
  }
  const int64_t longest = c.server.config().number(Key::kProtoMaxBulkLen);
  c.reply.Array(*count);
  std::vector<std::pair<size_t, uint64_t>> taken;  // argument of the key, token
  for (size_t i = 0; i < *count; ++i) {
    const std::string_view key = c[kFirstKey + i * 2];
    const auto length = protocol::ParseInt64(c[kFirstKey + i * 2 + 1]);
    if (!length || *length <= 0 || *length > longest) {
      c.Error("ERR length is out of range (1 to proto-max-bulk-len)");
      continue;
    }
    const Placement& placement = c.server.placement();
    const auto preferred = [&](storage::DeviceSet reach) {
      return options->prefer ? placement.Preferred(*options->prefer, reach)
                             : placement.Choose(key, reach);
    };
    const auto now = preferred(session->devices_to_write());
    if (!now) {
      c.Error("ERR PREFER: " + now.error().message);
      continue;
    }
    Missing& missing = c.loop.missing();
    const bool waits = !missing.elsewhere && !missing.final;
    auto handle = c.tenant.ReserveInArena(session->id(), static_cast<uint64_t>(*length), c.now_ms,
                                          *now, waits ? &missing.growing : nullptr);
    if (!handle && (missing.growing != 0 ||
                    c.WaitsForMemory(handle.error(), BytesToWaitFor(c, i, *count, 2)))) {
      // All of it is tried again, so what was got so far goes back.
      for (const auto& [index, token] : taken) TakeWritten(session, token, c[index]);
      return;
    }
    if (!handle) {
      c.OutOfMemory(handle.error().message);
      continue;
    }
    const storage::Extent extent = handle->extent();
    Session::Reservation reservation;
    reservation.handle = std::move(*handle);
    reservation.key = key;
    reservation.if_absent = options->if_absent;
    reservation.if_present = options->if_present;
    reservation.expiry_ms = options->expiry_ms;
    // Who does not reach the device, or may not write there, writes to host memory; from there the
    // value moves on.
    if (const auto then = preferred(storage::kAllDevices);
        then->tier == protocol::Tier::kGpu && now->tier != protocol::Tier::kGpu) {
      reservation.wanted_on = then->devices;
    }
    const auto token = session->AddReservation(std::move(reservation));
    if (!token) {
      c.Error(
          "ERR too many reservations wait for KV.COMMIT (session-max-reservations; those that timed "
          "out count until they are aborted or the session ends)");
      continue;
    }
    taken.emplace_back(kFirstKey + i * 2, *token);
    c.loop.stats().reservations.Add();
    c.reply.Array(4);
    c.reply.Integer(static_cast<int64_t>(*token));
    c.reply.Integer(extent.region->id());
    c.reply.Integer(static_cast<int64_t>(extent.offset));
    c.reply.Integer(static_cast<int64_t>(extent.length));
  }
}

void KvCommit(Context& c) {
  const auto count = KeyCount(c, 3);
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
  // Memory first: while it is waited for, the reservations stay.
  std::vector<Result<storage::WriteHandle>> copies;
  for (size_t i = 0; i < *count; ++i) {
    const size_t at = kFirstKey + i * 3;
    const Session* session = c.connection.session();
    const auto token = protocol::ParseUint64(c[at + 1]);
    const storage::Extent* const reserved =
        session != nullptr && token ? session->Reserved(*token, c[at]) : nullptr;
    // On a device every client of the tenant may write anyway.
    copies.push_back(reserved != nullptr && reserved->region->device() == nullptr
                         ? c.tenant.Reserve(reserved->length, c.now_ms, reserved->region->tier())
                         : storage::WriteHandle());
    if (!copies.back() && c.WaitsForMemory(copies.back().error(), reserved->length)) return;
  }
  auto all = std::make_shared<std::vector<Pending>>();
  for (size_t i = 0; i < *count; ++i) {
    Pending& pending = all->emplace_back(TakePending(c, kFirstKey + i * 3));
    if (!pending.error.empty()) continue;
    if (copies[i]) {
      pending.copy = std::move(*copies[i]);
    } else {
      c.loop.stats().oom_replies.Add();
      pending.error = "OOM " + copies[i].error().message;
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

void KvAbort(Context& c) {
  const auto count = KeyCount(c, 2);
  if (!count) return;
  if (c.size() != kFirstKey + *count * 2) return c.SyntaxError();
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    const auto token = protocol::ParseUint64(c[kFirstKey + i * 2 + 1]);
    const auto reservation = TakeWritten(c.connection.session(), token, c[kFirstKey + i * 2]);
    const bool aborted = reservation && !reservation->overdue;
    if (aborted) c.loop.stats().aborts.Add();
    c.reply.Integer(aborted ? 1 : 0);
  }
}

}  // namespace moonpool::server
