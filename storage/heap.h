// The heap of everything that is not a region: jemalloc, asked for its size classes so that an
// entry can be overwritten in place exactly when it would get the same block again.
// Under a sanitizer the plain allocator is used, so that the sanitizer sees every block.
#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOONPOOL_PLAIN_HEAP 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOONPOOL_PLAIN_HEAP 1
#endif
#endif

#ifndef MOONPOOL_PLAIN_HEAP
#include <jemalloc/jemalloc.h>
#endif

namespace moonpool::storage {

#ifdef MOONPOOL_PLAIN_HEAP
inline size_t HeapBlockBytes(size_t bytes) { return (bytes + 15) & ~size_t{15}; }
inline void* HeapAllocate(size_t bytes) { return std::malloc(HeapBlockBytes(bytes)); }
inline void* HeapAllocateAligned(size_t bytes) { return std::aligned_alloc(64, bytes); }
inline void HeapFree(void* block, size_t) { std::free(block); }
#else
// The bytes a block for `bytes` really takes.
inline size_t HeapBlockBytes(size_t bytes) { return nallocx(bytes, 0); }
inline void* HeapAllocate(size_t bytes) { return mallocx(bytes, 0); }
// 64-byte aligned; `bytes` is a multiple of 64.
inline void* HeapAllocateAligned(size_t bytes) { return mallocx(bytes, MALLOCX_ALIGN(64)); }
// `bytes` as it was asked for.
inline void HeapFree(void* block, size_t bytes) { sdallocx(block, bytes, 0); }
#endif

struct HeapStats {
  size_t allocated_bytes = 0;  // handed out
  size_t resident_bytes = 0;   // in physical memory, metadata included
  size_t retained_bytes = 0;   // address space kept for later
};
// Zeroes under a sanitizer.  Costs some microseconds; any thread.
HeapStats ReadHeapStats();

// From now on what the calling thread allocates is in huge pages, where the kernel makes them, and
// stays with the process: for threads whose large buffers a disk fills or empties.  A megabyte in
// one piece is twice as fast there as one in 256, each with an entry in the device's queue.
void UseHugePages();

}  // namespace moonpool::storage
