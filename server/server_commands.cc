// Commands about the server as a whole.
#include <algorithm>
#include <chrono>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "protocol/glob.h"
#include "server/command_families.h"
#include "server/connection.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/values.h"
#include "storage/heap.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;

void Time(Context& c) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(
                      std::chrono::system_clock::now().time_since_epoch())
                      .count();
  c.reply.Array(2);
  c.reply.BulkInteger(us / 1000000);
  c.reply.BulkInteger(us % 1000000);
}

void Shutdown(Context& c) {
  // What only memory has is saved to the SSD tier, unless NOSAVE; NOW and FORCE skip waits that do not
  // exist.
  bool save = false, no_save = false, hurry = false, abort = false;
  for (size_t i = 1; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "SAVE")) {
      save = true;
    } else if (EqualsIgnoreCase(c[i], "NOSAVE")) {
      no_save = true;
    } else if (EqualsIgnoreCase(c[i], "NOW") || EqualsIgnoreCase(c[i], "FORCE")) {
      hurry = true;
    } else if (EqualsIgnoreCase(c[i], "ABORT")) {
      abort = true;
    } else {
      return c.SyntaxError();
    }
  }
  if ((save && no_save) || (abort && (save || no_save || hurry))) return c.SyntaxError();
  if (abort) return c.Error("ERR No shutdown in progress.");
  Log(LogLevel::kWarning, "client {} requested a shutdown", c.connection.info().address);
  // Like redis-server, no reply: the connection closes when the server is gone.
  c.connection.CloseAfterReply();
  c.server.RequestShutdown(!no_save);
}

void MemoryUsage(Context& c) {
  for (size_t i = 3; i < c.size(); i += 2) {
    // Sampling makes no difference to strings.
    if (!EqualsIgnoreCase(c[i], "SAMPLES") || i + 1 == c.size()) return c.SyntaxError();
    const auto samples = c.Integer(i + 1);
    if (!samples) return;
    if (*samples < 0) return c.SyntaxError();
  }
  storage::KeyLock lock(c.keyspace(), c[2], c.now_ms);
  const storage::Entry* entry = lock.key.Find();
  if (entry == nullptr) return c.reply.Null();
  uint64_t bytes = entry->block_bytes() + sizeof(uint64_t);  // and its place in the table
  // What is on the SSD takes no memory but its entry.
  if (entry->has(storage::Entry::kBulk)) {
    bytes += sizeof(storage::BulkValue) +
             storage::ExtentAllocator::RoundUp(entry->bulk()->length());
  }
  c.reply.Integer(static_cast<int64_t>(bytes));
}

