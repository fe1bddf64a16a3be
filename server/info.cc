// INFO.
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <map>

#include <spdlog/fmt/fmt.h>

#include "protocol/glob.h"
#include "server/attach_server.h"
#include "server/command_families.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "server/ticks.h"
#include "server/version.h"
#include "storage/heap.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

std::string Human(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "K", "M", "G", "T", "P"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{}B", bytes) : fmt::format("{:.2f}{}", value, kUnits[unit]);
}

uint64_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  unsigned long long total = 0, resident = 0;
  if (std::fscanf(file, "%llu %llu", &total, &resident) != 2) resident = 0;
  std::fclose(file);
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

using Text = std::string;

template <typename Value>
void Row(Text& out, std::string_view name, const Value& value) {
  out += fmt::format("{}:{}\r\n", name, value);
}

void ServerSection(Context& c, Text& out) {
  Server& s = c.server;
  utsname system{};
  uname(&system);
  const int64_t uptime_s = (c.now_ms - s.start_ms()) / 1000;
  Row(out, "redis_version", kRedisVersion);
  Row(out, "moonpool_version", kVersion);
  Row(out, "redis_mode", "standalone");
  Row(out, "os", fmt::format("{} {} {}", system.sysname, system.release, system.machine));
  Row(out, "arch_bits", 64);
  Row(out, "multiplexing_api", event_base_get_method(c.loop.base()));
  Row(out, "process_id", getpid());
  Row(out, "run_id", s.run_id());
  Row(out, "epoch", s.epoch());
  Row(out, "tcp_port", s.port());
  Row(out, "server_time_usec", c.now_ms * 1000);
  Row(out, "uptime_in_seconds", uptime_s);
  Row(out, "uptime_in_days", uptime_s / 86400);
  Row(out, "hz", s.config().number(Key::kHz));
  Row(out, "configured_hz", s.config().number(Key::kHz));
  Row(out, "executable", fmt::format("/proc/{}/exe", getpid()));
  Row(out, "config_file", s.config().path());
  Row(out, "io_threads_active", s.loops().size() > 1 ? 1 : 0);
  Row(out, "io_threads", s.loops().size());
}

void ClientsSection(Context& c, Text& out) {
  Server& s = c.server;
  uint64_t input = 0, output = 0;
  for (const auto& info : s.clients().All()) {
    input = std::max(input, info->query_buffer_bytes.get());
    output = std::max(output, info->output_bytes.get());
  }
  Row(out, "connected_clients", s.clients().size());
  Row(out, "cluster_connections", 0);
  Row(out, "maxclients", s.config().number(Key::kMaxClients));
  Row(out, "client_recent_max_input_buffer", input);
  Row(out, "client_recent_max_output_buffer", output);
  Row(out, "blocked_clients", 0);
  Row(out, "kv_sessions", s.Sessions().size());
}

