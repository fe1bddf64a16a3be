#include "server/ticks.h"

#include <chrono>
#include <thread>

namespace moonpool::server {

double TickRate() {
  static const double rate = [] {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    const uint64_t ticks = Ticks();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const auto elapsed = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    return static_cast<double>(Ticks() - ticks) / elapsed;
  }();
  return rate;
}

}  // namespace moonpool::server
