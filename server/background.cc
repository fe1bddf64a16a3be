#include "server/background.h"

#include <pthread.h>

namespace moonpool::server {

Background::Background() : thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), "background");
}

Background::~Background() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void Background::Run(std::function<void()> task) {
  {
    MutexLock lock(mu_);
    tasks_.push_back(std::move(task));
  }
  changed_.NotifyOne();
}

void Background::Loop() {
  for (;;) {
    std::vector<std::function<void()>> tasks;
    {
      MutexLock lock(mu_);
      while (tasks_.empty() && !stop_) changed_.Wait(mu_);
      if (tasks_.empty()) return;
      tasks.swap(tasks_);
    }
    for (auto& task : tasks) {
      task();
      task = nullptr;  // what it held goes here, in turn
    }
  }
}

}  // namespace moonpool::server
