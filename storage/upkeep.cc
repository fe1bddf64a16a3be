#include "storage/upkeep.h"

#include <pthread.h>

#include <chrono>

#include "storage/clock.h"

namespace moonpool::storage {

namespace {

// How long memory pressure or a passed expiry may wait for the thread to look again.
constexpr std::chrono::milliseconds kPause{10};

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
  for (;;) {
    bool more = false;
    for (Tenant* tenant : tenants_) more |= tenant->Maintain(UnixMs());
    MutexLock lock(mu_);
    if (!stop_ && !more) stop_changed_.WaitFor(mu_, kPause);
    if (stop_) return;
  }
}

}  // namespace moonpool::storage