void MemoryStats(Context& c) {
  using Value = std::variant<uint64_t, double>;
  using Rows = std::vector<std::pair<std::string_view, Value>>;
  const auto values = [&c](const Rows& rows) {
    for (const auto& [name, value] : rows) {
      c.reply.Bulk(name);
      if (const double* real = std::get_if<double>(&value)) {
        c.reply.Double(*real);
      } else {
        c.reply.Integer(static_cast<int64_t>(std::get<uint64_t>(value)));
      }
    }
  };
  const storage::MemoryBudget& budget = c.tenant.budget();
  const storage::HeapStats heap = storage::ReadHeapStats();
  const uint64_t data = budget.used_bytes();
  // Read one after the other, and zero under a sanitizer's heap.
  const uint64_t used = std::max(heap.allocated_bytes + budget.extent_bytes(), data);
  const uint64_t keys = c.keyspace().Size();
  uint64_t clients = 0;
  for (const auto& info : c.server.clients().All()) {
    clients += info->query_buffer_bytes.get() + info->output_bytes.get();
  }
  const storage::SsdTier* tier = c.tenant.ssd();
  const storage::SsdTierStats ssd = tier != nullptr ? tier->stats() : storage::SsdTierStats();
  const Rows rows = {
      {"total.allocated", used},
      {"clients.normal", clients},
      {"overhead.total", used - data},
      {"keys.count", keys},
      {"keys.bytes-per-key", keys == 0 ? 0 : data / keys},
      {"dataset.bytes", data},
      {"dataset.percentage",
       used == 0 ? 0.0 : 100.0 * static_cast<double>(data) / static_cast<double>(used)},
      {"allocator.allocated", heap.allocated_bytes},
      {"allocator.resident", heap.resident_bytes},
      {"keyspace.bytes", budget.inline_bytes()},
      {"extents.bytes", budget.extent_bytes()},
      {"extents.unlinked-bytes", budget.unlinked_bytes()},
      {"regions.bytes", budget.region_bytes()},
  };
  const bool has_cxl = c.tenant.cxl() != nullptr;
  const uint64_t cxl_keys = has_cxl ? c.keyspace().partitions().keys_in(protocol::Tier::kCxl) : 0;
  storage::GpuTier* gpu = c.tenant.gpu();
  const uint64_t gpu_keys =
      gpu != nullptr ? c.keyspace().partitions().keys_in(protocol::Tier::kGpu) : 0;
  uint64_t gpu_bytes = 0, gpu_capacity = 0, gpu_regions = 0;
  for (size_t i = 0; gpu != nullptr && i < gpu->devices().size(); ++i) {
    gpu_bytes += c.tenant.gpu_budget(i).used_bytes();
    gpu_capacity += c.tenant.gpu_budget(i).limit();
    gpu_regions += c.tenant.gpu_budget(i).region_bytes();
  }
  const Rows on_gpus = {{"keys", gpu_keys},
                        {"bytes", gpu_bytes},
                        {"capacity", gpu_capacity},
                        {"regions-bytes", gpu_regions}};
  const Rows dram = {{"keys", keys - std::min(keys, ssd.keys + cxl_keys + gpu_keys)},
                     {"bytes", data},
                     {"capacity", budget.limit()}};
  const storage::MemoryBudget& cxl_budget = c.tenant.cxl_budget();
  const Rows cxl = {{"keys", cxl_keys},
                    {"bytes", cxl_budget.used_bytes()},
                    {"capacity", cxl_budget.limit()},
                    {"regions-bytes", cxl_budget.region_bytes()}};
  const Rows disk = {{"keys", ssd.keys},
                     {"bytes", ssd.bytes},
                     {"capacity", ssd.capacity},
                     {"disk-bytes", ssd.store.disk_bytes},
                     {"memory-bytes", ssd.store.memory_bytes},
                     {"queued-bytes", ssd.queued_bytes}};
  c.reply.Map(rows.size() + 1 + (gpu != nullptr ? 1 : 0) + (has_cxl ? 1 : 0) + (tier != nullptr ? 1 : 0));
  values(rows);
  c.reply.Bulk("tier.dram");
  c.reply.Map(dram.size());
  values(dram);
  if (gpu != nullptr) {
    c.reply.Bulk("tier.gpu");
    c.reply.Map(on_gpus.size());
    values(on_gpus);
  }
  if (has_cxl) {
    c.reply.Bulk("tier.cxl");
    c.reply.Map(cxl.size());
    values(cxl);
  }
  if (tier == nullptr) return;
  c.reply.Bulk("tier.ssd");
  c.reply.Map(disk.size());
  values(disk);
}

const Command kMemory[] = {
    {"help", CommandHelp, 2, kLoading | kStale, NoKeys(), "", "server", "4.0.0", "O(1)",
     "Returns helpful text about the different subcommands.", ""},
    {"stats", MemoryStats, 2, 0, NoKeys(), "", "server", "4.0.0", "O(1)",
     "Returns details about memory usage, by tier.", ""},
    {"usage", MemoryUsage, -3, kReadOnly, KeyRange(2, 2, 1, "RO"), "", "server", "4.0.0", "O(1)",
     "Estimates the memory usage of a key.", "key [SAMPLES count]"},
};

const Command kCommands[] = {
    kCommandCommand,
    kConfigCommand,
    {"info", InfoCommand, -1, kLoading | kStale, NoKeys(), "dangerous", "server", "1.0.0", "O(1)",
     "Returns information and statistics about the server.", "[section [section ...]]"},
    {"memory", UnknownSubcommand, -2, 0, NoKeys(), "", "server", "4.0.0",
     "Depends on subcommand.", "A container for memory diagnostics commands.", "", {}, kMemory},
    {"shutdown", Shutdown, -1, kAdmin | kNoScript | kLoading | kStale | kNoMulti | kAllowBusy,
     NoKeys(), "", "server", "1.0.0", "O(1)", "Shuts the server down, after clients got their replies.",
     "[NOSAVE | SAVE] [NOW] [FORCE] [ABORT]"},
    {"time", Time, 1, kLoading | kStale | kFast, NoKeys(), "", "server", "2.6.0", "O(1)",
     "Returns the server time.", ""},
};

}  // namespace

std::span<const Command> ServerCommands() { return kCommands; }

}  // namespace moonpool::server
