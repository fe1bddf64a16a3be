// The KV.* commands: sessions, descriptors, reservations, pins, namespaces.
//
// Batches answer per key: an array with one element per key, errors among them; one bad key never
// fails its neighbours.  Syntax errors fail the command.
#include <algorithm>
#include <array>
#include <optional>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/connection.h"
#include "server/kv_arguments.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "server/values.h"
#include "storage/key_partitions.h"
#include "storage/tenant.h"

namespace moonpool::server {

std::optional<size_t> KeyCount(Context& c, size_t step) {
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

bool PinAll(Context& c, const std::vector<uint64_t>& hashes, size_t step, Usable usable,
            std::vector<storage::ValueRef>* pinned) {
  for (size_t i = 0; i < hashes.size(); ++i) {
    storage::KeyLock lock(c.keyspace(), c[kFirstKey + i * step], hashes[i], c.now_ms);
    const storage::Entry* entry = lock.key.Read();
    if (storage::BulkValue* const bulk = (c.*usable)(entry)) {
      (*pinned)[i] = storage::ValueRef::Share(bulk);
    } else {
      c.WaitsFor(entry, hashes[i]);
    }
  }
  return !c.loop.missing().any();
}

namespace {

using protocol::EqualsIgnoreCase;
using storage::Entry;
using storage::KeyLock;

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

// --- reading -----------------------------------------------------------------------------------

void Locate(Context& c) {
  const auto count = KeyCount(c, 1);
  if (!count) return;
  const auto request = ParseLease(c, kFirstKey + *count, true);
  if (!request) return;
  storage::Keyspace& keyspace = c.keyspace();
  Session* session = c.connection.session();
  std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, 1);
  if (*count > 1 && c.server.prefetch()) {
    for (const uint64_t hash : hashes) keyspace.PrefetchBulk(hash);
  }
  std::vector<storage::ValueRef> used;
  std::vector<storage::ValueRef> pinned(PinsAll(c) ? *count : 0);
  if (!pinned.empty() && !PinAll(c, hashes, 1, &Context::ReachableOf, &pinned)) return;
  c.reply.Array(*count);
  uint64_t hits = 0;
  size_t not_inline = 0;
  storage::KeyPartitions partitions(keyspace.wants_batches() ? keyspace.partition_set() : nullptr);
  for (size_t i = 0; i < *count; ++i) {
    storage::ValueRef value;
    if (!pinned.empty() && pinned[i]) {
      value = std::move(pinned[i]);
      keyspace.CountHit(*value);
    } else {
      KeyLock lock(keyspace, c[kFirstKey + i], hashes[i], c.now_ms);
      const Entry* entry = lock.key.Read();
      // What is on the SSD alone by now did not come up, nor what is on a device out of reach.
      const bool found =
          entry != nullptr && (entry->is_inline() || c.ReachableOf(entry) != nullptr);
      keyspace.CountRead(lock.key, found ? entry : nullptr);
      if (entry != nullptr && entry->is_inline()) {
        ++hits;
        c.reply.Bulk(entry->value());
        continue;
      }
      if (found) value = storage::ValueRef::Share(c.ReachableOf(entry));
    }
    hashes[not_inline++] = hashes[i];
    partitions.Add(c[kFirstKey + i]);
    if (!value) {
      c.reply.Null();
      continue;
    }
    ++hits;
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
  const bool counts =
      keyspace.NoteBatch(std::span(hashes).first(not_inline), storage::BatchKind::kRead,
                         partitions.slots());
  if (used.empty()) return;
  std::vector<storage::BulkValue*> values;
  values.reserve(used.size());
  for (const storage::ValueRef& value : used) values.push_back(value.get());
  if (keyspace.Touch(values, counts) > 0) {
    c.tenant.ReadAhead(values.back()->owner_hash(), values.back()->partition());
  }
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
  const auto count = KeyCount(c, 1);
  if (!count) return;
  const auto request = ParseLease(c, kFirstKey + *count, false);
  if (!request) return;
  ForEachLease(c, *count, [&](uint64_t lease) {
    return c.connection.session()->Renew(lease, *request, c.now_ms);
  });
}

void Release(Context& c) {
  const auto count = KeyCount(c, 1);
  if (!count) return;
  if (c.size() != kFirstKey + *count) return c.SyntaxError();
  ForEachLease(c, *count,
               [&](uint64_t lease) { return c.connection.session()->Release(lease) ? 1 : 0; });
}

void Match(Context& c) {
  const auto count = KeyCount(c, 1);
  if (!count) return;
  bool with_tiers = false;
  if (c.size() == kFirstKey + *count + 1 && EqualsIgnoreCase(c[kFirstKey + *count], "WITHTIERS")) {
    with_tiers = true;
  } else if (c.size() != kFirstKey + *count) {
    return c.SyntaxError();
  }
  std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, 1);
  size_t present = 0;
  int64_t on_ssd = 0;
  int64_t on_gpu = 0;
  size_t inlined = 0;
  for (; present < *count; ++present) {
    KeyLock lock(c.keyspace(), c[kFirstKey + present], hashes[present], c.now_ms);
    const Entry* entry = lock.key.Find();
    if (entry == nullptr) break;
    on_ssd += entry->has(Entry::kOnSsd) ? 1 : 0;
    on_gpu += entry->has(Entry::kBulk) && entry->bulk()->device() != nullptr ? 1 : 0;
    inlined += entry->is_inline() ? 1 : 0;
  }
  if (inlined == 0) {
    storage::KeyPartitions partitions(c.keyspace().partition_set());
    for (size_t i = 0; i < *count; ++i) partitions.Add(c[kFirstKey + i]);
    c.keyspace().NoteBatch(hashes, storage::BatchKind::kLook, partitions.slots());
  }
  const auto n = static_cast<int64_t>(present);
  if (!with_tiers) return c.reply.Integer(n);
  c.reply.Array(4);
  c.reply.Integer(n);
  c.reply.Integer(on_gpu);
  c.reply.Integer(n - on_ssd - on_gpu);
  c.reply.Integer(on_ssd);
}

// On a loop, as the tier that moves values ends before the one that loads them.
storage::SsdTier::OnLoaded PromoteWhenLoaded(Context& c, storage::DeviceSet wanted_on) {
  return [&loop = c.loop, &tenant = c.tenant, wanted_on](const storage::SsdTier::Loaded& loaded) {
    if (!loaded.value) return;
    const auto value = std::make_shared<storage::ValueRef>(loaded.value.Share());
    loop.Post([&tenant, wanted_on, value] {
      tenant.gpu()->Promote(value->Share(), wanted_on);
    });
  };
}

void Prefetch(Context& c) {
  const auto count = KeyCount(c, 1);
  if (!count) return;
  storage::DeviceSet wanted_on = 0;
  if (c.size() == kFirstKey + *count + 2 && EqualsIgnoreCase(c[kFirstKey + *count], "PREFER")) {
    // Devices that this session reaches; a session without any may mean all.
    const storage::DeviceSet reach = c.reach() != 0 ? c.reach() : storage::kAllDevices;
    const auto preferred = c.server.placement().Preferred(c[kFirstKey + *count + 1], reach);
    if (!preferred) return c.Error("ERR PREFER: " + preferred.error().message);
    if (preferred->tier == protocol::Tier::kGpu) wanted_on = preferred->devices;
  } else if (c.size() != kFirstKey + *count) {
    return c.SyntaxError();
  }
  const std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, 1);
  c.reply.Array(*count);
  for (size_t i = 0; i < *count; ++i) {
    storage::SsdPlace place;
    storage::ValueRef value;
    {
      KeyLock lock(c.keyspace(), c[kFirstKey + i], hashes[i], c.now_ms);
      const Entry* entry = lock.key.Read();
      c.reply.Integer(entry == nullptr ? 0 : 1);
      if (entry != nullptr && entry->has(Entry::kOnSsd)) place = entry->place();
      if (wanted_on != 0 && entry != nullptr && entry->has(Entry::kBulk)) {
        value = storage::ValueRef::Share(entry->bulk());
      }
    }
    if (value) c.tenant.gpu()->Promote(std::move(value), wanted_on);
    if (!place) continue;
    storage::SsdTier::OnLoaded then;
    if (wanted_on != 0) then = PromoteWhenLoaded(c, wanted_on);
    c.tenant.ssd()->Load(hashes[i], place, storage::SsdTier::Why::kAhead, std::move(then));
  }
}

constexpr std::string_view kGroup = "kv";
constexpr std::string_view kSince = "0.1.0";

const Command kCommands[] = {
    {"kv.abort", KvAbort, -4, kWrite | kFast, CountedKeys(2, "RW"), "kv", kGroup, kSince, "O(N)",
     "Gives reservations of KV.ALLOC back.", "numkeys <key token> [<key token> ...]"},
    {"kv.alloc", KvAlloc, -4, kWrite | kDenyOom | kNoMulti, CountedKeys(2, "OW"), "kv", kGroup,
     kSince, "O(N)", "Reserves extents that this session's client fills through shared memory.",
     "numkeys <key length> [<key length> ...] [NX | XX] [EX seconds | PX milliseconds] "
     "[PREFER tiers]"},
    {"kv.commit", KvCommit, -5, kWrite, CountedKeys(3, "OW UPDATE"), "kv", kGroup, kSince, "O(N)",
     "Makes filled extents the values of their keys.",
     "numkeys <key token crc> [<key token crc> ...]"},
    {"kv.drop", KvDrop, 3, kWrite, NoKeys(), "kv dangerous", kGroup, kSince,
     "O(1), O(N) in the background",
     "Removes keys by glob pattern or by prefix; they are gone at once, their memory follows.",
     "<MATCH pattern | NAMESPACE name>"},
    {"kv.hello", KvHello, -2, kFast | kNoMulti | kNoScript, NoKeys(), "kv connection", kGroup, kSince,
     "O(1)", "Begins a KV session and tells which transports this client can use.",
     "version [TRANSPORTS <count transport [transport ...]>] [DEVICES <count uuid [uuid ...]>] [HOST id] "
     "[REDIRECT <yes | no>]"},
    {"kv.info", KvInfo, 2, kReadOnly | kFast, OneKey("RO"), "kv", kGroup, kSince, "O(1)",
     "Tells where and how a key's value is stored.", "key"},
    {"kv.locate", Locate, -3, kReadOnly | kFast, CountedKeys(1, "RO ACCESS"), "kv", kGroup, kSince,
     "O(N)", "Returns small values inline and descriptors of large ones, under a lease.",
     "numkeys key [key ...] [LEASE milliseconds] [HOLD]"},
    {"kv.match", Match, -3, kReadOnly | kFast, CountedKeys(1, "RO"), "kv", kGroup, kSince, "O(N)",
     "Counts how many of the keys, from the first on, are present.",
     "numkeys key [key ...] [WITHTIERS]"},
    {"kv.pin", KvPin, -3, kWrite | kFast, CountedKeys(1, "RW"), "kv", kGroup, kSince, "O(N)",
     "Keeps keys from eviction: HARD always, else as long as there is anything else to evict.",
     "numkeys key [key ...] [TTL milliseconds] [HARD]"},
    {"kv.prefetch", Prefetch, -3, kReadOnly | kFast, CountedKeys(1, "RO ACCESS"), "kv", kGroup,
     kSince, "O(N)",
     "Begins to bring values up from the SSD, or to a GPU; 1 for keys that are there or on their way.",
     "numkeys key [key ...] [PREFER tiers]"},
    {"kv.read", KvRead, -6, kReadOnly | kNoMulti | kNoScript, CountedKeys(4, "RO ACCESS"), "kv", kGroup,
     kSince, "O(N)",
     "Writes values into this session's client's buffers over RDMA; returns their lengths.",
     "numkeys <key buffer offset room> [<key buffer offset room> ...]"},
    {"kv.regions", KvRegions, 1, kReadOnly, NoKeys(), "kv admin", kGroup, kSince, "O(N)",
     "Lists the memory regions of the pool.", ""},
    {"kv.release", Release, -3, kFast, NoKeys(), "kv", kGroup, kSince, "O(N)",
     "Ends leases and holds of this session.", "numleases lease [lease ...]"},
    {"kv.renew", Renew, -3, kFast, NoKeys(), "kv", kGroup, kSince, "O(N)",
     "Extends leases of this session.", "numleases lease [lease ...] [LEASE milliseconds]"},
    {"kv.sessions", KvSessions, 1, kReadOnly | kAdmin, NoKeys(), "kv admin", kGroup, kSince, "O(N)",
     "Lists the KV sessions.", ""},
    {"kv.stats", KvStats, 1, kReadOnly, NoKeys(), "kv", kGroup, kSince, "O(1)",
     "Returns the counters of the pool and its transports.", ""},
    {"kv.token", KvToken, -1, kFast | kNoScript, NoKeys(), "kv connection", kGroup, kSince, "O(N)",
     "Returns one-time tokens, each of which opens one RDMA queue pair of this session.", "[count]"},
    {"kv.unpin", KvUnpin, -3, kWrite | kFast, CountedKeys(1, "RW"), "kv", kGroup, kSince, "O(N)",
     "Lets pinned keys be evicted again.", "numkeys key [key ...]"},
    {"kv.write", KvWrite, -6, kWrite | kDenyOom | kNoMulti | kNoScript, CountedKeys(4, "OW UPDATE"),
     "kv", kGroup, kSince, "O(N)",
     "Reads values from this session's client's buffers over RDMA and stores them.",
     "numkeys <key buffer offset length> [<key buffer offset length> ...] [NX | XX] "
     "[EX seconds | PX milliseconds] [PREFER tiers] [CRC crc [crc ...]]"},
};

}  // namespace

std::span<const Command> KvCommands() {
  return kCommands;
}

}  // namespace moonpool::server
