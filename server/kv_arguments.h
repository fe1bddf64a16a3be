// What the KV.* commands share: batches of keys behind their number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/command.h"
#include "storage/tenant.h"

namespace moonpool::server {

class Session;

// Where the keys of a KV.* batch begin; argument 1 is their number.
inline constexpr size_t kFirstKey = 2;

// The number of groups of `step` arguments that argument 1 announces.  Replies and returns nothing
// when they are not there.
std::optional<size_t> KeyCount(Context& context, size_t step);

// Hashes the keys, `step` arguments apart, and fetches what they lead to into the processor's cache.
std::vector<uint64_t> HashAndPrefetch(Context& context, size_t count, size_t step);
// With an SSD tier or a GPU tier: pins the large values, before anything is leased or counted.
// False: some must come to memory first.  `usable`: the value of an entry that need not, null of
// others.
using Usable = storage::BulkValue* (Context::*)(const storage::Entry* entry) const;
bool PinAll(Context& context, const std::vector<uint64_t>& hashes, size_t step, Usable usable,
            std::vector<storage::ValueRef>* pinned);
inline bool PinsAll(const Context& context) {
  return context.tenant.ssd() != nullptr || context.tenant.gpu() != nullptr;
}

// The connection's session, if it may have queue pairs; replies with what is wrong and returns null
// otherwise.
Session* RdmaSession(Context& context);

// What a KV.* command that writes may have behind its keys.
struct WriteOptions {
  bool if_absent = false;
  bool if_present = false;
  int64_t expiry_ms = 0;  // from its commit on; 0: none
  std::optional<std::string_view> prefer;
  std::vector<std::optional<uint32_t>> crcs;  // of the values, when their writer gave them
};
// [NX | XX] [EX s | PX ms] [PREFER tiers] from argument `index` to the end, and for `values` > 0 also
// [CRC crc|- ..], one for each.  Replies and returns nothing when they are not that.
std::optional<WriteOptions> ParseWriteOptions(Context& context, size_t index, size_t values = 0);
// A writer's crc32c of its value, or '-' for none.  False, with the error to reply, otherwise.
bool ParseCrc(std::string_view text, std::optional<uint32_t>* crc, std::string* error);

// How much a command waits for when memory for its key number `key` is short, whose length is right:
// with less than all the rest takes it would be run again in vain, but a few megabytes come soon.
// Lengths are the last of each key's `step` arguments.
uint64_t BytesToWaitFor(const Context& context, size_t key, size_t count, size_t step);

// The handlers of the other kv_*_commands.cc; their rows are in kv_commands.cc.
void KvHello(Context& context);
void KvToken(Context& context);
void KvRead(Context& context);
void KvWrite(Context& context);
void KvAlloc(Context& context);
void KvCommit(Context& context);
void KvAbort(Context& context);
void KvPin(Context& context);
void KvUnpin(Context& context);
void KvDrop(Context& context);
void KvInfo(Context& context);
void KvRegions(Context& context);
void KvSessions(Context& context);
void KvStats(Context& context);

}  // namespace moonpool::server
