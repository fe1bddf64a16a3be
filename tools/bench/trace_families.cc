#include "tools/bench/trace_families.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <queue>
#include <random>

#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

using Blocks = std::vector<uint64_t>;

class World;

// Somebody who sends requests, one after the other.
class Session {
 public:
  virtual ~Session() = default;
  // The next request's blocks and, in `pause_s`, the time until the one after; negative: no more.
  virtual Blocks Next(World& world, double* pause_s) = 0;
};
using NewSession = std::function<std::unique_ptr<Session>(World&)>;

// Chance, block numbers, and the clock.
class World {
 public:
  explicit World(uint64_t seed) : random_(seed) {}

  double Uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  bool Chance(double p) { return Uniform() < p; }
  uint64_t Between(uint64_t low, uint64_t high) {
    return low + static_cast<uint64_t>(Uniform() * static_cast<double>(high - low + 1));
  }
  // Log-normal, by its median and the factor that covers two thirds to either side.
  double Around(double median, double factor) {
    return median * std::exp(std::normal_distribution<double>(0, std::log(factor))(random_));
  }
  double Exponential(double mean) { return -mean * std::log(1 - Uniform()); }
  void Append(uint64_t count, Blocks* blocks) {
    for (uint64_t i = 0; i < std::max<uint64_t>(count, 1); ++i) blocks->push_back(next_block_++);
  }
  uint64_t Count(double median, double factor, uint64_t most) {
    return std::clamp<uint64_t>(static_cast<uint64_t>(Around(median, factor)), 1, most);
  }
  double part() const { return part_; }  // of the trace that is over

  // Sessions of each kind begin at `per_s`, spread evenly at random.
  Trace Run(uint64_t requests, const std::vector<std::pair<double, NewSession>>& kinds) {
    struct Event {
      double at_s;
      uint64_t order;
      size_t kind;                       // that begins, where
      std::shared_ptr<Session> session;  // is null
      bool operator<(const Event& other) const {
        return at_s != other.at_s ? at_s > other.at_s : order > other.order;
      }
    };
    std::priority_queue<Event> events;
    uint64_t order = 0;
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      events.push({Exponential(1 / kinds[kind].first), order++, kind, nullptr});
    }
    Trace trace;
    while (trace.size() < requests) {
      Event event = events.top();
      events.pop();
      part_ = static_cast<double>(trace.size()) / static_cast<double>(requests);
      if (event.session == nullptr) {
        const auto& [per_s, make] = kinds[event.kind];
        events.push({event.at_s + Exponential(1 / per_s), order++, event.kind, nullptr});
        event.session = make(*this);
      }
      double pause_s = -1;
      TraceRequest request;
      request.blocks = event.session->Next(*this, &pause_s);
      request.timestamp_ms = static_cast<uint64_t>(event.at_s * 1e3);
      request.input_tokens = request.blocks.size() * 512;
      request.output_tokens = 200;
      trace.push_back(std::move(request));
      if (pause_s < 0) continue;
      event.at_s += pause_s;
      event.order = order++;
      events.push(std::move(event));
    }
    return trace;
  }

 private:
  std::mt19937_64 random_;
  uint64_t next_block_ = 1;
  double part_ = 0;
};

// Prompts or documents, some asked for more often than others.
class Library {
 public:
  Library(World& world, size_t count, double median_blocks, double factor, double exponent) {
    double sum = 0;
    for (size_t i = 1; i <= count; ++i) {
      sum += std::pow(static_cast<double>(i), -exponent);
      cumulative_.push_back(sum);
      world.Append(world.Count(median_blocks, factor, 400), &texts_.emplace_back());
    }
  }
  // From `turned` on, popularity counts from there: yesterday's favourites are in the middle.
  const Blocks& Pick(World& world, size_t turned = 0) {
    const double u = world.Uniform() * cumulative_.back();
    const auto at = std::upper_bound(cumulative_.begin(), cumulative_.end(), u);
    const auto index = static_cast<size_t>(at - cumulative_.begin());
    return texts_[(std::min(index, texts_.size() - 1) + turned) % texts_.size()];
  }
  const Blocks& InTurn() { return texts_[next_++ % texts_.size()]; }
  size_t size() const { return texts_.size(); }

 private:
  std::vector<Blocks> texts_;
  std::vector<double> cumulative_;
  size_t next_ = 0;
};

