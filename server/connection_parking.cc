// Connection: commands that wait for the SSD tier or for a device, and replies that wait for the former.
//
//   handler misses something -> Park() copies the arguments -> Wait() asks for it
//   -> it came, or will not -> RunAgain(): the same handler, from the start
//
// Nothing else of the connection runs meanwhile, so its pipeline keeps its order; but what the
// commands behind the first will miss is asked for as well.
#include <algorithm>
#include <iterator>

#include "server/connection.h"
#include "server/loop.h"
#include "server/parking.h"
#include "server/server.h"
#include "server/ticks.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

// A value that came up may be gone again when its command runs, but hardly so often.
constexpr int kMostTries = 8;

}  // namespace

std::unique_ptr<Parked> Connection::Park(const Command* command, std::span<Argument> arguments,
                                         uint64_t key_hash) {
  auto parked = std::make_unique<Parked>();
  parked->command = command;
  parked->key_hash = key_hash;
  parked->arguments.assign(arguments.begin(), arguments.end());
  size_t bytes = 0;
  for (const Argument& argument : arguments) bytes += argument.body == nullptr ? argument.size : 0;
  parked->text.reserve(bytes);
  for (Argument& argument : parked->arguments) {
    if (argument.body != nullptr) continue;
    const size_t at = parked->text.size();
    parked->text += argument.view();
    argument.data = parked->text.data() + at;
  }
  parked->bodies = std::move(bodies_);  // which keeps them where they are
  bodies_.clear();
  return parked;
}

void Connection::Wait(std::unique_ptr<Parked> parked, bool again) {
  Missing& missing = loop_.missing();
  if (!suspended_) event_del(&read_event_);
  suspended_ = true;
  const size_t values = missing.values.size() + missing.on_device.size();
  parked->tries += values == 0 ? 0 : 1;
  parked->waiting = (values == 0 ? 0 : 1) + (missing.memory_bytes != 0 ? 1 : 0) +
                    (missing.growing != 0 ? 1 : 0);
  // Who changes a value wants it in memory, and a copy that no key refers to must not be what memory
  // is full of.
  const bool move = (parked->command->flags & kWrite) != 0 ||
                    tenant_->LeasePressure() != storage::Tenant::Pressure::kNone;
  parked_ = std::move(parked);
  const auto arrivals = std::make_shared<Arrivals>();
  {
    MutexLock lock(arrivals->mu);
    arrivals->waiting = values;
    arrivals->values.reserve(missing.values.size());
  }
  const auto came = [&loop = loop_, id = id_, arrivals](const auto& note) {
    {
      MutexLock lock(arrivals->mu);
      note(*arrivals);
      if (--arrivals->waiting > 0) return;
    }
    loop.Post([&loop, id, arrivals] {
      if (Connection* c = loop.Find(id)) c->ValuesCameUp(*arrivals);
    });
  };
  for (const Missing::Value& value : missing.values) {
    tenant_->ssd()->Load(
        value.hash, value.place, storage::SsdTier::Why::kWanted,
        [came, version = value.place.id](const storage::SsdTier::Loaded& loaded) {
          came([&](Arrivals& to) {
            using LoadError = storage::SsdTier::LoadError;
            to.mu.AssertHeld();
            to.failed |= loaded.error == LoadError::kNoMemory || loaded.error == LoadError::kDisk;
            if (loaded.value) to.values.emplace_back(version, loaded.value.Share());
          });
        });
  }
  for (storage::ValueRef& value : missing.on_device) {
    auto there = std::make_shared<storage::ValueRef>(value.Share());
    tenant_->gpu()->Fetch(std::move(value), move,
                          [came, there = std::move(there)](const storage::ValueRef& fetched) {
                            came([&](Arrivals& to) {
                              to.mu.AssertHeld();
                              to.failed |= !fetched;
                              if (fetched) to.fetched.emplace_back(there->Share(), fetched.Share());
                            });
                          });
  }
  if (!missing.values.empty()) {
    tenant_->ReadAhead(missing.values.back().hash, missing.values.back().place.slot());
  }
  if (missing.growing != 0) {
    if (parked_->growth_until_ms == 0) {
      parked_->growth_since_ms = loop_.now_ms();
      parked_->growth_until_ms =
          loop_.now_ms() + loop_.server().config().number(Key::kMemoryWait);
    }
    tenant_->pool().growth()->Wait(missing.growing, parked_->growth_since_ms,
                                   parked_->growth_until_ms, [&loop = loop_, id = id_] {
                                     loop.Post([&loop, id] {
                                       if (Connection* c = loop.Find(id)) c->MemoryCameFree();
                                     });
                                   });
  }
  if (missing.memory_bytes != 0) {
    again &= parked_->until_ms != 0;  // else it has no place in that queue yet
    if (parked_->until_ms == 0) {
      parked_->until_ms =
          loop_.now_ms() + storage::MemoryWaitMs(loop_.server().config().number(Key::kMemoryWait),
                                                 missing.memory_bytes);
    }
    tenant_->memory_queue().Wait(missing.memory_bytes, parked_->until_ms, again,
                                 [&loop = loop_, id = id_] {
                                   loop.Post([&loop, id] {
                                     if (Connection* c = loop.Find(id)) c->MemoryCameFree();
                                   });
                                 });
  }
  missing.Clear();
}

