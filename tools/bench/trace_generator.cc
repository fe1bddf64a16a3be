#include "tools/bench/trace_generator.h"

#include <algorithm>
#include <iterator>
#include <queue>
#include <random>
#include <span>

namespace moonpool::bench {

namespace {

constexpr uint64_t kTickMs = 3000;
constexpr double kConversationsPerTick = 6.2;
constexpr double kBranchShare = 0.15;
// Of the continuations that do not branch: the last block was full, and is shared too.
constexpr double kFullLastBlockShare = 0.03;

// Quantiles of the trace: at 0, 5, ... 95 %, and at 98, 99 and 100 %.
constexpr double kFirstPromptBlocks[] = {1,  1,  1,  1,  2,  2,  3,  5,  7,  8,  10, 12,
                                         14, 17, 21, 25, 30, 37, 49, 75, 131, 175, 246};
constexpr double kContinuedBlocks[] = {1, 1, 1, 1, 1, 1, 2, 2, 2,  2,  2,  2,
                                       2, 2, 2, 3, 4, 7, 10, 15, 24, 34, 181};
constexpr double kPauseSeconds[] = {0,   27,  39,  51,  57,  66,  75,  84,  96,  108, 123, 141,
                                    162, 189, 225, 267, 318, 387, 474, 606, 972, 1458, 3030};
constexpr double kBranchKeeps[] = {0.01, 0.05, 0.07, 0.08, 0.10, 0.11, 0.13, 0.15,
                                   0.17, 0.19, 0.21, 0.25, 0.29, 0.34, 0.40, 0.45,
                                   0.52, 0.69, 0.83, 0.91, 0.94, 0.96, 0.99};
constexpr double kBranchBlocks[] = {1,  2,  4,  8,  10, 12, 14, 16, 17, 18, 19, 20,
                                    22, 24, 27, 30, 32, 34, 39, 52, 63, 85, 186};
constexpr double kOutputTokens[] = {1,   10,  24,  46,  100, 156, 213, 256, 291, 322,  350, 375,
                                    399, 423, 447, 472, 504, 543, 597, 698, 893, 1120, 2000};
// Whether the n-th turn has a successor.  The trace shows 0.31, 0.42, 0.51, 0.59, 0.59, 0.68, 0.74,
// then 0.78; but its hour cuts conversations off at both ends, which costs a tenth.
constexpr double kGoesOn[] = {0.34, 0.47, 0.56, 0.62, 0.63, 0.70, 0.76};
constexpr double kGoesOnLater = 0.80;

class Generator {
 public:
  explicit Generator(const GeneratorOptions& options) : options_(options), random_(options.seed) {}

  Trace Run() {
    std::poisson_distribution<int> beginning(kConversationsPerTick);
    Trace trace;
    for (uint64_t now_ms = 0; trace.size() < options_.requests; now_ms += kTickMs) {
      std::vector<Turn> turns;
      for (int i = beginning(random_); i > 0; --i) turns.push_back(FirstTurn());
      while (!waiting_.empty() && waiting_.top().at_ms <= now_ms) {
        turns.push_back(NextTurn(waiting_.top()));
        waiting_.pop();
      }
      std::shuffle(turns.begin(), turns.end(), random_);
      for (Turn& turn : turns) {
        if (trace.size() == options_.requests) break;
        trace.push_back(RequestOf(turn, now_ms));
        PlanNext(turn, now_ms);
      }
    }
    return trace;
  }

 private:
  struct Turn {
    uint64_t at_ms = 0;
    size_t number = 0;
    std::vector<uint64_t> blocks;
    bool operator<(const Turn& other) const { return at_ms > other.at_ms; }  // earliest on top
  };

  double Uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  // A value of the distribution that has these quantiles.
  double Draw(std::span<const double> quantiles) {
    const double u = Uniform();
    const auto last = static_cast<double>(quantiles.size() - 1);
    // The last three steps are not of 5 %.
    double place = u * 20;
    if (u >= 0.99) {
      place = last - 1 + (u - 0.99) * 100;
    } else if (u >= 0.98) {
      place = last - 2 + (u - 0.98) * 100;
    } else if (u >= 0.95) {
      place = last - 3 + (u - 0.95) / 0.03;
    }
    const auto index = std::min(static_cast<size_t>(place), quantiles.size() - 2);
    const double part = place - static_cast<double>(index);
    return quantiles[index] + part * (quantiles[index + 1] - quantiles[index]);
  }
  uint64_t DrawCount(std::span<const double> quantiles) {
    return static_cast<uint64_t>(Draw(quantiles) + Uniform());  // rounds up or down at random
  }

  void Append(uint64_t count, std::vector<uint64_t>* blocks) {
    for (uint64_t i = 0; i < count; ++i) blocks->push_back(next_block_++);
  }

  Turn FirstTurn() {
    Turn turn;
    turn.blocks.push_back(0);  // the system prompt
    Append(std::max<uint64_t>(DrawCount(kFirstPromptBlocks), 1), &turn.blocks);
    return turn;
  }

  Turn NextTurn(const Turn& last) {
    Turn turn = last;
    ++turn.number;
    if (Uniform() < kBranchShare) {
      const double kept = Draw(kBranchKeeps) * static_cast<double>(turn.blocks.size());
      turn.blocks.resize(std::clamp<size_t>(static_cast<size_t>(kept), 2, turn.blocks.size()));
      Append(std::max<uint64_t>(DrawCount(kBranchBlocks), 1), &turn.blocks);
      return turn;
    }
    if (Uniform() >= kFullLastBlockShare && turn.blocks.size() > 2) turn.blocks.pop_back();
    Append(std::max<uint64_t>(DrawCount(kContinuedBlocks), 1), &turn.blocks);
    return turn;
  }

  void PlanNext(Turn& turn, uint64_t now_ms) {
    const double goes_on =
        turn.number < std::size(kGoesOn) ? kGoesOn[turn.number] : kGoesOnLater;
    if (Uniform() >= goes_on) return;
    turn.at_ms = now_ms + static_cast<uint64_t>(Draw(kPauseSeconds) * 1e3);
    waiting_.push(std::move(turn));
  }

  TraceRequest RequestOf(const Turn& turn, uint64_t now_ms) {
    TraceRequest request;
    request.timestamp_ms = now_ms;
    const uint64_t in_last = 1 + static_cast<uint64_t>(Uniform() * static_cast<double>(
                                                                       options_.block_tokens));
    request.input_tokens = (turn.blocks.size() - 1) * options_.block_tokens +
                           std::min(in_last, options_.block_tokens);
    request.output_tokens = std::max<uint64_t>(DrawCount(kOutputTokens), 1);
    request.blocks = turn.blocks;
    return request;
  }

  const GeneratorOptions options_;
  std::mt19937_64 random_;
  std::priority_queue<Turn> waiting_;
  uint64_t next_block_ = 1;
};

}  // namespace

Trace GenerateTrace(const GeneratorOptions& options) { return Generator(options).Run(); }

}  // namespace moonpool::bench
