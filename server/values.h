// What commands do with values, inline and bulk alike.
// Threads: the loop's.  Those that take a Key need its stripe locked.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/descriptor.h"
#include "server/command.h"
#include "storage/keyspace.h"

namespace moonpool::server {

// The bytes of an entry's value, which is in memory; valid while the stripe is locked.
std::string_view ValueBytes(const storage::Entry& entry);
uint64_t ValueLength(const storage::Entry& entry);
// Without a lease.
protocol::Descriptor DescriptorOf(const storage::BulkValue& value);

// Stores what TakeValue() gave.
storage::Entry* StoreValue(Context& context, storage::Keyspace::Key& key, GivenValue value,
                           bool keep_expiry = false);
// The same for a large value, which moves to one of those devices after the command.
storage::Entry* StoreBulk(Context& context, storage::Keyspace::Key& key, storage::ValueRef value,
                          storage::DeviceSet wanted_on, bool keep_expiry = false);

// Replies with values.  Bulk values are pinned and spliced into the reply, or described when the
// session asked for redirects; what they are is remembered and reported to the eviction policy
// when the object goes, after the locks.
class ValueReplies {
 public:
  explicit ValueReplies(Context& context) : context_(context) {}
  ~ValueReplies();
  ValueReplies(const ValueReplies&) = delete;
  ValueReplies& operator=(const ValueReplies&) = delete;

  // The whole value of `key`'s entry; null when `entry` is.  Counts a hit or a miss.  False: it must
  // come up from the SSD first, the handler is to return and change nothing.
  bool Whole(const storage::Keyspace::Key& key, const storage::Entry* entry);
  // [offset, offset + length) of it.  REQUIRES: it is in memory, if only for this command.
  void Part(const storage::Entry& entry, uint64_t offset, uint64_t length);
  // What Keyspace::NoteBatch() said of the command.
  void DoNotCount() { counts_ = false; }

 private:
  Context& context_;
  bool counts_ = true;
  std::vector<storage::ValueRef> used_;
};

// A value as it was when looked at, for commands that build a new large value from an old one:
// the work happens without the lock, and the result is stored only if nothing changed meanwhile.
class ValueSnapshot {
 public:
  // Of the entry, which may be null.
  explicit ValueSnapshot(const storage::Entry* entry);
  bool exists() const { return exists_; }
  std::string_view bytes() const;
  // The entry still has the value the snapshot was taken of.
  bool Matches(const storage::Entry* entry) const;

 private:
  bool exists_ = false;
  storage::ValueRef bulk_;
  std::string inline_;
};

}  // namespace moonpool::server