// A start, then turns that each add to it; the last block of a prompt is rarely full, so it is
// not part of the next.
struct ChatStyle {
  double first_blocks = 4, first_factor = 3;
  double turn_blocks = 2, turn_factor = 2;
  double goes_on = 0.7;
  double pause_s = 60, pause_factor = 3;
  double branches = 0;    // share of turns that go back to an earlier point first
  double full_block = 0;  // share of prompts whose last block is shared with the next
};

class Chat : public Session {
 public:
  Chat(World& world, Blocks start, const ChatStyle& style) : style_(style), blocks_(start) {
    world.Append(world.Count(style.first_blocks, style.first_factor, 300), &blocks_);
    keep_ = start.size();
  }
  Blocks Next(World& world, double* pause_s) override {
    const Blocks now = blocks_;
    if (!world.Chance(style_.goes_on)) return now;
    *pause_s = world.Around(style_.pause_s, style_.pause_factor);
    if (world.Chance(style_.branches)) {
      blocks_.resize(keep_ + world.Between(0, blocks_.size() - keep_));
    } else if (!world.Chance(style_.full_block) && blocks_.size() > keep_) {
      blocks_.pop_back();
    }
    world.Append(world.Count(style_.turn_blocks, style_.turn_factor, 100), &blocks_);
    return now;
  }

 private:
  const ChatStyle style_;
  Blocks blocks_;
  size_t keep_;
};

NewSession Chats(std::shared_ptr<Library> starts, ChatStyle style) {
  return [starts, style](World& world) -> std::unique_ptr<Session> {
    return std::make_unique<Chat>(world, starts ? starts->Pick(world) : Blocks(), style);
  };
}

std::shared_ptr<Library> Texts(World& world, size_t count, double blocks, double factor,
                               double exponent) {
  return std::make_shared<Library>(world, count, blocks, factor, exponent);
}

constexpr ChatStyle kOnce = {.first_blocks = 2, .first_factor = 2, .goes_on = 0};
constexpr ChatStyle kAgent = {.first_blocks = 3,
                              .turn_blocks = 2,
                              .goes_on = 0.95,
                              .pause_s = 8,
                              .pause_factor = 2.5,
                              .branches = 0.1,
                              .full_block = 0.5};
constexpr ChatStyle kReader = {
    .first_blocks = 1, .first_factor = 1.5, .turn_blocks = 1, .goes_on = 0.5, .pause_s = 40};

using Generate = Trace (*)(World&, uint64_t requests);

struct Kind {
  TraceFamily family;
  Generate generate;
};

Trace GenerateChats(World& world, uint64_t requests) {
  const auto prompts = Texts(world, 8, 2, 2, 1);
  return world.Run(requests, {{1.0, Chats(prompts, {.goes_on = 0.8, .pause_s = 90})}});
}

// Few go on, but those who do go on for long.
Trace GenerateFaithful(World& world, uint64_t requests) {
  const ChatStyle faithful = {.first_blocks = 6, .goes_on = 0.95, .pause_s = 120};
  const ChatStyle passing = {.first_blocks = 12, .goes_on = 0.1, .pause_s = 30};
  return world.Run(requests, {{0.1, Chats(nullptr, faithful)}, {2.0, Chats(nullptr, passing)}});
}

Trace GenerateSystemPrompts(World& world, uint64_t requests) {
  const auto prompts = Texts(world, 400, 20, 2, 0.9);
  return world.Run(requests, {{5.0, Chats(prompts, kOnce)}});
}

Trace GenerateAgents(World& world, uint64_t requests) {
  const auto tools = Texts(world, 5, 8, 1.5, 1);
  return world.Run(requests, {{0.3, Chats(tools, kAgent)}});
}

// An agent's step fans out into several that share all but their ends, then goes on.
Trace GenerateBranches(World& world, uint64_t requests) {
  const auto tools = Texts(world, 3, 10, 1.5, 1);
  const ChatStyle style = {.first_blocks = 8,
                           .turn_blocks = 4,
                           .goes_on = 0.9,
                           .pause_s = 5,
                           .pause_factor = 4,
                           .branches = 0.6,
                           .full_block = 0.5};
  return world.Run(requests, {{0.3, Chats(tools, style)}});
}

Trace GenerateScans(World& world, uint64_t requests) {
  const auto prompts = Texts(world, 4, 3, 2, 1);
  const ChatStyle scan = {.first_blocks = 80, .first_factor = 1.5, .goes_on = 0};
  return world.Run(requests,
                   {{0.5, Chats(prompts, {.goes_on = 0.8})}, {0.5, Chats(prompts, scan)}});
}

