#include "client/pace.h"

namespace moonpool::client {

namespace {

constexpr double kNewest = 0.25;  // weight of the newest of rates
constexpr double kMuchSlower = 0.25;

Transport Other(Transport transport) {
  return transport == Transport::kRdma ? Transport::kTcp : Transport::kRdma;
}

}  // namespace

size_t Pace::ClassOf(uint64_t bytes) {
  return bytes < (256u << 10) ? 0 : bytes < (4u << 20) ? 1 : 2;
}

Transport Pace::Choose(uint64_t bytes) {
  MutexLock lock(mu_);
  if (bytes == 0) return classes_[last_].preferred;
  last_ = ClassOf(bytes);
  Class& of = classes_[last_];
  const Transport other = Other(of.preferred);
  const double rate = of.rate(other);
  const bool slow = rate > 0 && rate < kMuchSlower * of.rate(of.preferred);
  if (++of.since_try < (slow ? kTrySlowEvery : kTryEvery)) return of.preferred;
  of.since_try = 0;
  return other;
}

void Pace::Took(Transport transport, uint64_t bytes, uint64_t moved,
                std::chrono::nanoseconds time) {
  if (bytes == 0 || moved == 0 || time.count() <= 0) return;
  MutexLock lock(mu_);
  Class& of = classes_[ClassOf(bytes)];
  double& rate = of.rate(transport);
  const double newest = static_cast<double>(moved) / static_cast<double>(time.count());
  rate = rate == 0 ? newest : (1 - kNewest) * rate + kNewest * newest;
  if (transport == of.preferred) return;
  if (newest <= kFaster * of.rate(of.preferred)) {
    of.faster = 0;
    return;
  }
  // Soon again: the way that is in use may be about to fail.
  of.since_try = kTryEvery * 3 / 4;
  if (++of.faster < kInARow) return;
  of.preferred = transport;
  of.faster = 0;
  of.since_try = 0;
}

Transport Pace::preferred() const {
  MutexLock lock(mu_);
  return classes_[last_].preferred;
}

}  // namespace moonpool::client
