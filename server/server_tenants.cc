// Server: the tenants, made and changed as the configuration says.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "server/gpus.h"
#include "server/log.h"
#include "server/server.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

// The memory this process may use: the machine's, or its control group's if that is less.
uint64_t MachineMemory() {
  uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                   static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max",
                           "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::string line;
    std::ifstream file(path);
    std::getline(file, line);
    char* end = nullptr;
    const unsigned long long limit = std::strtoull(line.c_str(), &end, 10);
    if (end != line.c_str() && limit > 0) bytes = std::min<uint64_t>(bytes, limit);
  }
  return bytes;
}

storage::MaxmemoryPolicy PolicyOf(const Config& config) {
  const auto policy = storage::ParseMaxmemoryPolicy(config.text(Key::kMaxMemoryPolicy));
  MOONPOOL_CHECK(policy);  // the setting's choices are their names
  return *policy;
}

uint64_t MemoryLimit(const Config& config) {
  const auto configured = static_cast<uint64_t>(config.number(Key::kMaxMemory));
  return configured != 0 ? configured : MachineMemory() / 2;
}

}  // namespace

Status Server::CreateTenants() {
  using HugePages = storage::RegionOptions::HugePages;
  static constexpr HugePages kHugePages[] = {HugePages::kAuto, HugePages::kYes, HugePages::kNo};
  storage::TenantOptions options;
  options.quota_bytes = MemoryLimit(config_);
  options.policy = PolicyOf(config_);
  auto partitions = storage::ParsePartitions(config_.text(Key::kPartitions));
  if (!partitions) {
    return Fail(partitions.error().code, "partitions: " + partitions.error().message);
  }
  options.partitions = std::move(*partitions);
  options.high_watermark = config_.real(Key::kDramHighWatermark);
  options.evict_ratio = config_.real(Key::kDramEvictRatio);
  options.cold_share = config_.real(Key::kDramColdShare);
  options.region_bytes = static_cast<uint64_t>(config_.number(Key::kRegionSize));
  options.arena_bytes = static_cast<uint64_t>(config_.number(Key::kArenaSize));
  options.region.huge_pages = kHugePages[config_.number(Key::kHugePages)];
  options.region.numa_node = static_cast<int>(config_.number(Key::kNumaNode));
  options.cxl.memory_bytes = static_cast<uint64_t>(config_.number(Key::kCxlMemory));
  options.cxl.numa_node = static_cast<int>(config_.number(Key::kCxlNode));
  options.cxl.high_watermark = config_.real(Key::kCxlHighWatermark);
  options.cxl.evict_ratio = config_.real(Key::kCxlEvictRatio);
  options.cxl.queue_bytes = static_cast<uint64_t>(config_.number(Key::kCxlQueue));
  options.cxl.wait_ms = config_.number(Key::kMemoryWait);
  if (gpus_ != nullptr) {
    options.gpu.devices = gpus_->memories();
    options.gpu.memory_bytes = static_cast<uint64_t>(config_.number(Key::kGpuMemory));
    options.gpu.high_watermark = config_.real(Key::kGpuHighWatermark);
    options.gpu.evict_ratio = config_.real(Key::kGpuEvictRatio);
    options.gpu.queue_bytes = static_cast<uint64_t>(config_.number(Key::kGpuQueue));
    options.gpu.wait_ms = config_.number(Key::kMemoryWait);
    options.gpu.note = [](const std::string& line) { Log(LogLevel::kWarning, "{}", line); };
  }
  auto tenant = storage::Tenant::Create(options);
  if (!tenant) return tl::unexpected<Error>(std::move(tenant.error()));
  tenants_.push_back(std::move(*tenant));
  return {};
}

