#include "storage/heap.h"

#include <cstdint>

#ifndef MOONPOOL_PLAIN_HEAP
#include <sys/mman.h>

#include <algorithm>
#endif

namespace moonpool::storage {

#ifdef MOONPOOL_PLAIN_HEAP

HeapStats ReadHeapStats() { return {}; }
void UseHugePages() {}

#else

namespace {

size_t ReadStat(const char* name) {
  size_t value = 0;
  size_t size = sizeof(value);
  return mallctl(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

constexpr size_t kHugePage = 2 << 20;

void* MapHugePages(extent_hooks_t*, void* wanted, size_t bytes, size_t alignment, bool* zero,
                   bool* commit, unsigned) {
  if (wanted != nullptr) return nullptr;  // no particular address
  alignment = std::max(alignment, kHugePage);
  // With the rest of the last huge page, or the end would lie in small ones.
  bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* const hole = mmap(nullptr, bytes + alignment, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<uintptr_t>(hole);
  const uintptr_t aligned = (start + alignment - 1) / alignment * alignment;
  if (aligned > start) munmap(hole, aligned - start);
  munmap(reinterpret_cast<void*>(aligned + bytes), start + alignment - aligned);
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
  *zero = *commit = true;
  return reinterpret_cast<void*>(aligned);
}

// The arena of huge pages, made once; 0, which every thread may use, when it cannot be.
unsigned HugePageArena() {
  static const unsigned arena = [] {
    extent_hooks_t* usual = nullptr;
    size_t size = sizeof(usual);
    if (mallctl("arena.0.extent_hooks", &usual, &size, nullptr, 0) != 0) return 0u;
    static extent_hooks_t hooks = *usual;
    hooks.alloc = MapHugePages;
    extent_hooks_t* ours = &hooks;
    unsigned made = 0;
    size = sizeof(made);
    if (mallctl("arenas.create", &made, &size, &ours, sizeof(ours)) != 0) return 0u;
    // Given back piece by piece they would come again as small ones.
    size_t name[3], words = 3;
    ssize_t never = -1;
    if (mallctlnametomib("arena.0.dirty_decay_ms", name, &words) == 0) {
      name[1] = made;
      mallctlbymib(name, words, nullptr, nullptr, &never, sizeof(never));
    }
    return made;
  }();
  return arena;
}

}  // namespace

void UseHugePages() {
  unsigned arena = HugePageArena();
  if (arena != 0) mallctl("thread.arena", nullptr, nullptr, &arena, sizeof(arena));
}

HeapStats ReadHeapStats() {
  uint64_t epoch = 1;
  size_t size = sizeof(epoch);
  mallctl("epoch", &epoch, &size, &epoch, sizeof(epoch));  // refreshes the cached numbers
  return {ReadStat("stats.allocated"), ReadStat("stats.resident"), ReadStat("stats.retained")};
}

#endif

}  // namespace moonpool::storage
