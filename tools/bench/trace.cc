#include "tools/bench/trace.h"

#include <algorithm>
#include <fstream>
#include <unordered_map>

#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto index = static_cast<size_t>(q * static_cast<double>(values.size()));
  return values[std::min(index, values.size() - 1)];
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

}  // namespace

Trace ParseTrace(std::istream& text, const std::string& name) {
  Trace trace;
  size_t number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto fail = [&](const std::string& why) {
      return Failure(name + ", line " + std::to_string(number) + ": " + why);
    };
    try {
      const Json json = Json::parse(line);
      TraceRequest request;
      request.timestamp_ms = json.at("timestamp").get<uint64_t>();
      request.input_tokens = json.at("input_length").get<uint64_t>();
      request.output_tokens = json.at("output_length").get<uint64_t>();
      request.blocks = json.at("hash_ids").get<std::vector<uint64_t>>();
      if (!trace.empty() && request.timestamp_ms < trace.back().timestamp_ms) {
        throw fail("the timestamp is before the one above");
      }
      trace.push_back(std::move(request));
    } catch (const Json::exception& error) {
      throw fail(error.what());
    }
  }
  if (trace.empty()) throw Failure(name + " has no requests");
  return trace;
}

Trace ReadTrace(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Failure("cannot read the trace " + path);
  return ParseTrace(file, path);
}

void WriteTrace(const Trace& trace, std::ostream& out) {
  for (const TraceRequest& request : trace) {
    out << Json{{"timestamp", request.timestamp_ms},
                {"input_length", request.input_tokens},
                {"output_length", request.output_tokens},
                {"hash_ids", request.blocks}}
               .dump()
        << '\n';
  }
}

TraceStats StatsOf(const Trace& trace) {
  TraceStats stats;
  stats.requests = trace.size();
  if (trace.empty()) return stats;
  stats.seconds =
      static_cast<double>(trace.back().timestamp_ms - trace.front().timestamp_ms) / 1e3;
  struct Block {
    uint64_t last_ms = 0;
    uint64_t uses = 0;
  };
  std::unordered_map<uint64_t, Block> blocks;
  std::vector<double> input, output, counts, reuse_s, fresh;
  uint64_t hits = 0;
  for (const TraceRequest& request : trace) {
    input.push_back(static_cast<double>(request.input_tokens));
    output.push_back(static_cast<double>(request.output_tokens));
    counts.push_back(static_cast<double>(request.blocks.size()));
    size_t shared = 0;
    while (shared < request.blocks.size() && blocks.contains(request.blocks[shared])) ++shared;
    if (shared > 1) {
      const uint64_t last_ms = blocks.at(request.blocks[shared - 1]).last_ms;
      reuse_s.push_back(static_cast<double>(request.timestamp_ms - last_ms) / 1e3);
      fresh.push_back(static_cast<double>(request.blocks.size() - shared));
    }
    for (const uint64_t id : request.blocks) {
      Block& block = blocks[id];
      hits += block.uses++ > 0 ? 1 : 0;
      block.last_ms = request.timestamp_ms;
      ++stats.accesses;
    }
  }
  stats.distinct = blocks.size();
  uint64_t reused = 0;
  for (const auto& [id, block] : blocks) {
    reused += block.uses > 1 ? 1 : 0;
    if (id != trace[0].blocks.front()) stats.most_uses = std::max(stats.most_uses, block.uses);
  }
  stats.infinite_hit_ratio = static_cast<double>(hits) / static_cast<double>(stats.accesses);
  stats.mean_input_tokens = Mean(input);
  stats.median_input_tokens = Quantile(input, 0.5);
  stats.p90_input_tokens = Quantile(input, 0.9);
  stats.mean_blocks = Mean(counts);
  stats.p90_blocks = Quantile(counts, 0.9);
  stats.mean_output_tokens = Mean(output);
  stats.continued_share = static_cast<double>(fresh.size()) / static_cast<double>(trace.size());
  stats.median_reuse_s = Quantile(reuse_s, 0.5);
  stats.p90_reuse_s = Quantile(reuse_s, 0.9);
  stats.mean_new_blocks = Mean(fresh);
  stats.reused_share = static_cast<double>(reused) / static_cast<double>(stats.distinct);
  return stats;
}

Json ToJson(const TraceStats& stats) {
  return {{"requests", stats.requests},
          {"seconds", stats.seconds},
          {"block_accesses", stats.accesses},
          {"distinct_blocks", stats.distinct},
          {"infinite_cache_hit_ratio", stats.infinite_hit_ratio},
          {"mean_input_tokens", stats.mean_input_tokens},
          {"median_input_tokens", stats.median_input_tokens},
          {"p90_input_tokens", stats.p90_input_tokens},
          {"mean_blocks", stats.mean_blocks},
          {"p90_blocks", stats.p90_blocks},
          {"mean_output_tokens", stats.mean_output_tokens},
          {"continued_share", stats.continued_share},
          {"median_reuse_s", stats.median_reuse_s},
          {"p90_reuse_s", stats.p90_reuse_s},
          {"mean_new_blocks", stats.mean_new_blocks},
          {"reused_block_share", stats.reused_share},
          {"most_uses_of_a_block", stats.most_uses}};
}

std::string Describe(const TraceStats& stats) {
  std::string text;
  const Json json = ToJson(stats);
  for (const auto& [name, value] : json.items()) {
    std::string label = name;
    std::replace(label.begin(), label.end(), '_', ' ');
    text += "  " + label + std::string(label.size() < 28 ? 28 - label.size() : 1, ' ') +
            (value.is_number_integer() ? value.dump() : Short(value.get<double>())) + "\n";
  }
  return text;
}

}  // namespace moonpool::bench
