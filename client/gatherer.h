// Turns single calls that many threads make at the same time into batches.
//
//   1. The first caller of a batch leads it.  While earlier batches are on their way it waits for
//      company: up to half a measured round trip, at most gather_us, or until the batch is full.
//   2. It sends the batch, fills in everybody's result and wakes them.
// Nobody waits when nothing is on its way: a lone caller loses nothing.
//
// Threads: any; mu_ is a leaf lock, not held during I/O.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "client/moonpool/client.h"
#include "protocol/mutex.h"

namespace moonpool::client {

class ClientImpl;

class Gatherer {
 public:
  explicit Gatherer(ClientImpl& client);

  KeyResult Get(std::string_view key, std::string* value);
  KeyResult Put(std::string_view key, std::string_view value);
  KeyResult Exists(std::string_view key);

 private:
  enum Kind { kGet, kPut, kExists, kKinds };
  struct Call {
    std::string_view key;
    std::string_view value;       // kPut
    std::string* target = nullptr;  // kGet
    KeyResult result;
    bool taken = false;  // in a batch
    bool done = false;
  };
  struct Lane {
    std::vector<Call*> waiting;
    bool leader = false;  // somebody gathers
    int on_the_way = 0;   // batches
  };

  KeyResult Run(Kind kind, Call& call);
  // How long a leader may wait for company.
  std::chrono::nanoseconds Window() const REQUIRES(mu_);
  // Up to `most` calls, `own` among them.
  static std::vector<Call*> Take(Lane& lane, Call& own, size_t most);
  void Send(Kind kind, const std::vector<Call*>& calls);

  ClientImpl& client_;
  Mutex mu_;
  CondVar changed_;
  Lane lanes_[kKinds] GUARDED_BY(mu_);
  std::chrono::nanoseconds round_trip_ GUARDED_BY(mu_){0};  // moving average
};

}  // namespace moonpool::client
