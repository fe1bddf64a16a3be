// How a reader proves that bytes it copied out of shared memory are one committed version.
//
// Every extent has a 64-bit generation counter that the server increments *before* the extent
// may be written again:
//
//   server, recycling:   BumpGeneration(counter)   then free list, next writer, next DMA
//   client, reading:     g == LoadGeneration(counter)        (the descriptor's generation)
//                        RacyCopy(out, extent, n)            (may race with a writer)
//                        GenerationUnchanged(counter, g)     false: throw the bytes away
//
// Algorithm: seqlock; H.-J. Boehm, "Can Seqlocks Get Along With Programming Language Memory
// Models?", MSPC 2012.  The full fence on the writer's side also orders non-temporal stores.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace moonpool::protocol {

using GenerationCounter = std::atomic<uint64_t>;
static_assert(GenerationCounter::is_always_lock_free && sizeof(GenerationCounter) == 8);

// Copies bytes that another process may be writing at the same time.  The result is garbage in
// that case, but the race is not undefined behaviour: the copy is inline assembly (x86-64) or
// relaxed atomic words.  `to` is private to the caller.
inline void RacyCopy(void* to, const void* from, size_t bytes) {
#if defined(__x86_64__)
  // Fast-string copies beat vector loops from about 1 KiB up on every CPU with ERMS, and this
  // form is never turned into a call of memcpy.  LFENCE: the manuals promise nothing about the
  // order of one string operation's own loads and the load of the generation behind them.
  asm volatile("rep movsb\n\tlfence" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
#else
  auto* out = static_cast<char*>(to);
  auto* in = static_cast<const char*>(from);
  for (; bytes > 0 && reinterpret_cast<uintptr_t>(in) % 8 != 0; --bytes) {
    *out++ = __atomic_load_n(in++, __ATOMIC_RELAXED);
  }
  for (; bytes >= 8; bytes -= 8, in += 8, out += 8) {
    const uint64_t word =
        __atomic_load_n(reinterpret_cast<const uint64_t*>(in), __ATOMIC_RELAXED);
    std::memcpy(out, &word, 8);
  }
  for (; bytes > 0; --bytes) *out++ = __atomic_load_n(in++, __ATOMIC_RELAXED);
#endif
}

inline uint64_t LoadGeneration(const GenerationCounter& counter) {
  return counter.load(std::memory_order_acquire);
}

// True when the bytes copied since LoadGeneration() returned `generation` are of that version.
inline bool GenerationUnchanged(const GenerationCounter& counter, uint64_t generation) {
  std::atomic_thread_fence(std::memory_order_acquire);
  return counter.load(std::memory_order_relaxed) == generation;
}

// Server only, before an extent goes back to the free list.
inline void BumpGeneration(GenerationCounter& counter) {
  counter.fetch_add(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

}  // namespace moonpool::protocol
