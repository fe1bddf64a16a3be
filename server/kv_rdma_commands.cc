// KV.READ and KV.WRITE: the server moves values to and from its client's buffers.
//
//   KV.READ   pins the values -> Rdma writes them to the buffers -> replies
//   KV.WRITE  reserves extents -> Rdma reads the buffers into them -> publishes -> replies
//
// The connection waits meanwhile; what is pinned or reserved is let go when the NIC touches it no
// more, also when the connection has gone by then.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/decimal.h"
#include "server/connection.h"
#include "server/kv_arguments.h"
#include "server/loop.h"
#include "server/placement.h"
#include "server/rdma.h"
#include "server/server.h"
#include "server/session.h"
#include "server/values.h"
#include "storage/key_partitions.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using storage::Entry;
using storage::KeyLock;

constexpr size_t kStep = 4;  // key, buffer, offset, length

// One key of a command, and the part of a buffer that it goes to or comes from.
struct Item {
  Rdma::Move move;
  std::string error;           // not empty: what to reply
  bool found = true;
  storage::ValueRef value;     // KV.READ: a large one
  std::string bytes;           // a small one
  std::string key;             // KV.WRITE
  storage::WriteHandle handle;
  storage::DeviceSet wanted_on = 0;
};

struct Batch {
  std::vector<Item> items;
  std::vector<size_t> moving;  // of them, those with bytes to move
  WriteOptions options;
};

// The buffer's part that the arguments behind the key at `index` tell; an item with an error otherwise.
Item ParsePart(const Context& c, size_t index) {
  Item item;
  const auto buffer = protocol::ParseInt64(c[index + 1]);
  const auto offset = protocol::ParseInt64(c[index + 2]);
  const auto length = protocol::ParseInt64(c[index + 3]);
  if (!buffer || *buffer < 0 || *buffer > UINT32_MAX || !offset || *offset < 0 || !length ||
      *length < 0 || *length > INT64_MAX - *offset) {
    item.error = "ERR buffer, offset and length are not numbers, or out of range";
    return item;
  }
  item.move.buffer = static_cast<uint32_t>(*buffer);
  item.move.offset = static_cast<uint64_t>(*offset);
  item.move.length = static_cast<uint64_t>(*length);
  return item;
}

// Moves what there is to be moved, then replies, on the connection's loop.
void MoveAll(Context& c, uint64_t session, Rdma::Way way, std::shared_ptr<Batch> batch,
             std::function<void(Context&, Batch&)> reply) {
  std::vector<Rdma::Move> moves;
  for (size_t i = 0; i < batch->items.size(); ++i) {
    Item& item = batch->items[i];
    if (!item.error.empty() || !item.found || item.move.length == 0) continue;
    moves.push_back(item.move);
    batch->moving.push_back(i);
  }
  if (moves.empty()) return reply(c, *batch);
  auto resume = c.connection.Suspend(
      c.command, [batch, reply = std::move(reply)](Context& resumed) { reply(resumed, *batch); });
  c.server.rdma()->StartMoves(
      session, way, std::move(moves),
      [batch, resume = std::move(resume)](std::span<const Rdma::Moved> moved,
                                          const std::string& why) {
        for (size_t i = 0; i < moved.size(); ++i) {
          Item& item = batch->items[batch->moving[i]];
          if (moved[i] == Rdma::Moved::kNoQueuePair) {
            item.error = "TRYAGAIN rdma: no queue pair of this session is open";
          } else if (moved[i] == Rdma::Moved::kFailed) {
            item.error = "ERR rdma: " + why;
          }
        }
        resume();
      });
}

// --- reading -----------------------------------------------------------------------------------

void TakeValue(Item* item, storage::ValueRef value) {
  const storage::Extent& extent = value->extent();
  item->move.region = extent.region->id();
  item->move.data = extent.address();
  item->move.on_device = extent.region->device() != nullptr;
  item->value = std::move(value);
}

