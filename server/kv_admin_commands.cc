// KV.PIN, KV.UNPIN and KV.DROP, and the commands that look inside.
#include <string>
#include <utility>
#include <vector>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/connection.h"
#include "server/kv_arguments.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "server/values.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;
using storage::Entry;
using storage::KeyLock;

void Text(Reply& r, std::string_view name, std::string_view value) {
  r.Bulk(name);
  r.Bulk(value);
}
void Number(Reply& r, std::string_view name, uint64_t value) {
  r.Bulk(name);
  r.Integer(static_cast<int64_t>(value));
}

std::string PartitionName(const Context& c, std::string_view key) {
  if (const auto set = c.keyspace().partition_set()) {
    const uint8_t slot = set->Match(key);
    for (const auto& member : set->members()) {
      if (member.slot == slot) return member.options.name;
    }
  }
  return std::string(storage::kDefaultPartition);
}

// KV.STATS: what the partitions count, if there are any.
std::vector<std::pair<std::string, uint64_t>> PartitionNumbers(const Context& c) {
  std::vector<std::pair<std::string, uint64_t>> rows;
  if (!c.keyspace().partitions().any()) return rows;
  for (const auto& report : c.keyspace().PartitionReports()) {
    const storage::Partitions::Counts& counts = report.counts;
    const std::pair<const char*, uint64_t> numbers[] = {
        {"dram-bytes", counts.dram_bytes}, {"dram-keys", counts.dram_keys},
        {"gpu-bytes", counts.gpu_bytes},   {"gpu-keys", counts.gpu_keys},
        {"ssd-bytes", counts.ssd_bytes},   {"ssd-keys", counts.ssd_keys},
        {"hits", counts.hits},             {"misses", counts.misses},
        {"evictions", counts.evictions},   {"demotions", counts.demotions},
        {"drops", counts.drops},
    };
    for (const auto& [name, number] : numbers) {
      rows.emplace_back("partition-" + report.options.name + "-" + name, number);
    }
  }
  return rows;
}

}  // namespace

void KvPin(Context& c) {
  const auto count = KeyCount(c, 1);
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
  const double most =
      c.server.config().real(Key::kHardPinLimit) * static_cast<double>(c.tenant.budget().limit());
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    KeyLock lock(c.keyspace(), c[kFirstKey + i], c.now_ms);
    const Entry* entry = lock.key.Find();
    if (entry == nullptr) {
      c.reply.Integer(0);
    } else if (pin.hard &&
               static_cast<double>(c.keyspace().hard_pinned_bytes() + ValueLength(*entry)) > most) {
      c.OutOfMemory("hard-pin-limit is reached");
    } else {
      lock.key.SetPin(pin);
      c.reply.Integer(1);
    }
  }
}

void KvUnpin(Context& c) {
  const auto count = KeyCount(c, 1);
  if (!count) return;
  if (c.size() != kFirstKey + *count) return c.SyntaxError();
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    KeyLock lock(c.keyspace(), c[kFirstKey + i], c.now_ms);
    c.reply.Integer(lock.key.Find() != nullptr && lock.key.ClearPin() ? 1 : 0);
  }
}

void KvDrop(Context& c) {
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

void KvInfo(Context& c) {
  KeyLock lock(c.keyspace(), c[1], c.key_hash, c.now_ms);
  const Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  Reply& r = c.reply;
  const bool bulk = entry->has(Entry::kBulk);
  const auto pin = lock.key.GetPin();
  const bool on_ssd = entry->has(Entry::kOnSsd);
  const storage::DeviceMemory* const device = bulk ? entry->bulk()->device() : nullptr;
  r.Map(bulk ? (device != nullptr ? 16 : 15) : on_ssd ? 8 : 7);
  Text(r, "stored", bulk ? "extent" : on_ssd ? "chunks" : "inline");
  Text(r, "tier",
       on_ssd ? "ssd" : protocol::TierName(bulk ? entry->bulk()->tier() : protocol::Tier::kDram));
  Number(r, "length", ValueLength(*entry));
  Number(r, "heap-bytes", entry->block_bytes());
  r.Bulk("ttl-ms");
  r.Integer(entry->has(Entry::kHasExpiry) ? entry->expiry_ms() - c.now_ms : -1);
  Text(r, "pin", !pin ? "none" : pin->hard ? "hard" : "soft");
  Text(r, "partition", PartitionName(c, c[1]));
  if (on_ssd) Number(r, "ssd-version", entry->place().id);
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
  // 0: it is in memory only.
  Number(r, "ssd-version", value.place().id);
  // Leases, holds, and replies on their way out.
  Number(r, "pinned-by", value.references() - 1);
  if (device != nullptr) Text(r, "device", device->name());
}

void KvRegions(Context& c) {
  const auto regions = c.tenant.pool().Regions();
  // A GPU tier that was asked for and is not there shows why.
  const bool no_gpu = c.server.gpus() == nullptr && c.server.config().number(Key::kGpuMemory) != 0;
  Reply& r = c.reply;
  r.Array(regions.size() + (no_gpu ? 1 : 0));
  if (no_gpu) {
    r.Map(3);
    Text(r, "tier", "gpu");
    Text(r, "state", "off");
    Text(r, "reason", c.server.gpu_off());
  }
  for (const storage::RegionInfo& region : regions) {
    const bool told = c.server.rdma() != nullptr;
    r.Map((region.device.empty() ? 9 : 10) + (told ? 1 : 0));
    Number(r, "region", region.id);
    Text(r, "kind", region.kind == storage::Region::Kind::kShared ? "shared" : "arena");
    Text(r, "tier", protocol::TierName(region.tier));
    Text(r, "state", region.draining ? "draining" : "active");
    Number(r, "session", region.session);
    Number(r, "bytes", region.bytes);
    Number(r, "populated-bytes", region.populated_bytes);
    Number(r, "extent-bytes", region.extent_bytes);
    Number(r, "extents", region.extents);
    if (!region.device.empty()) Text(r, "device", region.device);
    if (told) {
      Text(r, "rdma",
           region.exported               ? "registered"
           : region.export_error.empty() ? "not yet"
                                         : region.export_error);
    }
  }
}

void KvSessions(Context& c) {
  const auto sessions = c.server.Sessions();
  c.reply.Array(sessions.size());
  for (const auto& session : sessions) {
    Reply& r = c.reply;
    const uint64_t queue_pairs = session->queue_pairs.load(std::memory_order_relaxed);
    const bool attached = session->attached.load(std::memory_order_relaxed);
    r.Map(10);
    Number(r, "session", session->id);
    Number(r, "client", session->client_id);
    Text(r, "addr", session->address);
    Text(r, "tenant", session->tenant);
    Text(r, "transport", attached ? "shm" : queue_pairs > 0 ? "rdma" : "tcp");
    Text(r, "redirect", session->redirect ? "yes" : "no");
    Number(r, "leases", session->leases.get());
    Number(r, "holds", session->holds.get());
    Number(r, "reservations", session->reservations.get());
    Number(r, "queue-pairs", queue_pairs);
  }
}

void KvStats(Context& c) {
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
  const auto of_partitions = PartitionNumbers(c);
  c.reply.Map(std::size(rows) + of_partitions.size());
  for (const auto& [name, value] : rows) Number(c.reply, name, value);
  for (const auto& [name, value] : of_partitions) Number(c.reply, name, value);
}

}  // namespace moonpool::server