void MemorySection(Context& c, Text& out) {
  const storage::MemoryBudget& budget = c.tenant.budget();
  const storage::HeapStats heap = storage::ReadHeapStats();
  const uint64_t used = heap.allocated_bytes + budget.extent_bytes();
  const uint64_t resident = ResidentBytes();
  Row(out, "used_memory", used);
  Row(out, "used_memory_human", Human(used));
  Row(out, "used_memory_rss", resident);
  Row(out, "used_memory_rss_human", Human(resident));
  Row(out, "used_memory_dataset", budget.used_bytes());
  Row(out, "used_memory_heap", heap.allocated_bytes);
  Row(out, "used_memory_keyspace", budget.inline_bytes());
  Row(out, "used_memory_extents", budget.extent_bytes());
  Row(out, "used_memory_regions", budget.region_bytes());
  Row(out, "total_system_memory", static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                                      static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  Row(out, "maxmemory", budget.limit());
  Row(out, "maxmemory_human", Human(budget.limit()));
  Row(out, "maxmemory_policy", c.server.config().text(Key::kMaxMemoryPolicy));
  Row(out, "allocator_allocated", heap.allocated_bytes);
  Row(out, "allocator_resident", heap.resident_bytes);
  Row(out, "mem_fragmentation_ratio",
      used == 0 ? 0.0 : static_cast<double>(resident) / static_cast<double>(used));
  Row(out, "mem_allocator", "jemalloc");
  Row(out, "active_defrag_running", 0);
}

void PersistenceSection(Context&, Text& out) {
  Row(out, "loading", 0);
  Row(out, "rdb_changes_since_last_save", 0);
  Row(out, "rdb_bgsave_in_progress", 0);
  Row(out, "aof_enabled", 0);
}

void StatsSection(Context& c, Text& out) {
  Server& s = c.server;
  const storage::KeyspaceStats keyspace = c.keyspace().stats();
  Row(out, "total_connections_received", s.Total(&LoopStats::connections));
  Row(out, "total_commands_processed", s.Total(&LoopStats::commands));
  Row(out, "instantaneous_ops_per_sec", s.ops_per_second());
  Row(out, "total_net_input_bytes", s.Total(&LoopStats::net_input_bytes));
  Row(out, "total_net_output_bytes", s.Total(&LoopStats::net_output_bytes));
  Row(out, "rejected_connections", s.rejected_connections());
  Row(out, "expired_keys", keyspace.expired);
  Row(out, "evicted_keys", keyspace.evicted);
  Row(out, "keyspace_hits", s.Total(&LoopStats::keyspace_hits));
  Row(out, "keyspace_misses", s.Total(&LoopStats::keyspace_misses));
  Row(out, "client_output_buffer_limit_disconnections",
      s.Total(&LoopStats::output_limit_closed));
  Row(out, "client_timeout_disconnections", s.Total(&LoopStats::timeout_closed));
  Row(out, "protocol_errors", s.Total(&LoopStats::protocol_errors));
  uint64_t errors = 0;
  for (const auto& loop : s.loops()) {
    MutexLock lock(loop->stats().error_mu);
    for (const auto& [code, count] : loop->stats().errors) errors += count;
  }
  Row(out, "total_error_replies", errors);
}

void PoolSection(Context& c, Text& out) {
  Server& s = c.server;
  Row(out, "pool_hits_by_descriptor", s.Total(&LoopStats::descriptors));
  Row(out, "pool_bytes_received", s.Total(&LoopStats::bulk_input_bytes));
  Row(out, "pool_bytes_sent", s.Total(&LoopStats::bulk_output_bytes));
  Row(out, "pool_leases_granted", s.Total(&LoopStats::leases));
  Row(out, "pool_holds_granted", s.Total(&LoopStats::holds));
  Row(out, "pool_holds_refused", s.Total(&LoopStats::holds_refused));
  Row(out, "pool_holds", c.tenant.holds().load(std::memory_order_relaxed));
  Row(out, "pool_reservations", s.Total(&LoopStats::reservations));
  Row(out, "pool_commits", s.Total(&LoopStats::commits));
  Row(out, "pool_aborts", s.Total(&LoopStats::aborts));
  Row(out, "pool_reservation_timeouts", s.Total(&LoopStats::reservation_timeouts));
  Row(out, "pool_oom_replies", s.Total(&LoopStats::oom_replies));
  Row(out, "pool_hard_pinned_bytes", c.keyspace().hard_pinned_bytes());
  uint64_t shared = 0, arenas = 0, draining = 0, populated = 0;
  for (const storage::RegionInfo& region : c.tenant.pool().Regions()) {
    (region.kind == storage::Region::Kind::kShared ? shared : arenas) += 1;
    draining += region.draining ? 1 : 0;
    populated += region.populated_bytes;
  }
  Row(out, "pool_shared_regions", shared);
  Row(out, "pool_write_arenas", arenas);
  Row(out, "pool_draining_regions", draining);
  Row(out, "pool_region_bytes", c.tenant.budget().region_bytes());
  Row(out, "pool_populated_bytes", populated);
  Row(out, "pool_extent_bytes", c.tenant.budget().extent_bytes());
  Row(out, "shm", s.attach_server() == nullptr ? "off" : "on");
  if (s.attach_server() != nullptr) Row(out, "shm_attach_socket", s.attach_server()->address());
  uint64_t attached = 0;
  for (const auto& session : s.Sessions()) {
    attached += session->attached.load(std::memory_order_relaxed) ? 1 : 0;
  }
  Row(out, "shm_attached_sessions", attached);
}

void TiersSection(Context& c, Text& out) {
  const storage::MemoryBudget& budget = c.tenant.budget();
  storage::SsdTier* tier = c.tenant.ssd();
  const storage::SsdTierStats s = tier != nullptr ? tier->stats() : storage::SsdTierStats();
  const storage::CxlTier* cxl = c.tenant.cxl();
  const uint64_t cxl_keys = cxl != nullptr ? c.keyspace().partitions().keys_in(protocol::Tier::kCxl) : 0;
  storage::GpuTier* gpu = c.tenant.gpu();
  const uint64_t gpu_keys =
      gpu != nullptr ? c.keyspace().partitions().keys_in(protocol::Tier::kGpu) : 0;
  const uint64_t keys = c.keyspace().Size();
  Row(out, "tier_dram_keys", keys - std::min(keys, s.keys + cxl_keys + gpu_keys));
  Row(out, "tier_dram_bytes", budget.used_bytes());
  Row(out, "tier_dram_capacity", budget.limit());
  // A read that waits for the SSD misses here and hits there.
  const uint64_t hits = c.server.Total(&LoopStats::keyspace_hits);
  const uint64_t misses = c.server.Total(&LoopStats::keyspace_misses);
  const uint64_t elsewhere =
      std::min(hits, s.hits + c.tenant.cxl_hits() + c.tenant.gpu_hits());
  Row(out, "tier_dram_hits", hits - elsewhere);
  Row(out, "tier_dram_misses", misses + elsewhere);
  Row(out, "tier_dram_waiting_for_memory", c.tenant.memory_queue().size());
  Row(out, "tier_gpu", gpu == nullptr ? "off" : "on");
  if (gpu != nullptr) {
    const storage::GpuTierStats moves = gpu->stats();
    uint64_t bytes = 0, capacity = 0;
    for (size_t i = 0; i < gpu->devices().size(); ++i) {
      bytes += c.tenant.gpu_budget(i).used_bytes();
      capacity += gpu->devices()[i]->lost() ? 0 : c.tenant.gpu_capacity(i);
    }
    Row(out, "tier_gpu_keys", gpu_keys);
    Row(out, "tier_gpu_bytes", bytes);
    Row(out, "tier_gpu_late_bytes", c.tenant.pool().late_bytes());
    Row(out, "tier_gpu_capacity", capacity);
    Row(out, "tier_gpu_hits", c.tenant.gpu_hits());
    Row(out, "tier_gpu_promotions", moves.promotions);
    Row(out, "tier_gpu_promoted_bytes", moves.promoted_bytes);
    Row(out, "tier_gpu_demotions", moves.demotions);
    Row(out, "tier_gpu_demoted_bytes", moves.demoted_bytes);
    Row(out, "tier_gpu_fetches", moves.fetches);
    Row(out, "tier_gpu_fetched_bytes", moves.fetched_bytes);
    Row(out, "tier_gpu_abandoned", moves.abandoned);
    Row(out, "tier_gpu_refused", moves.refused);
    Row(out, "tier_gpu_failed_copies", moves.failed);
    Row(out, "tier_gpu_lost_keys", moves.lost);
    Row(out, "tier_gpu_queue", moves.queued_values);
    Row(out, "tier_gpu_queue_bytes", moves.queued_bytes);
    Row(out, "tier_gpu_waiting_for_regions", c.tenant.pool().growth()->waiting());
    Row(out, "tier_gpu_demote_p50_us", moves.demote_p50_us);
    Row(out, "tier_gpu_demote_p99_us", moves.demote_p99_us);
    Row(out, "tier_gpu_promote_p50_us", moves.promote_p50_us);
    Row(out, "tier_gpu_promote_p99_us", moves.promote_p99_us);
    Row(out, "tier_gpu_fetch_p50_us", moves.fetch_p50_us);
    Row(out, "tier_gpu_fetch_p99_us", moves.fetch_p99_us);
  }
  Row(out, "tier_cxl", cxl == nullptr ? "off" : "on");
  if (cxl != nullptr) {
    const storage::CxlTierStats moves = cxl->stats();
    Row(out, "tier_cxl_keys", cxl_keys);
    Row(out, "tier_cxl_bytes", c.tenant.cxl_budget().used_bytes());
    Row(out, "tier_cxl_capacity", c.tenant.cxl_budget().limit());
    Row(out, "tier_cxl_hits", c.tenant.cxl_hits());
    Row(out, "tier_cxl_misses", misses + std::min(hits, s.hits));
    Row(out, "tier_cxl_promotions", moves.promotions);
    Row(out, "tier_cxl_promoted_bytes", moves.promoted_bytes);
    Row(out, "tier_cxl_demotions", moves.demotions);
    Row(out, "tier_cxl_demoted_bytes", moves.demoted_bytes);
    Row(out, "tier_cxl_abandoned", moves.abandoned);
    Row(out, "tier_cxl_refused", moves.refused);
    Row(out, "tier_cxl_demotion_queue", moves.queued_values);
    Row(out, "tier_cxl_demotion_queue_bytes", moves.queued_bytes);
    Row(out, "tier_cxl_demote_p50_us", moves.demote_p50_us);
    Row(out, "tier_cxl_demote_p99_us", moves.demote_p99_us);
    Row(out, "tier_cxl_promote_p50_us", moves.promote_p50_us);
    Row(out, "tier_cxl_promote_p99_us", moves.promote_p99_us);
  }
  Row(out, "tier_ssd", tier == nullptr ? "off" : s.failing ? "failing" : "on");
  if (tier == nullptr) return;
  Row(out, "tier_ssd_last_error", s.last_error.empty() ? "none" : s.last_error);
  Row(out, "tier_ssd_keys", s.keys);
  Row(out, "tier_ssd_versions", s.versions);
  Row(out, "tier_ssd_bytes", s.bytes);
  Row(out, "tier_ssd_capacity", s.capacity);
  Row(out, "tier_ssd_hits", s.hits);
  Row(out, "tier_ssd_misses", misses);
  Row(out, "tier_ssd_promotions", s.promotions);
  Row(out, "tier_ssd_cold_loads", s.cold_loads);
  Row(out, "tier_ssd_loaded_bytes", s.loaded_bytes);
  Row(out, "tier_ssd_read_ahead", s.read_ahead);
  Row(out, "tier_ssd_read_ahead_useful", c.tenant.read_ahead().useful());
  Row(out, "tier_ssd_read_ahead_wasted", c.tenant.read_ahead().wasted());
  Row(out, "tier_ssd_read_ahead_window", c.tenant.read_ahead().size());
  Row(out, "tier_ssd_demotions", s.demotions);
  Row(out, "tier_ssd_demoted_bytes", s.demoted_bytes);
  Row(out, "tier_ssd_abandoned", s.abandoned);
  Row(out, "tier_ssd_drops_excluded", c.keyspace().stats().memory_only);
  Row(out, "tier_ssd_drops_full", s.drops_full);
  Row(out, "tier_ssd_drops_refused", s.drops_refused);
  Row(out, "tier_ssd_lost", s.lost);
  Row(out, "tier_ssd_read_errors", s.read_errors);
  Row(out, "tier_ssd_write_errors", s.write_errors);
  Row(out, "tier_ssd_demotion_queue", s.queued_values);
  Row(out, "tier_ssd_demotion_queue_bytes", s.queued_bytes);
  Row(out, "tier_ssd_load_queue", s.loads_queued);
  Row(out, "tier_ssd_load_p50_us", s.load_p50_us);
  Row(out, "tier_ssd_load_p99_us", s.load_p99_us);
  Row(out, "tier_ssd_demote_p50_us", s.demote_p50_us);
  Row(out, "tier_ssd_demote_p99_us", s.demote_p99_us);
  Row(out, "tier_ssd_disk_bytes", s.store.disk_bytes);
  Row(out, "tier_ssd_garbage_bytes", s.store.garbage_bytes);
  Row(out, "tier_ssd_blob_files", s.store.blob_files);
  Row(out, "tier_ssd_chunks_in_place", s.store.chunks_in_place);
  Row(out, "tier_ssd_write_amplification",
      fmt::format("{:.2f}", s.store.payload_bytes_written == 0
                                ? 1.0
                                : static_cast<double>(s.store.disk_bytes_written) /
                                      static_cast<double>(s.store.payload_bytes_written)));
}

// One line each.  The prefix comes last: it may hold commas and anything else but spaces.
void PartitionsSection(Context& c, Text& out) {
  for (const auto& report : c.keyspace().PartitionReports()) {
    const storage::PartitionOptions& options = report.options;
    // Without a share of its own it counts with the default partition.
    const auto share = [&](double value) -> std::string {
      const bool own = value > 0 || options.name == storage::kDefaultPartition;
      return own ? fmt::format("{:.6g}", value) : "default";
    };
    const storage::Partitions::Counts& counts = report.counts;
    const std::string compression =
        options.compression ? std::string(storage::NameOf(*options.compression))
                            : c.server.config().text(Key::kSsdCompression);
    Row(out, "partition_" + options.name,
        fmt::format("dram_share={},ssd_share={},policy={},admission={},compression={},"
                    "dram_bytes={},dram_keys={},cxl_bytes={},cxl_keys={},gpu_bytes={},gpu_keys={},ssd_bytes={},ssd_keys={},"
                    "hits={},misses={},"
                    "evictions={},demotions={},drops={},prefix={}",
                    share(options.dram_share), options.ssd ? share(options.ssd_share) : "no",
                    storage::NameOf(report.policy), storage::NameOf(options.admission), compression,
                    counts.dram_bytes, counts.dram_keys, counts.cxl_bytes, counts.cxl_keys,
                    counts.gpu_bytes, counts.gpu_keys, counts.ssd_bytes, counts.ssd_keys, counts.hits, counts.misses, counts.evictions,
                    counts.demotions, counts.drops, options.prefix));
  }
}

void ReplicationSection(Context& c, Text& out) {
  Row(out, "role", "master");
  Row(out, "connected_slaves", 0);
  Row(out, "master_replid", c.server.run_id());
  Row(out, "master_repl_offset", 0);
}

void CpuSection(Context&, Text& out) {
  const auto seconds = [](const timeval& t) {
    return fmt::format("{}.{:06d}", t.tv_sec, t.tv_usec);
  };
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  Row(out, "used_cpu_sys", seconds(usage.ru_stime));
  Row(out, "used_cpu_user", seconds(usage.ru_utime));
  getrusage(RUSAGE_CHILDREN, &usage);
  Row(out, "used_cpu_sys_children", seconds(usage.ru_stime));
  Row(out, "used_cpu_user_children", seconds(usage.ru_utime));
}

void CommandStatsSection(Context& c, Text& out) {
  for (const Command* command : CommandTable::Get().by_id()) {
    uint64_t calls = 0, ticks = 0, rejected = 0, failed = 0;
    for (const auto& loop : c.server.loops()) {
      const CommandStats& stats = loop->stats().by_command[command->id];
      calls += stats.calls.get();
      ticks += stats.ticks.get();
      rejected += stats.rejected.get();
      failed += stats.failed.get();
    }
    if (calls + rejected + failed == 0) continue;
    const double usec = static_cast<double>(ticks) / TickRate();
    std::string name(command->container);
    if (!name.empty()) name += '|';
    name += command->name;
    Row(out, "cmdstat_" + name,
        fmt::format("calls={},usec={:.0f},usec_per_call={:.2f},rejected_calls={},failed_calls={}",
                    calls, usec, calls == 0 ? 0.0 : usec / static_cast<double>(calls), rejected,
                    failed));
  }
}

void ErrorStatsSection(Context& c, Text& out) {
  std::map<std::string, uint64_t> sums;
  for (const auto& loop : c.server.loops()) {
    MutexLock lock(loop->stats().error_mu);
    for (const auto& [code, count] : loop->stats().errors) sums[code] += count;
  }
  for (const auto& [code, count] : sums) {
    Row(out, "errorstat_" + code, fmt::format("count={}", count));
  }
}

void ClusterSection(Context&, Text& out) { Row(out, "cluster_enabled", 0); }

void KeyspaceSection(Context& c, Text& out) {
  const uint64_t keys = c.keyspace().Size();
  if (keys == 0) return;
  Row(out, "db0",
      fmt::format("keys={},expires={},avg_ttl=0", keys, c.keyspace().ExpiringSize()));
}

struct Section {
  std::string_view name;
  std::string_view title;
  void (*write)(Context&, Text&);
  bool standard;  // shown by a plain INFO
};
constexpr Section kSections[] = {
    {"server", "Server", ServerSection, true},
    {"clients", "Clients", ClientsSection, true},
    {"memory", "Memory", MemorySection, true},
    {"persistence", "Persistence", PersistenceSection, true},
    {"stats", "Stats", StatsSection, true},
    {"pool", "Pool", PoolSection, true},
    {"tiers", "Tiers", TiersSection, true},
    {"rdma", "RDMA", RdmaSection, true},
    {"gpu", "GPU", GpuSection, true},
    {"partitions", "Partitions", PartitionsSection, true},
    {"replication", "Replication", ReplicationSection, true},
    {"cpu", "CPU", CpuSection, true},
    {"commandstats", "Commandstats", CommandStatsSection, false},
    {"errorstats", "Errorstats", ErrorStatsSection, true},
    {"cluster", "Cluster", ClusterSection, true},
    {"keyspace", "Keyspace", KeyspaceSection, true},
};

}  // namespace

void InfoCommand(Context& c) {
  const auto wanted = [&](const Section& section) {
    if (section.write == PartitionsSection && !c.keyspace().partitions().any()) return false;
    if (c.size() == 1) return section.standard;
    for (size_t i = 1; i < c.size(); ++i) {
      using protocol::EqualsIgnoreCase;
      if (EqualsIgnoreCase(c[i], section.name) || EqualsIgnoreCase(c[i], "all") ||
          EqualsIgnoreCase(c[i], "everything") ||
          (EqualsIgnoreCase(c[i], "default") && section.standard)) {
        return true;
      }
    }
    return false;
  };
  Text text;
  for (const Section& section : kSections) {
    if (!wanted(section)) continue;
    if (!text.empty()) text += "\r\n";
    text += "# " + std::string(section.title) + "\r\n";
    section.write(c, text);
  }
  c.reply.Verbatim(text);
}

}  // namespace moonpool::server
