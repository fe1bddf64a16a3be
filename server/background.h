// A thread for work that no loop should wait for: freeing what FLUSHALL ASYNC took out.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "protocol/mutex.h"

namespace moonpool::server {

class Background {
 public:
  Background();
  // Finishes what was given to it.
  ~Background();

  // Any thread; in the order of the calls.
  void Run(std::function<void()> task);

 private:
  void Loop();

  Mutex mu_;
  CondVar changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::vector<std::function<void()>> tasks_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moonpool::server
