// When something that failed may be tried again: twice as long after each failure, up to a limit.
//
// Threads: one at a time.  Times: any clock that does not jump, in ms.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moonpool::rdma {

class Backoff {
 public:
  Backoff(int64_t first_ms, int64_t most_ms) : first_ms_(first_ms), most_ms_(most_ms) {}

  void Failed(int64_t now_ms) {
    pause_ms_ = pause_ms_ == 0 ? first_ms_ : std::min(2 * pause_ms_, most_ms_);
    until_ms_ = now_ms + pause_ms_;
  }
  // It works again, or what it failed of is over.
  void Reset() { pause_ms_ = until_ms_ = 0; }
  bool MayTry(int64_t now_ms) const { return now_ms >= until_ms_; }
  int64_t until_ms() const { return until_ms_; }

 private:
  const int64_t first_ms_;
  const int64_t most_ms_;
  int64_t pause_ms_ = 0;
  int64_t until_ms_ = 0;
};

}  // namespace moonpool::rdma
