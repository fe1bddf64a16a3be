#include "storage/generation_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace moonpool::storage {

Result<std::unique_ptr<GenerationTable>> GenerationTable::Create(uint32_t slots) {
  std::unique_ptr<GenerationTable> table(new GenerationTable());
  constexpr size_t kPage = 4096;
  table->slots_ = slots;
  table->bytes_ = (slots * sizeof(protocol::GenerationCounter) + kPage - 1) & ~(kPage - 1);
  table->fd_.Reset(memfd_create("moonpool-generations", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!table->fd_) return FailErrno("memfd_create for the generation table");
  if (ftruncate(table->fd_.get(), static_cast<off_t>(table->bytes_)) != 0) {
    return FailErrno("sizing the generation table");
  }
  // A new memfd is zeroes, which are valid counters.
  void* data = mmap(nullptr, table->bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, table->fd_.get(), 0);
  if (data == MAP_FAILED) return FailErrno("mapping the generation table");
  table->counters_ = static_cast<protocol::GenerationCounter*>(data);
  if (fcntl(table->fd_.get(), F_ADD_SEALS,
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    return FailErrno("sealing the generation table");
  }
  return table;
}

GenerationTable::~GenerationTable() {
  if (counters_ != nullptr) munmap(counters_, bytes_);
}

std::optional<uint32_t> GenerationTable::Take() {
  if (!free_.empty()) {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  if (used_ == slots_) return std::nullopt;
  return used_++;
}

}  // namespace moonpool::storage
