#include "client/gpu_parked.h"

#include <algorithm>
#include <iterator>
#include <thread>
#include <utility>

namespace moonpool::client {

namespace {

constexpr std::chrono::milliseconds kLookPause{1};

// Reachable, and taken apart by nobody; without a lock, which a fork() could leave taken.
struct Leaked {
  std::vector<ParkedWork> works;
  std::vector<std::shared_ptr<const void>> more;
  Leaked* next = nullptr;
};
std::atomic<Leaked*> leaked{nullptr};

}  // namespace

void GpuParked::Add(ParkedWork work) {
  values_.fetch_add(work.values, std::memory_order_relaxed);
  if (!work.on_callers_stream) batches_.fetch_add(1, std::memory_order_relaxed);
  {
    MutexLock lock(mu_);
    works_.push_back(std::move(work));
  }
  if (wake_) wake_();
}

void GpuParked::Look() {
  if (values() == 0) return;
  std::vector<ParkedWork> works, done;
  {
    MutexLock lock(mu_);
    works.swap(works_);
  }
  const auto is_under_way = [](const ParkedWork& work) {
    const Result<bool> reached = work.completion.Done();
    return reached && !*reached;  // a lost device touches nothing
  };
  const auto first_done = std::partition(works.begin(), works.end(), is_under_way);
  done.assign(std::make_move_iterator(first_done), std::make_move_iterator(works.end()));
  works.erase(first_done, works.end());
  {
    MutexLock lock(mu_);
    works_.insert(works_.end(), std::make_move_iterator(works.begin()),
                  std::make_move_iterator(works.end()));
  }
  // Who reads the count then finds all of it let go.
  for (ParkedWork& work : done) {
    const size_t values = work.values;
    const bool counts = !work.on_callers_stream;
    { const ParkedWork gone = std::move(work); }
    if (counts) batches_.fetch_sub(1, std::memory_order_relaxed);
    values_.fetch_sub(values, std::memory_order_release);
  }
}

bool GpuParked::WaitUntil(std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    Look();
    if (values() == 0) return true;
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(kLookPause);
  }
}

void GpuParked::Leak(std::vector<std::shared_ptr<const void>> more) {
  auto* const all = new Leaked();
  all->more = std::move(more);
  {
    MutexLock lock(mu_);
    all->works.swap(works_);
  }
  all->next = leaked.load(std::memory_order_relaxed);
  while (!leaked.compare_exchange_weak(all->next, all, std::memory_order_release,
                                       std::memory_order_relaxed)) {
  }
}

}  // namespace moonpool::client
