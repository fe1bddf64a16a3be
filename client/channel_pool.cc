// ClientImpl: its channels.
#include <poll.h>
#include <unistd.h>

#include <algorithm>

#include "client/client_impl.h"
#include "client/gpu_parked.h"

namespace moonpool::client {

namespace {

// Shared memory that could not be attached is tried again after these.
constexpr std::chrono::milliseconds kFirstAttachPause{500};
constexpr std::chrono::milliseconds kLongestAttachPause{60000};
constexpr int kHousekeepingMs = 100;
// Looks at a channel that somebody uses.
constexpr std::chrono::milliseconds kVisitPause{5};

}  // namespace

// A new channel in place of this one may have what this one lacks: it failed some time ago.
bool ClientImpl::MayBeBetter(const Channel& channel) {
  if (channel.shm() && !channel.asked_gpu() && gpu_wanted_.load(std::memory_order_relaxed)) {
    return true;
  }
  if (options_.transport != Options::TransportChoice::kAuto || channel.plain() || channel.shm()) {
    return false;
  }
  if (channel.attach_failed() && attach_pause_.count() > 0 && Clock::now() >= attach_after_) {
    return true;
  }
  return channel.rdma_failed() && rdma_->MayTry();
}

ClientImpl::Borrowed ClientImpl::Borrow(Status* status) {
  Channel::Common common;
  std::shared_ptr<Channel> worse;  // closed without the lock
  const auto deadline = Clock::now() + std::chrono::milliseconds(options_.timeout_ms);
  {
    MutexLock lock(mu_);
    for (;;) {
      if (!idle_.empty()) {
        std::shared_ptr<Channel> channel = std::move(idle_.back());
        idle_.pop_back();
        if (!MayBeBetter(*channel)) return Borrowed(this, std::move(channel));
        worse = std::move(channel);
        worse->Retire();
        --open_;
        break;
      }
      if (open_ < options_.connections) break;
      // Who was woken looks first, however late: nobody else was woken for that connection.
      const auto left = deadline - Clock::now();
      if (left <= Clock::duration::zero()) {
        *status = {Code::kTimeout, "every connection stayed in use; raise connections"};
        return Borrowed(this, nullptr);
      }
      channel_free_.WaitFor(mu_, left);
    }
    ++open_;
    common.memory = memory_;
    common.rdma = rdma_;
    common.want_gpu = gpu_wanted_.load(std::memory_order_relaxed);
    common.try_shm = attach_pause_.count() == 0 || Clock::now() >= attach_after_;
  }
  worse = nullptr;
  std::unique_ptr<Channel> opened;
  *status = Channel::Open(endpoint_, options_, &common, &opened);
  MutexLock lock(mu_);
  if (!status->ok()) {
    --open_;
    channel_free_.NotifyOne();
    return Borrowed(this, nullptr);
  }
  std::shared_ptr<Channel> channel(std::move(opened));
  all_.push_back(channel);
  if (channel->rdma_failed()) counters_.rdma_failures.fetch_add(1, std::memory_order_relaxed);
  if (channel->shm()) {
    memory_ = common.memory;
    attach_pause_ = std::chrono::milliseconds(0);
  } else if (common.try_shm && channel->attach_failed()) {
    counters_.attach_failures.fetch_add(1, std::memory_order_relaxed);
    attach_pause_ = std::clamp(attach_pause_ * 2, kFirstAttachPause, kLongestAttachPause);
    attach_after_ = Clock::now() + attach_pause_;
  }
  in_use_ = channel->shm()               ? Transport::kShm
            : channel->rdma() != nullptr ? Transport::kRdma
                                         : Transport::kTcp;
  return Borrowed(this, std::move(channel));
}

ClientImpl::Borrowed ClientImpl::BorrowThat(const std::shared_ptr<Channel>& channel,
                                           Status* status) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(options_.timeout_ms);
  MutexLock lock(mu_);
  for (;;) {
    const auto found = std::find(idle_.begin(), idle_.end(), channel);
    if (found != idle_.end()) {
      idle_.erase(found);
      return Borrowed(this, channel);
    }
    if (channel->retired()) {
      *status = {Code::kUnavailable, "its connection is lost"};
      return Borrowed(this, nullptr);
    }
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) {
      *status = {Code::kTimeout, "its connection stayed in use"};
      return Borrowed(this, nullptr);
    }
    // Whoever has it calls GiveBack(), which wakes all here and one of those that take any.
    that_free_.WaitFor(mu_, left);
  }
}

void ClientImpl::GiveBack(std::shared_ptr<Channel> channel) {
  const bool usable = channel->usable() && !channel->ended();
  if (usable && channel->rdma() != nullptr) channel->rdma()->Rest();
  {
    MutexLock lock(mu_);
    if (usable) {
      idle_.push_back(std::move(channel));
    } else {
      channel->Retire();
      --open_;
      std::erase_if(all_, [](const std::weak_ptr<Channel>& c) { return c.expired(); });
    }
  }
  channel_free_.NotifyOne();
  that_free_.NotifyAll();
}