void Connection::ValuesCameUp(Arrivals& arrivals) {
  if (closed_ || parked_ == nullptr) return;
  {
    MutexLock lock(arrivals.mu);
    std::move(arrivals.values.begin(), arrivals.values.end(), std::back_inserter(parked_->values));
    std::move(arrivals.fetched.begin(), arrivals.fetched.end(),
              std::back_inserter(parked_->fetched));
    parked_->failed |= arrivals.failed;
  }
  if (--parked_->waiting == 0) RunAgain();
}

void Connection::MemoryCameFree() {
  if (closed_) return;
  if (parked_ != nullptr) {
    if (--parked_->waiting == 0) RunAgain();
    return;
  }
  if (!body_wanted_ || !suspended_) return;
  suspended_ = false;
  event_add(&read_event_, nullptr);
  loop_.UpdateClock();
  loop_.scratch().set_resp(resp_);
  Process({});
  Flush();
}

void Connection::WaitForBodyMemory(uint64_t bytes) {
  const bool again = body_until_ms_ != 0;
  if (!again) {
    body_until_ms_ =
        loop_.now_ms() +
        storage::MemoryWaitMs(loop_.server().config().number(Key::kMemoryWait), bytes);
  }
  suspended_ = true;
  event_del(&read_event_);
  tenant_->memory_queue().Wait(bytes, body_until_ms_, again, [&loop = loop_, id = id_] {
    loop.Post([&loop, id] {
      if (Connection* connection = loop.Find(id)) connection->MemoryCameFree();
    });
  });
}

void Connection::RunAgain() {
  std::unique_ptr<Parked> parked = std::move(parked_);
  suspended_ = false;
  event_add(&read_event_, nullptr);
  loop_.UpdateClock();
  loop_.scratch().set_resp(resp_);
  loop_.missing().final = parked->failed || parked->tries >= kMostTries ||
                          (parked->until_ms != 0 && loop_.now_ms() >= parked->until_ms);
  loop_.missing().elsewhere =
      parked->growth_until_ms != 0 && loop_.now_ms() >= parked->growth_until_ms;
  loop_.missing().came_up = parked->values;
  loop_.missing().fetched = parked->fetched;
  const Reply::Mark mark = loop_.scratch().mark();
  const std::span<Argument> arguments = parked->arguments;
  const Command* command = parked->command;
  const uint64_t key_hash = parked->key_hash;
  Execute(command, arguments, key_hash, Ticks(), mark, std::move(parked));
  loop_.missing().Clear();
  if (!suspended_ && !closed_ && !input_.empty()) Process({});
  Flush();
}

// The commands behind one that waits will want their values too: the disk reads them meanwhile.
void Connection::PrefetchRest(std::span<const ParsedCommand> rest) {
  storage::SsdTier* tier = tenant_->ssd();
  if (tier == nullptr) return;
  for (const ParsedCommand& parsed : rest) {
    if (parsed.command == nullptr || parsed.key_hash == 0 ||
        (parsed.command->flags & kReadOnly) == 0) {
      continue;
    }
    const Argument& key =
        loop_.batch_arguments()[parsed.first_argument +
                                static_cast<size_t>(parsed.command->keys.first)];
    storage::SsdPlace place;
    {
      storage::KeyLock lock(tenant_->keyspace(), key.view(), parsed.key_hash, loop_.now_ms());
      const storage::Entry* entry = lock.key.Find();
      if (entry != nullptr && entry->has(storage::Entry::kOnSsd)) place = entry->place();
    }
    if (place) tier->Load(parsed.key_hash, place, storage::SsdTier::Why::kAhead, nullptr);
  }
}

// --- replies that wait for the log --------------------------------------------------------------

bool Connection::HoldOutput() {
  storage::SsdTier* tier = tenant_->ssd();
  if (tier == nullptr) return false;
  const uint64_t sequence = storage::SsdLog::TakeThreadSequence();
  if (sequence != 0 && !tier->log().Durable(sequence)) {
    held_sequence_ = sequence;
    WatchWritable(false);
    tier->log().WhenDurable(sequence, [&loop = loop_, id = id_] {
      loop.Post([&loop, id] {
        if (Connection* connection = loop.Find(id)) connection->ReleaseOutput();
      });
    });
  }
  return held_sequence_ != 0;
}

void Connection::ReleaseOutput() {
  if (closed_ || held_sequence_ == 0 || !tenant_->ssd()->log().Durable(held_sequence_)) return;
  held_sequence_ = 0;
  AfterSend(output_.Send(fd_.get(), SendBudget()));
}

}  // namespace moonpool::server
