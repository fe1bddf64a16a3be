#include "client/async_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "client/client_impl.h"

namespace moonpool::client {

std::vector<KeyResult> RunOperation(ClientImpl& client, const Operation& operation) {
  const std::vector<std::string_view> keys(operation.keys.begin(), operation.keys.end());
  switch (operation.kind) {
    case Operation::Kind::kGetInto: {
      std::vector<Target> targets;
      for (const auto& pieces : operation.into) targets.push_back({pieces});
      return client.GetInto(keys, targets);
    }
    case Operation::Kind::kPutFrom: {
      std::vector<Source> sources;
      for (const auto& pieces : operation.from) {
        Source source{pieces};
        for (const ConstBuffer& piece : pieces) source.bytes += piece.size;
        sources.push_back(source);
      }
      return client.PutFrom(keys, sources, operation.put);
    }
    case Operation::Kind::kExists:
      return client.Exist(keys);
    case Operation::Kind::kRemove:
      return client.Remove(keys);
  }
  __builtin_unreachable();
}

AsyncQueue::AsyncQueue(ClientImpl& client)
    : client_(client), event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (int i = 0; i < client.options().async_threads; ++i) {
    threads_.emplace_back([this] { Work(); });
  }
}

AsyncQueue::~AsyncQueue() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  task_added_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

uint64_t AsyncQueue::Submit(Operation operation, std::function<void(Completion)> done) {
  uint64_t id;
  {
    MutexLock lock(mu_);
    id = next_id_++;
    tasks_.push_back({id, std::move(operation), std::move(done)});
  }
  task_added_.NotifyOne();
  return id;
}

std::vector<Completion> AsyncQueue::Poll(size_t most) {
  std::vector<Completion> taken;
  MutexLock lock(mu_);
  while (!completions_.empty() && taken.size() < most) {
    taken.push_back(std::move(completions_.front()));
    completions_.pop_front();
  }
  if (completions_.empty()) {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = read(event_fd_.get(), &count, sizeof(count));
  }
  return taken;
}

void AsyncQueue::Work() {
  for (;;) {
    Task task;
    {
      MutexLock lock(mu_);
      while (tasks_.empty() && !stop_) task_added_.Wait(mu_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    Completion completion{task.id, RunOperation(client_, task.operation)};
    if (task.done) {
      task.done(std::move(completion));
      continue;
    }
    MutexLock lock(mu_);
    completions_.push_back(std::move(completion));
    // Under the lock, so that a Poll() that empties the queue also empties the counter.
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(event_fd_.get(), &one, sizeof(one));
  }
}

}  // namespace moonpool::client
