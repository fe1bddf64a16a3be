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

// The same for much more than a cache holds: `to` is written past the caches, which saves reading
// what it was.  Half as fast again as RacyCopy() from memory, twice as fast from a shared cache
// (AMD Zen 3); the bytes are in no cache afterwards.
inline void RacyCopyStreaming(void* to, const void* from, size_t bytes) {
#if defined(__x86_64__)
  constexpr size_t kLine = 64;
  if (bytes >= 2 * kLine) {
    const size_t head = -reinterpret_cast<uintptr_t>(to) % kLine;
    RacyCopy(to, from, head);
    to = static_cast<char*>(to) + head;
    from = static_cast<const char*>(from) + head;
    size_t lines = (bytes - head) / kLine;
    bytes = (bytes - head) % kLine;
    // Loads are not passed by later loads; SFENCE: whoever is told of the copy finds it.
    asm volatile(
        "1:\n\t"
        "prefetchnta 1024(%[from])\n\t"
        "movdqu (%[from]), %%xmm0\n\t"
        "movdqu 16(%[from]), %%xmm1\n\t"
        "movdqu 32(%[from]), %%xmm2\n\t"
        "movdqu 48(%[from]), %%xmm3\n\t"
        "movntdq %%xmm0, (%[to])\n\t"
        "movntdq %%xmm1, 16(%[to])\n\t"
        "movntdq %%xmm2, 32(%[to])\n\t"
        "movntdq %%xmm3, 48(%[to])\n\t"
        "add $64, %[from]\n\t"
        "add $64, %[to]\n\t"
        "dec %[lines]\n\t"
        "jnz 1b\n\t"
        "sfence"
        : [to] "+r"(to), [from] "+r"(from), [lines] "+r"(lines)
        :
        : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3");
  }
#endif
  RacyCopy(to, from, bytes);
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