Status Server::OpenSsd() {
  if (config_.text(Key::kSsdDirectory).empty()) return {};
  using Compression = storage::SsdOptions::Compression;
  static constexpr Compression kCompressions[] = {Compression::kNone, Compression::kLz4,
                                                  Compression::kZstd};
  const auto bytes = [this](Key key) { return static_cast<uint64_t>(config_.number(key)); };
  if (!std::has_single_bit(bytes(Key::kSsdChunk))) {
    return Fail(ErrorCode::kInvalidArgument, "ssd-chunk must be a power of two");
  }
  storage::SsdTierOptions options;
  options.store.directory = config_.text(Key::kSsdDirectory);
  options.store.chunk_bytes = static_cast<uint32_t>(bytes(Key::kSsdChunk));
  options.store.write_buffer_bytes = bytes(Key::kSsdWriteBuffer);
  options.store.compression = kCompressions[config_.number(Key::kSsdCompression)];
  options.store.direct_io = config_.boolean(Key::kSsdDirectIo);
  options.store.log_payload = config_.boolean(Key::kSsdWal);
  options.store.sync = config_.boolean(Key::kSsdSync);
  options.store.rate_limit_bytes_s = bytes(Key::kSsdRateLimit);
  options.store.background_threads = static_cast<int>(config_.number(Key::kSsdBackgroundThreads));
  options.store.niceness = static_cast<int>(config_.number(Key::kSsdNice));
  options.store.env = ssd_env_;
  options.store.note = [](const std::string& line) { Log(LogLevel::kWarning, "{}", line); };
  options.capacity_bytes = bytes(Key::kSsdCapacity);
  options.high_watermark = config_.real(Key::kSsdHighWatermark);
  options.evict_ratio = config_.real(Key::kSsdEvictRatio);
  options.queue_bytes = bytes(Key::kSsdQueue);
  options.wait_ms = config_.number(Key::kMemoryWait);
  options.readers = static_cast<int>(config_.number(Key::kSsdReaders));
  if (options.readers == 0) {
    const auto processors = static_cast<int>(std::thread::hardware_concurrency());
    options.readers = 2 * (4 + processors);
    // What they read into is nobody's yet, and must not be what memory is full of.
    const uint64_t memory = default_tenant().keyspace().memory_limit();
    if (options.readers * bytes(Key::kSsdChunk) > memory / 16) options.readers /= 2;
  }
  options.least_value_bytes = config_.number(Key::kSsdMinValue);
  options.write_through = config_.number(Key::kSsdWritePolicy) == 1;
  const auto start = std::chrono::steady_clock::now();
  storage::Tenant& tenant = default_tenant();
  if (Status opened = tenant.OpenSsd(options, start_ms_); !opened) {
    return Fail(opened.error().code, "ssd-directory: " + opened.error().message);
  }
  const storage::SsdStore::Recovery& found = tenant.ssd()->recovery();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                      std::chrono::steady_clock::now() - start)
                      .count();
  Log(LogLevel::kNotice,
      "SSD tier: {} values of {} bytes and {} small values after {} stop, read in {} ms",
      found.versions, found.bytes, found.small_values, found.clean ? "a clean" : "an unclean", ms);
  if (found.unfinished + found.voided + found.expired > 0) {
    Log(LogLevel::kNotice,
        "SSD tier: dropped {} values that had not reached the disk, {} that KV.DROP removed, {} "
        "expired",
        found.unfinished, found.voided, found.expired);
  }
  if (found.wiped) {
    Log(LogLevel::kWarning,
        "SSD tier: starts empty, because what was there could not be trusted after a crash");
  }
  return {};
}

void Server::SaveSsd() {
  bool save;
  {
    MutexLock lock(shutdown_mu_);
    save = save_;
  }
  for (const auto& tenant : tenants_) {
    if (tenant->ssd() == nullptr || !save) continue;
    const auto note = [](const std::string& line) { Log(LogLevel::kNotice, "{}", line); };
    if (Status saved =
            tenant->ssd()->Save(config_.number(Key::kSsdStopTimeout) * 1000, note);
        !saved) {
      Log(LogLevel::kWarning, "SSD tier: {}", saved.error().message);
    }
  }
}

