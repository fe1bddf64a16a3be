#include "server/values.h"

#include <cstring>

#include "protocol/decimal.h"
#include "server/connection.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "storage/tenant.h"

namespace moonpool::server {

storage::Keyspace& Context::keyspace() const { return tenant.keyspace(); }

std::optional<int64_t> Context::Integer(size_t index) {
  const auto value = protocol::ParseInt64(arguments[index]);
  if (!value) Error("ERR value is not an integer or out of range");
  return value;
}

void Context::OutOfMemory(const std::string& why) {
  loop.stats().oom_replies.Add();
  Error("OOM command not allowed when used memory > 'maxmemory': " + why + ".");
}

std::optional<GivenValue> Context::TakeValue(size_t index) {
  Argument& argument = arguments[index];
  GivenValue value;
  if (argument.body != nullptr) {
    if (!argument.body->failure.empty()) {
      OutOfMemory(argument.body->failure);
      return std::nullopt;
    }
    if (argument.body->extent) {
      value.bulk = std::move(argument.body->extent).Publish();
      return value;
    }
  }
  const auto threshold = static_cast<size_t>(server.config().number(Key::kBulkThreshold));
  if (argument.size < threshold) {
    value.bytes = argument.view();
    return value;
  }
  auto handle = tenant.Reserve(argument.size, now_ms);
  if (!handle) {
    OutOfMemory(handle.error().message);
    return std::nullopt;
  }
  std::memcpy(handle->data(), argument.data, argument.size);
  value.bulk = std::move(*handle).Publish();
  return value;
}

std::string_view ValueBytes(const storage::Entry& entry) {
  if (!entry.has(storage::Entry::kBulk)) return entry.value();
  return {entry.bulk()->data(), entry.bulk()->length()};
}

uint64_t ValueLength(const storage::Entry& entry) {
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
  return descriptor;
}

storage::Entry* StoreValue(storage::Keyspace::Key& key, GivenValue value, bool keep_expiry) {
  if (value.bulk) return key.SetBulk(std::move(value.bulk), keep_expiry);
  return key.Set(value.bytes, keep_expiry);
}

void ValueReplies::Whole(const storage::Entry* entry) {
  if (entry == nullptr) {
    context_.loop.stats().keyspace_misses.Add();
    context_.reply.Null();
    return;
  }
  context_.loop.stats().keyspace_hits.Add();
  if (!entry->has(storage::Entry::kBulk)) {
    context_.reply.Bulk(entry->value());
    return;
  }
  Session* session = context_.connection.session();
  if (session != nullptr && session->redirect()) {
    used_.push_back(storage::ValueRef::Share(entry->bulk()));
    session->Describe(context_, used_.back());
    return;
  }
  Part(*entry, 0, entry->bulk()->length());
}

void ValueReplies::Part(const storage::Entry& entry, uint64_t offset, uint64_t length) {
  if (!entry.has(storage::Entry::kBulk)) {
    context_.reply.Bulk(entry.value().substr(offset, length));
    return;
  }
  used_.push_back(storage::ValueRef::Share(entry.bulk()));
  // Short pieces are copied: pinning and gathering costs more.
  constexpr uint64_t kCopyBelow = 4096;
  if (length < kCopyBelow) {
    context_.reply.Bulk(ValueBytes(entry).substr(offset, length));
  } else {
    context_.reply.BulkValue(used_.back().Share(), offset, length);
  }
}

ValueReplies::~ValueReplies() {
  if (used_.empty()) return;
  std::vector<storage::BulkValue*> values;
  values.reserve(used_.size());
  for (const storage::ValueRef& value : used_) values.push_back(value.get());
  context_.keyspace().Touch(values);
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