// Finds the values, and counts who was found.
void Find(Context& c, const std::vector<uint64_t>& hashes, std::vector<storage::ValueRef> pinned,
          std::vector<Item>* items) {
  storage::Keyspace& keyspace = c.keyspace();
  std::vector<uint64_t> not_inline;
  storage::KeyPartitions partitions(keyspace.wants_batches() ? keyspace.partition_set() : nullptr);
  std::vector<storage::BulkValue*> used;
  uint64_t hits = 0;
  for (size_t i = 0; i < items->size(); ++i) {
    Item& item = (*items)[i];
    const std::string_view key = c[kFirstKey + i * kStep];
    if (!pinned.empty() && pinned[i]) {
      keyspace.CountHit(*pinned[i]);
      TakeValue(&item, std::move(pinned[i]));
    } else {
      KeyLock lock(keyspace, key, hashes[i], c.now_ms);
      const Entry* entry = lock.key.Read();
      item.found = entry != nullptr && (entry->is_inline() || c.MovableOf(entry) != nullptr);
      keyspace.CountRead(lock.key, item.found ? entry : nullptr);
      if (item.found && entry->is_inline()) {
        item.bytes = entry->value();
        item.move.data = item.bytes.data();
      } else if (item.found) {
        TakeValue(&item, storage::ValueRef::Share(c.MovableOf(entry)));
      }
    }
    hits += item.found ? 1 : 0;
    if (item.value) used.push_back(item.value.get());
    if (!item.value && item.found) continue;
    not_inline.push_back(hashes[i]);
    partitions.Add(key);
  }
  c.loop.stats().keyspace_hits.Add(hits);
  c.loop.stats().keyspace_misses.Add(items->size() - hits);
  const bool counts =
      keyspace.NoteBatch(not_inline, storage::BatchKind::kRead, partitions.slots());
  if (!used.empty() && keyspace.Touch(used, counts) > 0) {
    c.tenant.ReadAhead(used.back()->owner_hash(), used.back()->partition());
  }
}

}  // namespace

void KvRead(Context& c) {
  const auto count = KeyCount(c, kStep);
  if (!count) return;
  if (c.size() != kFirstKey + *count * kStep) return c.SyntaxError();
  const Session* const session = RdmaSession(c);
  if (session == nullptr) return;
  const std::vector<uint64_t> hashes = HashAndPrefetch(c, *count, kStep);
  std::vector<storage::ValueRef> pinned(PinsAll(c) ? *count : 0);
  if (!pinned.empty() && !PinAll(c, hashes, kStep, &Context::MovableOf, &pinned)) return;
  auto batch = std::make_shared<Batch>();
  for (size_t i = 0; i < *count; ++i) {
    batch->items.push_back(ParsePart(c, kFirstKey + i * kStep));
  }
  Find(c, hashes, std::move(pinned), &batch->items);
  for (Item& item : batch->items) {
    if (!item.error.empty() || !item.found) continue;
    const uint64_t room = item.move.length;
    item.move.length = item.value ? item.value->length() : item.bytes.size();
    if (item.move.length > room) {
      item.error = "ERR the value has " + std::to_string(item.move.length) + " bytes, the buffer " +
                   std::to_string(room);
    }
  }
  MoveAll(c, session->id(), Rdma::Way::kToClient, std::move(batch), [](Context& to, Batch& all) {
    to.reply.Array(all.items.size());
    for (const Item& item : all.items) {
      if (!item.error.empty()) {
        to.Error(item.error);
      } else if (!item.found) {
        to.reply.Null();
      } else {
        to.reply.Integer(static_cast<int64_t>(item.move.length));
      }
    }
  });
}

// --- writing -----------------------------------------------------------------------------------