void Server::InstallHooks() {
  config_.OnChange(Key::kRequirePass, [this]() -> Status {
    password_required_ = !config_.text(Key::kRequirePass).empty();
    return {};
  });
  config_.OnChange(Key::kMaxMemory, [this]() -> Status {
    default_tenant().SetQuota(MemoryLimit(config_));
    return {};
  });
  const auto prefetch_window = [this]() -> Status {
    default_tenant().read_ahead().set_limit(
        static_cast<size_t>(config_.number(Key::kPrefetchWindow)));
    return {};
  };
  config_.OnChange(Key::kPrefetchWindow, prefetch_window);
  const auto ssd_exclude = [this]() -> Status {
    std::istringstream words(config_.text(Key::kSsdExclude));
    std::vector<std::string> globs;
    for (std::string word; words >> word;) globs.push_back(std::move(word));
    default_tenant().keyspace().SetMemoryOnly(std::move(globs));
    return {};
  };
  config_.OnChange(Key::kSsdExclude, ssd_exclude);
  config_.OnChange(Key::kSsdCapacity, [this]() -> Status {
    if (storage::SsdTier* tier = default_tenant().ssd()) {
      tier->SetCapacity(static_cast<uint64_t>(config_.number(Key::kSsdCapacity)));
    }
    return {};
  });
  config_.OnChange(Key::kMaxMemoryPolicy, [this]() -> Status {
    default_tenant().keyspace().SetPolicy(PolicyOf(config_));
    return {};
  });
  config_.OnChange(Key::kPartitions, [this]() -> Status {
    auto partitions = storage::ParsePartitions(config_.text(Key::kPartitions));
    if (!partitions) return tl::unexpected<Error>(std::move(partitions.error()));
    default_tenant().keyspace().SetPartitions(std::move(*partitions));
    return {};
  });
  const auto watermarks = [this]() -> Status {
    default_tenant().SetWatermarks(config_.real(Key::kDramHighWatermark),
                                   config_.real(Key::kDramEvictRatio));
    return {};
  };
  config_.OnChange(Key::kDramHighWatermark, watermarks);
  config_.OnChange(Key::kDramEvictRatio, watermarks);
  config_.OnChange(Key::kDramColdShare, [this]() -> Status {
    default_tenant().SetColdShare(config_.real(Key::kDramColdShare));
    return {};
  });
  const auto lfu = [this]() -> Status {
    default_tenant().keyspace().set_lfu_options(
        {static_cast<uint32_t>(config_.number(Key::kLfuLogFactor)),
         static_cast<uint32_t>(config_.number(Key::kLfuDecayTime))});
    return {};
  };
  config_.OnChange(Key::kLfuLogFactor, lfu);
  config_.OnChange(Key::kLfuDecayTime, lfu);
  const auto samples = [this]() -> Status {
    default_tenant().keyspace().set_samples(
        static_cast<uint32_t>(config_.number(Key::kMaxMemorySamples)));
    return {};
  };
  config_.OnChange(Key::kMaxMemorySamples, samples);
  const auto learn_rate = [this]() -> Status {
    default_tenant().keyspace().set_learn_rate(
        static_cast<uint64_t>(config_.number(Key::kPrefixLearnRate)));
    return {};
  };
  config_.OnChange(Key::kPrefixLearnRate, learn_rate);
  const auto log_level = [this]() -> Status {
    SetLogLevel(static_cast<LogLevel>(config_.number(Key::kLogLevel)));
    return {};
  };
  config_.OnChange(Key::kLogLevel, log_level);
  config_.OnChange(Key::kPrefer,
                   [this] { return placement_.Configure(config_.text(Key::kPrefer)); });
  password_required_ = !config_.text(Key::kRequirePass).empty();
  [[maybe_unused]] const Status applied[] = {lfu(), samples(), learn_rate(), prefetch_window(),
                                             ssd_exclude()};
}

}  // namespace moonpool::server
