// Copies between the pool and callers' buffers, with the help of a few threads when there is much
// to copy: one core alone cannot fill the memory's bandwidth.  Where the cores are busy with other
// work helpers are slower than none, so both ways are measured and the faster one is taken.
//
// Bytes that a writer may change meanwhile are copied as protocol::RacyCopy() does; when Copy()
// returns, every load has happened before whatever the caller loads next, generations included.
// Threads: any.  One large copy has the helpers; others that come meanwhile copy alone.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "protocol/mutex.h"

namespace moonpool::client {

class Copier {
 public:
  struct Piece {
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
  };

  // `threads` of them work on a large copy, the caller's among them.
  explicit Copier(int threads) : helpers_wanted_(threads - 1) {}
  ~Copier();
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  // `of_bytes`: all that is copied with them, when they are a part of it.
  void Copy(std::span<const Piece> pieces, uint64_t of_bytes = 0);

 private:
  // One large copy, on its caller's stack.
  struct Job {
    std::vector<Piece> chunks;
    bool streamed = false;  // past the caches
    std::atomic<size_t> next{0};
    std::atomic<int> helpers{0};  // that may still touch it
    void Work();
  };
  // How fast copies of about one size were lately, in bytes per microsecond; 0: not known.
  struct Rates {
    std::atomic<uint32_t> alone{0};
    std::atomic<uint32_t> helped{0};
    std::atomic<uint32_t> copies{0};
  };
  static constexpr size_t kSizeClasses = 5;  // 1 MiB, 4 MiB, .. 256 MiB and more

  bool WantsHelp(Rates& rates) const;
  // False: the helpers are busy with another copy.
  bool CopyWithHelp(std::span<const Piece> pieces, bool streamed);
  void Help();

  const int helpers_wanted_;
  Rates rates_[kSizeClasses];
  Mutex mu_;
  CondVar job_added_;
  Job* job_ GUARDED_BY(mu_) = nullptr;
  uint64_t job_number_ GUARDED_BY(mu_) = 0;
  bool stop_ GUARDED_BY(mu_) = false;
  std::vector<std::thread> helpers_ GUARDED_BY(mu_);  // started when first needed
};

}  // namespace moonpool::client
