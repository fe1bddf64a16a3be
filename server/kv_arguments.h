// What the KV.* commands share: batches of keys behind their number.
#pragma once

#include <cstddef>
#include <optional>

#include "server/command.h"

namespace moonpool::server {

// Where the keys of a KV.* batch begin; argument 1 is their number.
inline constexpr size_t kFirstKey = 2;

// The number of groups of `step` arguments that argument 1 announces.  Replies and returns nothing
// when they are not there.
std::optional<size_t> KeyCount(Context& context, size_t step);

// The handlers of kv_write_commands.cc and kv_admin_commands.cc; their rows are in kv_commands.cc.
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