namespace {

void Publish(Context& c, const WriteOptions& options, size_t index, Item* item) {
  LoopStats& stats = c.loop.stats();
  if (!item->error.empty()) {
    if (item->handle) stats.aborts.Add();
    return c.Error(item->error);
  }
  KeyLock lock(c.keyspace(), item->key, c.now_ms);
  const bool exists = lock.key.Find() != nullptr;
  if ((options.if_absent && exists) || (options.if_present && !exists)) {
    stats.aborts.Add();
    return c.reply.Null();
  }
  const auto threshold = static_cast<uint64_t>(c.server.config().number(Key::kBulkThreshold));
  if (item->move.length < threshold) {
    lock.key.Set({item->handle.data(), item->move.length});
  } else {
    const auto crc = options.crcs.empty() ? std::nullopt : options.crcs[index];
    StoreBulk(c, lock.key, std::move(item->handle).Publish(crc), item->wanted_on);
  }
  if (options.expiry_ms > 0) lock.key.SetExpiry(c.now_ms + options.expiry_ms);
  stats.commits.Add();
  c.reply.Integer(static_cast<int64_t>(item->move.length));
}

// Memory for the bytes of the item that is key number `key` of `count`.  False: it is on its way, and
// the command is run again.
bool Reserve(Context& c, const WriteOptions& options, size_t key, size_t count, Item* item) {
  const uint64_t length = item->move.length;
  const Placement& placement = c.server.placement();
  const auto preferred = [&](storage::DeviceSet reach) {
    return options.prefer ? placement.Preferred(*options.prefer, reach)
                          : placement.Choose(item->key, reach);
  };
  // The NIC writes to host memory; from there the value moves on.
  const auto now = preferred(0);
  if (!now) {
    item->error = "ERR PREFER: " + now.error().message;
    return true;
  }
  if (const auto then = preferred(storage::kAllDevices); then->tier == protocol::Tier::kGpu) {
    item->wanted_on = then->devices;
  }
  auto handle = c.tenant.Reserve(length, c.now_ms, *now);
  if (!handle && c.WaitsForMemory(handle.error(), BytesToWaitFor(c, key, count, kStep))) {
    return false;
  }
  if (!handle) {
    c.loop.stats().oom_replies.Add();
    item->error = "OOM command not allowed when used memory > 'maxmemory': " +
                  handle.error().message + ".";
    return true;
  }
  item->move.region = handle->extent().region->id();
  item->move.data = handle->data();
  item->handle = std::move(*handle);
  return true;
}

}  // namespace

void KvWrite(Context& c) {
  const auto count = KeyCount(c, kStep);
  if (!count) return;
  const auto options = ParseWriteOptions(c, kFirstKey + *count * kStep, *count);
  if (!options) return;
  const Session* const session = RdmaSession(c);
  if (session == nullptr) return;
  const auto longest = static_cast<uint64_t>(c.server.config().number(Key::kProtoMaxBulkLen));
  auto batch = std::make_shared<Batch>();
  batch->options = *options;
  std::vector<uint64_t> hashes(*count);
  storage::KeyPartitions partitions(c.keyspace().partition_set());
  for (size_t i = 0; i < *count; ++i) {
    const size_t at = kFirstKey + i * kStep;
    Item& item = batch->items.emplace_back(ParsePart(c, at));
    item.key = c[at];
    hashes[i] = storage::HashKey(c[at]);
    partitions.Add(c[at]);
    if (!item.error.empty()) continue;
    if (item.move.length == 0 || item.move.length > longest) {
      item.error = "ERR length is out of range (1 to proto-max-bulk-len)";
    } else if (!Reserve(c, *options, i, *count, &item)) {
      return;
    }
  }
  batch->options.prefer.reset();  // it was in the arguments, which go
  if (c.keyspace().wants_batches()) {
    c.keyspace().NoteBatch(hashes, storage::BatchKind::kWrite, partitions.slots());
  }
  c.loop.stats().reservations.Add(static_cast<uint64_t>(std::count_if(
      batch->items.begin(), batch->items.end(), [](const Item& item) { return bool{item.handle}; })));
  MoveAll(c, session->id(), Rdma::Way::kFromClient, std::move(batch), [](Context& to, Batch& all) {
    to.reply.Array(all.items.size());
    for (size_t i = 0; i < all.items.size(); ++i) Publish(to, all.options, i, &all.items[i]);
  });
}

}  // namespace moonpool::server