Status ClientImpl::WithChannel(const std::function<bool(Channel&)>& work) {
  Status status;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (attempt > 0) {
      counters_.reconnects.fetch_add(1, std::memory_order_relaxed);
      // The others are most likely of the same dead server.
      std::vector<std::shared_ptr<Channel>> stale;
      MutexLock lock(mu_);
      open_ -= static_cast<int>(idle_.size());
      stale.swap(idle_);
      for (const auto& channel : stale) channel->Retire();
    }
    const Borrowed channel = Borrow(&status);
    if (!channel) return status;
    if (channel->has_releases()) channel->BeginReleases();
    if (work(*channel)) return {};
    status = channel->stream().failure();
    // A server that answers too slowly is not cured by asking it again.
    if (status.code != Code::kUnavailable) return status;
  }
  return status;
}

RdmaSession* ClientImpl::QueuePairs(Channel& channel) {
  RdmaSession* const rdma = channel.rdma();
  if (rdma == nullptr) return nullptr;
  const bool ready = rdma->Ready();
  in_use_.store(ready ? Transport::kRdma : Transport::kTcp, std::memory_order_relaxed);
  return ready ? rdma : nullptr;
}

std::shared_ptr<Channel> ClientImpl::TakeIdle(const std::function<bool(Channel&)>& wanted) {
  MutexLock lock(mu_);
  const auto found = std::find_if(idle_.begin(), idle_.end(),
                                  [&](const auto& channel) { return wanted(*channel); });
  if (found == idle_.end()) return nullptr;
  std::shared_ptr<Channel> channel = std::move(*found);
  idle_.erase(found);
  return channel;
}

void ClientImpl::VisitQueuePairs(const std::function<void(RdmaSession&)>& visit) {
  std::vector<std::weak_ptr<Channel>> todo;
  {
    MutexLock lock(mu_);
    for (const auto& weak : all_) {
      const std::shared_ptr<Channel> channel = weak.lock();
      if (channel != nullptr && channel->rdma() != nullptr) todo.push_back(weak);
    }
  }
  const auto is_todo = [&](const Channel& channel) {
    return std::any_of(todo.begin(), todo.end(),
                       [&](const auto& weak) { return weak.lock().get() == &channel; });
  };
  for (;;) {
    std::erase_if(todo, [](const std::weak_ptr<Channel>& weak) { return weak.expired(); });
    if (todo.empty()) return;
    std::shared_ptr<Channel> channel = TakeIdle(is_todo);
    if (channel == nullptr) {
      std::this_thread::sleep_for(kVisitPause);
      continue;
    }
    std::erase_if(todo, [&](const auto& weak) { return weak.lock() == channel; });
    visit(*channel->rdma());
    GiveBack(std::move(channel));
  }
}

void ClientImpl::Housekeep() {
  std::vector<pollfd> polls;
  std::vector<std::shared_ptr<Channel>> channels;
  const std::function<bool(Channel&)> owes = [](Channel& channel) {
    return channel.has_releases();
  };
  for (;;) {
    channels.clear();
    polls.assign(1, {wake_fd_.get(), POLLIN, 0});
    bool queue_pairs = false;
    {
      MutexLock lock(mu_);
      if (stop_) return;
      for (const auto& weak : all_) {
        std::shared_ptr<Channel> channel = weak.lock();
        if (channel == nullptr) continue;
        queue_pairs |= channel->rdma() != nullptr;
        if (!channel->shm()) continue;
        polls.push_back({channel->attach_fd(), POLLIN, 0});
        channels.push_back(std::move(channel));
      }
    }
    poll(polls.data(), polls.size(), kHousekeepingMs);
    for (size_t i = 0; i < channels.size(); ++i) {
      channels[i]->Pump();
    }
    channels.clear();
    // A server that has ended a session waits to hear that no device writes for it any more.
    while (std::shared_ptr<Channel> ended = TakeIdle([](Channel& idle) { return idle.ended(); })) {
      GiveBack(std::move(ended));
    }
    // What readers are done with must not wait for the next call.
    while (std::shared_ptr<Channel> owing = TakeIdle(owes)) {
      owing->BeginReleases();
      owing->stream().Flush();
      GiveBack(std::move(owing));
    }
    if (queue_pairs) TendQueuePairs();
    parked_->Look();
  }
}

// Those that nobody uses now: one after the other, each taken for a moment.
void ClientImpl::TendQueuePairs() {
  std::vector<const Channel*> tended;
  while (std::shared_ptr<Channel> channel = TakeIdle([&](Channel& idle) {
           return idle.rdma() != nullptr &&
                  std::find(tended.begin(), tended.end(), &idle) == tended.end();
         })) {
    tended.push_back(channel.get());
    channel->rdma()->Tend();
    GiveBack(std::move(channel));
  }
}

}  // namespace moonpool::client
