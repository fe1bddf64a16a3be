#include "server/values.h"

#include <cstring>

#include "protocol/decimal.h"
#include "server/connection.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "storage/tenant.h"

namespace moonpool::server {

Context::~Context() {
  for (auto& [value, devices] : moves_up) tenant.gpu()->Promote(std::move(value), devices);
}

storage::Keyspace& Context::keyspace() const { return tenant.keyspace(); }

std::optional<int64_t> Context::Integer(size_t index) {
  const auto value = protocol::ParseInt64(arguments[index]);
  if (!value) Error("ERR value is not an integer or out of range");
  return value;
}

bool Context::WaitsForMemory(const moonpool::Error& error, uint64_t bytes) {
  if (error.code != ErrorCode::kBusy || loop.missing().final) return false;
  loop.missing().memory_bytes += bytes;
  return true;
}

storage::DeviceSet Context::reach() const {
  const Session* const session = connection.session();
  return session == nullptr ? 0 : session->devices();
}

bool Context::WaitsFor(const storage::Entry* entry, uint64_t hash) {
  if (entry == nullptr) return false;
  const bool on_device =
      entry->has(storage::Entry::kBulk) && entry->bulk()->device() != nullptr;
  if (!on_device && !entry->has(storage::Entry::kOnSsd)) return false;
  Missing& missing = loop.missing();
  if (!missing.final && on_device) {
    missing.on_device.push_back(storage::ValueRef::Share(entry->bulk()));
    return true;
  }
  if (!missing.final) {
    missing.values.push_back({hash, entry->place()});
    return true;
  }
  if ((command.flags & kWrite) == 0) return false;
  missing.refused = true;
  return true;
}

storage::BulkValue* Context::BulkOf(const storage::Entry* entry) const {
  if (entry == nullptr || entry->is_inline()) return nullptr;
  if (!entry->has(storage::Entry::kBulk)) return loop.missing().CameUp(entry->place());
  storage::BulkValue* const value = entry->bulk();
  return value->device() == nullptr ? value : loop.missing().Fetched(value);
}

storage::BulkValue* Context::ReachableOf(const storage::Entry* entry) const {
  if (entry != nullptr && entry->has(storage::Entry::kBulk) && entry->bulk()->device() != nullptr) {
    storage::BulkValue* const value = entry->bulk();
    if (value->OnOneOf(reach()) || (value->OnDeviceForNics() && ReachesByNics())) return value;
  }
  return BulkOf(entry);
}

storage::BulkValue* Context::MovableOf(const storage::Entry* entry) const {
  if (entry != nullptr && entry->has(storage::Entry::kBulk) && entry->bulk()->OnDeviceForNics()) {
    return entry->bulk();
  }
  return BulkOf(entry);
}

bool Context::ReachesByNics() const {
  const Session* const session = connection.session();
  return session != nullptr && session->reaches_by_nics();
}

void Context::OutOfMemory(const std::string& why) {
  loop.stats().oom_replies.Add();
  Error("OOM command not allowed when used memory > 'maxmemory': " + why + ".");
}

std::optional<GivenValue> Context::TakeValue(size_t index) {
  Argument& argument = arguments[index];
  GivenValue value;
  const std::string_view key = arguments[command.values.KeyOf(index)].view();
  if (tenant.gpu() != nullptr) {
    const auto wanted = server.placement().Choose(key, storage::kAllDevices);
    if (wanted.tier == protocol::Tier::kGpu) value.wanted_on = wanted.devices;
  }
  if (argument.body != nullptr) {
    if (!argument.body->failure.empty()) {
      OutOfMemory(argument.body->failure);
      return std::nullopt;
    }
    // Kept in the body: the command may have to be run again.
    if (argument.body->extent) argument.body->value = std::move(argument.body->extent).Publish();
    if (argument.body->value) {
      value.bulk = argument.body->value.Share();
      return value;
    }
  }
  const auto threshold = static_cast<size_t>(server.config().number(Key::kBulkThreshold));
  if (argument.size < threshold) {
    value.bytes = argument.view();
    return value;
  }
  auto handle = tenant.Reserve(argument.size, now_ms, server.placement().Choose(key, 0));
  if (!handle) {
    if (!WaitsForMemory(handle.error(), argument.size)) OutOfMemory(handle.error().message);
    return std::nullopt;
  }
  std::memcpy(handle->data(), argument.data, argument.size);
  value.bulk = std::move(*handle).Publish();
  return value;
}

std::string_view ValueBytes(const storage::Entry& entry) {
  MOONPOOL_CHECK(!entry.has(storage::Entry::kOnSsd));
  if (!entry.has(storage::Entry::kBulk)) return entry.value();
  MOONPOOL_CHECK(entry.bulk()->device() == nullptr);
  return {entry.bulk()->data(), entry.bulk()->length()};
}

uint64_t ValueLength(const storage::Entry& entry) {
  if (entry.has(storage::Entry::kOnSsd)) return entry.place().length;
  return entry.has(storage::Entry::kBulk) ? entry.bulk()->length() : entry.value_bytes;
}

protocol::Descriptor DescriptorOf(const storage::BulkValue& value) {
  const storage::Extent& extent = value.extent();
  protocol::Descriptor descriptor;
  descriptor.region = extent.region->id();
  descriptor.offset = extent.offset;
  descriptor.length = extent.length;
  descriptor.slot = extent.slot;
  descriptor.generation = extent.generation;
  descriptor.crc = value.crc();
  descriptor.tier = value.tier();
  return descriptor;
}

storage::Entry* StoreValue(Context& context, storage::Keyspace::Key& key, GivenValue value,
                           bool keep_expiry) {
  if (!value.bulk) return key.Set(value.bytes, keep_expiry);
  return StoreBulk(context, key, std::move(value.bulk), value.wanted_on, keep_expiry);
}

storage::Entry* StoreBulk(Context& context, storage::Keyspace::Key& key, storage::ValueRef value,
                          storage::DeviceSet wanted_on, bool keep_expiry) {
  if (wanted_on != 0 && context.tenant.gpu() != nullptr) {
    context.moves_up.emplace_back(value.Share(), wanted_on);
  }
  return key.SetBulk(std::move(value), keep_expiry);
}

bool ValueReplies::Whole(const storage::Keyspace::Key& key, const storage::Entry* entry) {
  Session* session = context_.connection.session();
  const bool described = session != nullptr && session->redirect();
  storage::BulkValue* bulk = described ? context_.ReachableOf(entry) : context_.BulkOf(entry);
  if (bulk == nullptr && context_.WaitsFor(entry, key.hash())) return false;
  const bool found = entry != nullptr && (bulk != nullptr || entry->is_inline());
  context_.keyspace().CountRead(key, found ? entry : nullptr);
  if (!found) {
    context_.loop.stats().keyspace_misses.Add();
    context_.reply.Null();
    return true;
  }
  context_.loop.stats().keyspace_hits.Add();
  if (bulk == nullptr) {
    context_.reply.Bulk(entry->value());
    return true;
  }
  if (described) {
    used_.push_back(storage::ValueRef::Share(bulk));
    session->Describe(context_, used_.back());
    return true;
  }
  Part(*entry, 0, bulk->length());
  return true;
}

void ValueReplies::Part(const storage::Entry& entry, uint64_t offset, uint64_t length) {
  storage::BulkValue* bulk = context_.BulkOf(&entry);
  if (bulk == nullptr) {
    context_.reply.Bulk(entry.value().substr(offset, length));
    return;
  }
  used_.push_back(storage::ValueRef::Share(bulk));
  // Short pieces are copied: pinning and gathering costs more.
  constexpr uint64_t kCopyBelow = 4096;
  if (length < kCopyBelow) {
    context_.reply.Bulk(std::string_view(bulk->data(), bulk->length()).substr(offset, length));
  } else {
    context_.reply.BulkValue(used_.back().Share(), offset, length);
  }
}

ValueReplies::~ValueReplies() {
  if (used_.empty()) return;
  std::vector<storage::BulkValue*> values;
  values.reserve(used_.size());
  for (const storage::ValueRef& value : used_) values.push_back(value.get());
  if (context_.keyspace().Touch(values, counts_) > 0) {
    context_.tenant.ReadAhead(values.back()->owner_hash(), values.back()->partition());
  }
}

ValueSnapshot::ValueSnapshot(const storage::Entry* entry) : exists_(entry != nullptr) {
  if (entry == nullptr) return;
  if (entry->has(storage::Entry::kBulk)) {
    bulk_ = storage::ValueRef::Share(entry->bulk());
  } else {
    inline_ = entry->value();
  }
}

std::string_view ValueSnapshot::bytes() const {
  return bulk_ ? std::string_view(bulk_->data(), bulk_->length()) : std::string_view(inline_);
}

bool ValueSnapshot::Matches(const storage::Entry* entry) const {
  if ((entry != nullptr) != exists_) return false;
  if (entry == nullptr) return true;
  if (entry->has(storage::Entry::kBulk)) return entry->bulk() == bulk_.get();
  return !bulk_ && entry->value() == inline_;
}

}  // namespace moonpool::server
