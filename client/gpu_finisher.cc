#include <algorithm>
#include <chrono>
#include <utility>

#include "client/gpu_transfer.h"

namespace moonpool::client {

namespace {

// Between looks at what devices copy: they take tens of microseconds at least.
constexpr std::chrono::microseconds kFirstPause{20};
constexpr std::chrono::microseconds kLongestPause{1000};

}  // namespace

GpuFinisher::GpuFinisher(std::function<bool(GpuTransferState&)> try_finish,
                         std::function<void(GpuTransferState&)> give_up)
    : try_finish_(std::move(try_finish)),
      give_up_(std::move(give_up)),
      thread_([this] { Work(); }) {}

GpuFinisher::~GpuFinisher() {
  if (thread_.joinable()) Stop(Clock::now());
}

void GpuFinisher::Stop(Clock::time_point deadline) {
  {
    MutexLock lock(mu_);
    stop_at_ = deadline;
  }
  changed_.NotifyAll();
  thread_.join();
}

void GpuFinisher::Add(std::shared_ptr<GpuTransferState> transfer) {
  {
    MutexLock lock(mu_);
    added_.push_back(std::move(transfer));
  }
  changed_.NotifyAll();
}

void GpuFinisher::Work() {
  std::vector<std::shared_ptr<GpuTransferState>> transfers;
  std::chrono::microseconds pause = kFirstPause;
  for (;;) {
    {
      MutexLock lock(mu_);
      if (!transfers.empty() && added_.empty()) changed_.WaitFor(mu_, pause);
      while (transfers.empty() && added_.empty() && !stop_at_) changed_.Wait(mu_);
      if (!added_.empty()) pause = kFirstPause;
      transfers.insert(transfers.end(), std::make_move_iterator(added_.begin()),
                       std::make_move_iterator(added_.end()));
      added_.clear();
      if (stop_at_ && (transfers.empty() || Clock::now() >= *stop_at_)) break;
    }
    const size_t done =
        std::erase_if(transfers, [this](const auto& transfer) { return try_finish_(*transfer); });
    pause = done > 0 ? kFirstPause : std::min(pause * 2, kLongestPause);
  }
  for (const auto& transfer : transfers) give_up_(*transfer);
}

}  // namespace moonpool::client
