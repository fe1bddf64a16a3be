// What is behind a GpuTransfer, and the thread that commits writes.
//
// Threads: as each says.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "client/client_impl.h"
#include "client/gpu_work.h"
#include "client/moonpool/gpu.h"
#include "protocol/mutex.h"

namespace moonpool::client {

// Threads: any; mu is taken before ClientImpl's locks, look_mu last.
struct GpuTransferState {
  enum class Kind : uint8_t { kGet, kPut };
  GpuTransferState(Kind of_kind, void* stream, uint32_t layer_count)
      : kind(of_kind), layers(layer_count), work(nullptr, gpu::StreamRef{stream}, layer_count) {}

  const Kind kind;
  const uint32_t layers;
  const uint64_t forks = ForkCount();
  const Clock::time_point start = Clock::now();
  PutOptions options;

  // What the caller said.
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  std::vector<std::vector<Buffer>> into;
  std::vector<std::vector<ConstBuffer>> from;
  std::vector<std::vector<uint32_t>> layer_of;  // of each piece
  std::vector<char*> planes;
  std::vector<int64_t> entries;
  std::vector<gpu::PageCopy> pages;  // per key; empty: pieces
  std::vector<Target> targets;
  std::vector<Source> sources;

  // Of the layers; none when there is nothing to wait for.  Constant once the transfer has been
  // started.
  gpu::Device* device = nullptr;
  std::vector<const gpu::Event*> events;

  // Held by whoever finishes it, over the network too.
  Mutex mu;
  GpuWork work GUARDED_BY(mu);

  // What is known, for those who only look.
  Mutex look_mu;
  std::vector<KeyResult> results GUARDED_BY(look_mu);
  std::vector<bool> in_flight GUARDED_BY(look_mu);
  bool finished GUARDED_BY(look_mu) = false;

  // What was said of those who were not: by whoever waited, for itself.
  std::vector<KeyResult> so_far;
};

// Looks at writes until each is done, and finishes it.
class GpuFinisher {
 public:
  // `try_finish`: false while the device copies.
  GpuFinisher(std::function<bool(GpuTransferState&)> try_finish,
              std::function<void(GpuTransferState&)> give_up);
  ~GpuFinisher();
  // Finishes what is left until the deadline, and gives up what is left then.  The last call.
  void Stop(Clock::time_point deadline);
  void Add(std::shared_ptr<GpuTransferState> transfer);

 private:
  void Work();

  const std::function<bool(GpuTransferState&)> try_finish_;
  const std::function<void(GpuTransferState&)> give_up_;
  Mutex mu_;
  CondVar changed_;
  std::optional<Clock::time_point> stop_at_ GUARDED_BY(mu_);
  std::vector<std::shared_ptr<GpuTransferState>> added_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moonpool::client
