#include "tools/bench/policy.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <sstream>
#include <utility>

#include "storage/bulk_policy.h"
#include "storage/tenant.h"
#include "tools/bench/failure.h"
#include "tools/bench/policy_replay.h"
#include "tools/bench/trace_families.h"
#include "tools/bench/trace_generator.h"

namespace moonpool::bench {

namespace {

using storage::MaxmemoryPolicy;

constexpr uint64_t kFamilyRequests = 12000;
constexpr uint64_t kQuickRequests = 4000;

constexpr std::pair<const char*, MaxmemoryPolicy> kPolicies[] = {
    {"allkeys-lru", MaxmemoryPolicy::kAllKeysLru},
    {"allkeys-lfu", MaxmemoryPolicy::kAllKeysLfu},
    {"allkeys-s3fifo", MaxmemoryPolicy::kAllKeysS3Fifo},
    {"allkeys-prefix", MaxmemoryPolicy::kAllKeysPrefix},
    {"allkeys-random", MaxmemoryPolicy::kAllKeysRandom},
};

struct NamedTrace {
  std::string name;
  Trace trace;
};

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream text(list);
  for (std::string part; std::getline(text, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<NamedTrace> Traces(const PolicyOptions& options) {
  const bool quick = options.common.quick;
  const uint64_t requests = options.requests != 0 ? options.requests : quick ? kQuickRequests : 0;
  if (!options.trace.empty()) {
    Trace trace = ReadTrace(options.trace);
    if (options.requests != 0 && options.requests < trace.size()) trace.resize(options.requests);
    return {{options.trace, std::move(trace)}};
  }
  std::vector<std::string> names = Split(options.generate);
  if (options.generate == "all") {
    names = {"conversation"};
    for (const TraceFamily& family : TraceFamilies()) names.push_back(family.name);
  }
  std::vector<NamedTrace> traces;
  for (const std::string& name : names) {
    const uint64_t count = requests != 0 ? requests : kFamilyRequests;
    traces.push_back({name, name == "conversation"
                                ? GenerateTrace({.requests = count, .seed = options.seed})
                                : GenerateFamily(name, count, options.seed)});
  }
  if (traces.empty()) throw Failure("--generate needs a kind of trace");
  return traces;
}

struct Capacity {
  std::string text;
  uint64_t blocks = 0;
};

Capacity ParseCapacity(const std::string& text, const BlockTrace& trace, uint64_t block_bytes) {
  Capacity capacity{text};
  if (text.find_first_not_of("0123456789.") == std::string::npos &&
      text.find('.') != std::string::npos) {
    const double share = std::strtod(text.c_str(), nullptr);
    if (share <= 0 || share > 1) throw Failure("--capacity: '" + text + "' is no share up to 1");
    capacity.blocks = static_cast<uint64_t>(share * static_cast<double>(trace.distinct()));
  } else {
    capacity.blocks = ParseBytes(text) / block_bytes;
  }
  capacity.blocks = std::max<uint64_t>(capacity.blocks, 1);
  return capacity;
}

struct Result {
  std::string policy;
  bool is_default = false;
  HitFigures figures;
};

std::vector<Result> Measure(const BlockTrace& trace, uint64_t blocks, uint64_t block_bytes) {
  std::vector<Result> results;
  for (const auto& [name, kind] : kPolicies) {
    const auto policy = storage::MakeEvictionPolicy(kind);
    results.push_back({name, kind == storage::TenantOptions().policy,
                       RunPolicy(trace, *policy, blocks, block_bytes)});
  }
  results.push_back({"optimum (Belady)", false, RunBelady(trace, blocks)});
  return results;
}

Json RowOf(const std::string& trace, const Capacity& capacity, const Result& result) {
  const HitFigures& figures = result.figures;
  return {{"id", trace + "/" + capacity.text + "/" + result.policy},
          {"name", result.policy + " at " + capacity.text},
          {"unit", "share of block accesses"},
          {"trace", trace},
          {"policy", result.policy},
          {"default", result.is_default},
          {"capacity", capacity.text},
          {"capacity_blocks", capacity.blocks},
          {"block_hit", figures.block_hit()},
          {"prefix_hit", figures.prefix_hit()},
          {"accesses", figures.accesses},
          {"evictions", figures.evictions},
          {"ns_per_access", figures.ns_per_access},
          {"ns_per_eviction", figures.ns_per_eviction}};
}

std::string Line(const Result& result) {
  std::array<char, 160> line;
  const HitFigures& figures = result.figures;
  std::snprintf(line.data(), line.size(), "  %-18s %9.4f  %10.4f", result.policy.c_str(),
                figures.block_hit(), figures.prefix_hit());
  std::string text = line.data();
  if (figures.ns_per_access > 0) {
    std::snprintf(line.data(), line.size(), "  %9.0f  %11.0f", figures.ns_per_access,
                  figures.ns_per_eviction);
    text += line.data();
  }
  return text + (result.is_default ? "  (default)\n" : "\n");
}

}  // namespace

int ComparePolicies(const PolicyOptions& options) {
  const Report report = NewReport(options.common, "policy");
  Json json = ToJson(report);
  json["settings"]["capacity"] = options.capacity;
  json["settings"]["block_bytes"] = options.block_bytes;
  json["traces"] = Json::array();
  json["rows"] = Json::array();
  for (const NamedTrace& named : Traces(options)) {
    const BlockTrace trace(named.trace);
    json["traces"].push_back({{"name", named.name},
                              {"requests", trace.ends.size()},
                              {"block_accesses", trace.blocks.size()},
                              {"distinct_blocks", trace.distinct()}});
    for (const std::string& text : Split(options.capacity)) {
      const Capacity capacity = ParseCapacity(text, trace, options.block_bytes);
      std::string table = named.name + ": " + std::to_string(trace.ends.size()) + " requests, " +
                          std::to_string(trace.blocks.size()) + " block accesses, " +
                          std::to_string(trace.distinct()) + " distinct; capacity " + text + " = " +
                          std::to_string(capacity.blocks) + " blocks\n" +
                          "  policy             block_hit  prefix_hit  ns/access  ns/eviction\n";
      for (const Result& result : Measure(trace, capacity.blocks, options.block_bytes)) {
        json["rows"].push_back(RowOf(named.name, capacity, result));
        table += Line(result);
      }
      Print(options.common, table + "\n");
    }
  }
  if (!options.common.json.empty()) WriteText(options.common.json, json.dump(2) + "\n");
  return 0;
}

}  // namespace moonpool::bench
