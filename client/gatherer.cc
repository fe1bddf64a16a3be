#include "client/gatherer.h"

#include <algorithm>

#include "client/client_impl.h"

namespace moonpool::client {

Gatherer::Gatherer(ClientImpl& client) : client_(client) {}

KeyResult Gatherer::Get(std::string_view key, std::string* value) {
  Call call{key, {}, value, {}};
  return Run(kGet, call);
}

KeyResult Gatherer::Put(std::string_view key, std::string_view value) {
  Call call{key, value, nullptr, {}};
  return Run(kPut, call);
}

KeyResult Gatherer::Exists(std::string_view key) {
  Call call{key, {}, nullptr, {}};
  return Run(kExists, call);
}

std::chrono::nanoseconds Gatherer::Window() const {
  const std::chrono::nanoseconds most = std::chrono::microseconds(client_.options().gather_us);
  return round_trip_.count() == 0 ? most : std::min(most, round_trip_ / 2);
}

std::vector<Gatherer::Call*> Gatherer::Take(Lane& lane, Call& own, size_t most) {
  std::vector<Call*> taken{&own};
  std::erase(lane.waiting, &own);
  const size_t others = std::min(most - 1, lane.waiting.size());
  taken.insert(taken.end(), lane.waiting.begin(),
               lane.waiting.begin() + static_cast<ptrdiff_t>(others));
  lane.waiting.erase(lane.waiting.begin(), lane.waiting.begin() + static_cast<ptrdiff_t>(others));
  for (Call* call : taken) call->taken = true;
  return taken;
}

KeyResult Gatherer::Run(Kind kind, Call& call) {
  const auto most = static_cast<size_t>(client_.options().gather_keys);
  std::vector<Call*> batch;
  {
    MutexLock lock(mu_);
    Lane& lane = lanes_[kind];
    lane.waiting.push_back(&call);
    if (lane.leader && lane.waiting.size() >= most) changed_.NotifyAll();
    while (!call.done && (call.taken || lane.leader)) changed_.Wait(mu_);
    if (call.done) return std::move(call.result);

    lane.leader = true;
    const auto deadline = std::chrono::steady_clock::now() + Window();
    while (lane.on_the_way > 0 && lane.waiting.size() < most) {
      const auto left = deadline - std::chrono::steady_clock::now();
      if (left <= std::chrono::nanoseconds::zero()) break;
      changed_.WaitFor(mu_, left);
    }
    batch = Take(lane, call, most);
    lane.leader = false;
    ++lane.on_the_way;
    changed_.NotifyAll();  // one of those left behind leads the next batch
  }
  const auto start = std::chrono::steady_clock::now();
  Send(kind, batch);
  const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - start;
  if (batch.size() > 1) client_.CountGathered(batch.size());
  MutexLock lock(mu_);
  round_trip_ = round_trip_.count() == 0 ? took : (round_trip_ * 7 + took) / 8;
  --lanes_[kind].on_the_way;
  for (Call* sent : batch) sent->done = true;
  changed_.NotifyAll();
  return std::move(call.result);
}

void Gatherer::Send(Kind kind, const std::vector<Call*>& calls) {
  std::vector<std::string_view> keys;
  keys.reserve(calls.size());
  for (const Call* call : calls) keys.push_back(call->key);
  std::vector<KeyResult> results;
  switch (kind) {
    case kGet: {
      std::vector<Target> targets;
      for (const Call* call : calls) targets.push_back({{}, call->target});
      results = client_.GetInto(keys, targets);
      break;
    }
    case kPut: {
      std::vector<ConstBuffer> buffers;
      buffers.reserve(calls.size());
      std::vector<Source> sources;
      for (const Call* call : calls) {
        buffers.push_back({call->value.data(), call->value.size()});
        sources.push_back({std::span(&buffers.back(), 1), call->value.size()});
      }
      results = client_.PutFrom(keys, sources, {});
      break;
    }
    case kExists:
    case kKinds:
      results = client_.Exist(keys);
      break;
  }
  for (size_t i = 0; i < calls.size(); ++i) calls[i]->result = std::move(results[i]);
}

}  // namespace moonpool::client
