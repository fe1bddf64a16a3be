#include "tools/bench/stall_watch.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "tools/bench/clock.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kPeriodNs = 500'000;
constexpr uint64_t kLateNs = 1'000'000;

// What is in both; each is in order and does not overlap itself.
std::vector<Stall> Intersect(const std::vector<Stall>& a, const std::vector<Stall>& b) {
  std::vector<Stall> both;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const Stall part{std::max(a[i].begin_ns, b[j].begin_ns), std::min(a[i].end_ns, b[j].end_ns)};
    if (part.begin_ns < part.end_ns) both.push_back(part);
    a[i].end_ns < b[j].end_ns ? ++i : ++j;
  }
  return both;
}

}  // namespace

StallWatch::StallWatch() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &allowed)) processors.push_back(i);
  }
  late_.resize(processors.size());
  for (size_t i = 0; i < processors.size(); ++i) {
    threads_.emplace_back([this, i, processor = processors[i]] { Watch(processor, &late_[i]); });
  }
}

void StallWatch::Watch(int processor, std::vector<Stall>* late) {
  cpu_set_t here;
  CPU_ZERO(&here);
  CPU_SET(processor, &here);
  const sched_param priority{sched_get_priority_max(SCHED_FIFO)};
  if (pthread_setaffinity_np(pthread_self(), sizeof(here), &here) != 0 ||
      pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority) != 0) {
    return;
  }
  for (uint64_t due = NowNs() + kPeriodNs; !stop_; due += kPeriodNs) {
    const timespec at{static_cast<time_t>(due / 1'000'000'000),
                      static_cast<long>(due % 1'000'000'000)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
    const uint64_t now = NowNs();
    if (now < due + kLateNs) continue;
    late->push_back({due, now});
    due = now;
  }
}

std::vector<Stall> StallWatch::Stop() {
  stop_ = true;
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  if (late_.empty()) return {};
  std::vector<Stall> stalls = late_.front();
  for (const std::vector<Stall>& late : late_) stalls = Intersect(stalls, late);
  std::erase_if(stalls, [](const Stall& s) { return s.end_ns - s.begin_ns < kLateNs; });
  return stalls;
}

}  // namespace moonpool::bench
