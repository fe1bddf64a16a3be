#include "storage/heap.h"

#include <cstdint>

namespace moonpool::storage {

#ifdef MOONPOOL_PLAIN_HEAP

HeapStats ReadHeapStats() { return {}; }

#else

namespace {

size_t ReadStat(const char* name) {
  size_t value = 0;
  size_t size = sizeof(value);
  return mallctl(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

}  // namespace

HeapStats ReadHeapStats() {
  uint64_t epoch = 1;
  size_t size = sizeof(epoch);
  mallctl("epoch", &epoch, &size, &epoch, sizeof(epoch));  // refreshes the cached numbers
  return {ReadStat("stats.allocated"), ReadStat("stats.resident"), ReadStat("stats.retained")};
}

#endif

}  // namespace moonpool::storage