Trace GenerateDocuments(World& world, uint64_t requests) {
  const auto documents = Texts(world, 600, 50, 2, 0.8);
  return world.Run(requests, {{1.0, Chats(documents, kReader)}});
}

Trace GenerateTenants(World& world, uint64_t requests) {
  const auto prompts = Texts(world, 20, 4, 2, 1);
  const auto documents = Texts(world, 200, 40, 2, 1);
  const ChatStyle batch = {.first_blocks = 30, .goes_on = 0};
  return world.Run(requests, {{0.5, Chats(prompts, {.goes_on = 0.75})},
                              {0.05, Chats(Texts(world, 2, 10, 1.5, 1), kAgent)},
                              {0.5, Chats(documents, kReader)},
                              {0.7, Chats(nullptr, batch)}});
}

// Half-way, other documents are the popular ones, and the batch job starts.
Trace GenerateShift(World& world, uint64_t requests) {
  const auto documents = Texts(world, 400, 40, 2, 1);
  const NewSession readers = [documents](World& w) -> std::unique_ptr<Session> {
    const size_t turned = w.part() < 0.5 ? 0 : documents->size() / 2;
    return std::make_unique<Chat>(w, documents->Pick(w, turned), kReader);
  };
  const NewSession others = [](World& w) -> std::unique_ptr<Session> {
    if (w.part() < 0.5) return std::make_unique<Chat>(w, Blocks(), ChatStyle{.goes_on = 0.9});
    return std::make_unique<Chat>(w, Blocks(), ChatStyle{.first_blocks = 20, .goes_on = 0.1});
  };
  return world.Run(requests, {{1.0, readers}, {0.6, others}});
}

// The same documents again and again in the same order, more than fit, beside chats.
Trace GenerateLoop(World& world, uint64_t requests) {
  const auto documents = Texts(world, 300, 30, 1.5, 0);
  const NewSession loop = [documents](World& w) -> std::unique_ptr<Session> {
    return std::make_unique<Chat>(w, documents->InTurn(), kOnce);
  };
  return world.Run(requests, {{1.0, loop}, {0.3, Chats(nullptr, {.goes_on = 0.7})}});
}

// Keys on their own, as embeddings and small objects are; no chains.
Trace GenerateSingles(World& world, uint64_t requests) {
  const auto objects = Texts(world, 20000, 0.5, 1.1, 0.9);
  const NewSession single = [objects](World& w) -> std::unique_ptr<Session> {
    struct One : Session {
      explicit One(Blocks b) : blocks(std::move(b)) {}
      Blocks Next(World&, double*) override { return blocks; }
      Blocks blocks;
    };
    return std::make_unique<One>(objects->Pick(w));
  };
  return world.Run(requests * 10, {{1.0, single}});
}

const Kind kKinds[] = {
    {{"chats", "conversations of five turns on average under eight system prompts"}, GenerateChats},
    {{"faithful", "most leave after one long prompt, a few stay for twenty turns"},
     GenerateFaithful},
    {{"system-prompts", "400 long system prompts, short questions"}, GenerateSystemPrompts},
    {{"agents", "tool loops of twenty quick steps, some going back"}, GenerateAgents},
    {{"branches", "searches that return to earlier points most of the time"}, GenerateBranches},
    {{"scans", "conversations beside long prompts that never come back"}, GenerateScans},
    {{"documents", "questions about 600 long documents"}, GenerateDocuments},
    {{"tenants", "conversations, agents, documents and a batch job together"}, GenerateTenants},
    {{"shift", "other documents become popular half-way, and conversations get short"},
     GenerateShift},
    {{"loop", "300 documents in turn, again and again, beside conversations"}, GenerateLoop},
    {{"singles", "independent keys, no chains"}, GenerateSingles},
};

}  // namespace

const std::vector<TraceFamily>& TraceFamilies() {
  static const std::vector<TraceFamily> families = [] {
    std::vector<TraceFamily> all;
    for (const Kind& kind : kKinds) all.push_back(kind.family);
    return all;
  }();
  return families;
}

Trace GenerateFamily(const std::string& name, uint64_t requests, uint64_t seed) {
  for (const Kind& kind : kKinds) {
    if (kind.family.name != name) continue;
    World world(seed);
    return kind.generate(world, requests);
  }
  throw Failure("there is no kind of trace '" + name + "'");
}

}  // namespace moonpool::bench
