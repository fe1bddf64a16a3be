// The background thread that does every tenant's upkeep.
//
// Threads: the public functions, any.  Owns its thread; the tenants must outlive it.
#pragma once

#include <thread>
#include <vector>

#include "protocol/mutex.h"
#include "storage/tenant.h"

namespace moonpool::storage {

class Upkeep {
 public:
  explicit Upkeep(std::vector<Tenant*> tenants);
  // Finishes the slice at hand.
  ~Upkeep();

 private:
  void Run();

  const std::vector<Tenant*> tenants_;
  Mutex mu_;
  CondVar stop_changed_;
  bool stop_ GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace moonpool::storage
