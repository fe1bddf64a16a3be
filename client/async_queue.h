// Operations submitted to run on the library's own threads, and their completions.
// Threads: any; mu_ is a leaf lock.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "client/moonpool/client.h"
#include "protocol/mutex.h"
#include "protocol/unique_fd.h"

namespace moonpool::client {

class ClientImpl;

// Runs the operation on the calling thread.
std::vector<KeyResult> RunOperation(ClientImpl& client, const Operation& operation);

class AsyncQueue {
 public:
  explicit AsyncQueue(ClientImpl& client);
  // Finishes what was submitted.
  ~AsyncQueue();

  // `done` empty: the completion waits for Poll().
  uint64_t Submit(Operation operation, std::function<void(Completion)> done);
  std::vector<Completion> Poll(size_t most);
  int event_fd() const { return event_fd_.get(); }

 private:
  struct Task {
    uint64_t id;
    Operation operation;
    std::function<void(Completion)> done;
  };
  void Work();

  ClientImpl& client_;
  UniqueFd event_fd_;  // readable while completions wait
  Mutex mu_;
  CondVar task_added_;
  bool stop_ GUARDED_BY(mu_) = false;
  uint64_t next_id_ GUARDED_BY(mu_) = 1;
  std::deque<Task> tasks_ GUARDED_BY(mu_);
  std::deque<Completion> completions_ GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace moonpool::client
