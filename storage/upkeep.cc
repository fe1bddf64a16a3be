#include "storage/upkeep.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "storage/clock.h"

namespace moonpool::storage {

namespace {

// How long memory pressure or a passed expiry may wait for the thread to look again: while memory
// comes and goes, and when it has not for a while.
constexpr std::chrono::milliseconds kPause{10};
constexpr std::chrono::milliseconds kLongestPause{100};

}  // namespace

Upkeep::Upkeep(std::vector<Tenant*> tenants)
    : tenants_(std::move(tenants)), thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), "upkeep");
}

Upkeep::~Upkeep() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  stop_changed_.NotifyAll();
  thread_.join();
}

void Upkeep::Run() {
  for (std::chrono::milliseconds pause = kPause;;) {
    bool more = false, quiet = true;
    for (Tenant* tenant : tenants_) {
      more |= tenant->Maintain(UnixMs());
      quiet &= tenant->Quiet();
    }
    pause = quiet ? std::min(2 * pause, kLongestPause) : kPause;
    MutexLock lock(mu_);
    if (!stop_ && !more) stop_changed_.WaitFor(mu_, pause);
    if (stop_) return;
  }
}

}  // namespace moonpool::storage
