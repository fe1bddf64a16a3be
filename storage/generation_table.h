// The generation counters of one tenant: a memfd of 64-bit counters that every client of the
// tenant maps read-only.  A slot's counter keeps counting when the slot is reused, so an old
// descriptor can never match a new value.
//
// Threads: counter() any; the rest under the pool's lock.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "protocol/seqlock.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::storage {

class GenerationTable {
 public:
  // Address space for `slots` counters; memory comes as slots are first used.
  static Result<std::unique_ptr<GenerationTable>> Create(uint32_t slots);
  ~GenerationTable();
  GenerationTable(const GenerationTable&) = delete;
  GenerationTable& operator=(const GenerationTable&) = delete;

  // Empty when every slot is taken.
  std::optional<uint32_t> Take();
  void GiveBack(uint32_t slot) { free_.push_back(slot); }

  protocol::GenerationCounter& counter(uint32_t slot) const { return counters_[slot]; }
  int fd() const { return fd_.get(); }
  size_t bytes() const { return bytes_; }
  bool full() const { return free_.empty() && used_ == slots_; }
  uint32_t slots_used() const { return used_ - static_cast<uint32_t>(free_.size()); }

 private:
  GenerationTable() = default;

  UniqueFd fd_;
  size_t bytes_ = 0;
  protocol::GenerationCounter* counters_ = nullptr;
  uint32_t slots_ = 0;
  uint32_t used_ = 0;  // slots from here on were never taken
  std::vector<uint32_t> free_;
};

}  // namespace moonpool::storage
