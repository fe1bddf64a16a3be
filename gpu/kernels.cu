#include "gpu/kernels.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

namespace moonpool::gpu::kernels {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLoads = kUnitBytes / (32 * 16);

struct InlineTable {
  alignas(16) unsigned char bytes[kInlineBytes];
};

// --- one unit ------------------------------------------------------------------------------------

// What is moved leaves the second-level cache before other things.
__device__ __forceinline__ uint64_t EvictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ uint4 Load16(const char* from) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from), "l"(EvictFirst()));
  return v;
}

__device__ __forceinline__ void Store16(char* to, const uint4& v) {
  asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
               :
               : "l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(EvictFirst())
               : "memory");
}

__device__ __forceinline__ uint32_t Load4(const char* from) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}

__device__ __forceinline__ uint32_t Load1(const char* from) {
  uint32_t v;
  asm volatile("ld.volatile.global.u8 %0, [%1];" : "=r"(v) : "l"(from));
  return v;
}

// Moves at most kUnitBytes with the lanes of one warp.  All loads are on their way before the first
// store.
__device__ __forceinline__ void CopyUnit(char* to, const char* from, uint32_t bytes,
                                         uint32_t vector, uint32_t lane) {
  if (vector == 16) {
    const uint32_t words = bytes / 16;
    uint4 held[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint32_t word = lane + 32 * i;
      if (word < words) held[i] = Load16(from + 16 * word);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const uint32_t word = lane + 32 * i;
      if (word < words) Store16(to + 16 * word, held[i]);
    }
    const uint32_t rest = bytes % 16;
    if (lane < rest) {
      const uint32_t at = bytes - rest + lane;
      to[at] = static_cast<char>(Load1(from + at));
    }
    return;
  }
  if (vector == 4) {
    const uint32_t words = bytes / 4;
    for (uint32_t word = lane; word < words; word += 32) {
      *reinterpret_cast<uint32_t*>(to + 4 * word) = Load4(from + 4 * word);
    }
    const uint32_t rest = bytes % 4;
    if (lane < rest) {
      const uint32_t at = bytes - rest + lane;
      to[at] = static_cast<char>(Load1(from + at));
    }
    return;
  }
  for (uint32_t at = lane; at < bytes; at += 32) to[at] = static_cast<char>(Load1(from + at));
}

__device__ __forceinline__ const unsigned char* TableAt(const void* device,
                                                        const InlineTable& inlined) {
  return device != nullptr ? static_cast<const unsigned char*>(device) : inlined.bytes;
}

// --- pieces of any size --------------------------------------------------------------------------

// Every block has a run of units, every warp of it each kWarps-th of them: neighbours in memory are
// read at the same time, and a warp has to search its first piece only.
__device__ __forceinline__ void CopyRun(const PieceEntry* pieces, uint32_t count, uint32_t units) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t begin = static_cast<uint32_t>(uint64_t{units} * blockIdx.x / gridDim.x);
  const uint32_t end = static_cast<uint32_t>(uint64_t{units} * (blockIdx.x + 1) / gridDim.x);
  uint32_t unit = begin + threadIdx.x / 32;
  if (unit >= end) return;
  // The last piece that begins at or before the unit.
  uint32_t low = 0;
  uint32_t high = count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (pieces[middle].first_unit <= unit ? low : high) = middle;
  }
  for (; unit < end; unit += kWarps) {
    while (low + 1 < count && pieces[low + 1].first_unit <= unit) ++low;
    const PieceEntry piece = pieces[low];
    const uint64_t at = uint64_t{unit - piece.first_unit} * kUnitBytes;
    const uint64_t left = piece.bytes - at;
    CopyUnit(reinterpret_cast<char*>(piece.to + at), reinterpret_cast<const char*>(piece.from + at),
             left < kUnitBytes ? static_cast<uint32_t>(left) : kUnitBytes, piece.vector, lane);
  }
}

__device__ __forceinline__ void SystemFence() {
  asm volatile("fence.acq_rel.sys;" ::: "memory");
}

// What was loaded before, by whoever this thread is behind, was loaded before the counter: the
// fence keeps it so in the eyes of whoever writes the counters (protocol/seqlock.h).
__device__ __forceinline__ void Check(const CheckEntry& entry, uint32_t* to) {
  SystemFence();
  uint32_t state = 1;
  if (entry.counter != 0) {
    uint64_t now;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(now) : "l"(entry.counter) : "memory");
    if (now != entry.generation) state = 2;
  }
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(to), "r"(state) : "memory");
}

// Copies, and then the last block to finish checks.  Each thread's loads come before its fence, the
// fence before the barrier, the barrier before the block's count, and that before the last block's,
// which has acquired it when its threads check.
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    CopyPieces(const __grid_constant__ InlineTable inlined, const void* device, uint32_t count,
               uint32_t units, const Behind behind) {
  const unsigned char* table = TableAt(device, inlined);
  CopyRun(reinterpret_cast<const PieceEntry*>(table), count, units);
  if (behind.count == 0) return;
  __shared__ uint32_t blocks_before;
  SystemFence();
  __syncthreads();
  if (threadIdx.x == 0) {
    // Back to 0 with the last block.
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(behind.blocks_done), "r"(gridDim.x - 1)
                 : "memory");
    blocks_before = before;
  }
  __syncthreads();
  if (blocks_before != gridDim.x - 1) return;
  const auto* checks = reinterpret_cast<const CheckEntry*>(table + behind.offset);
  for (uint32_t i = threadIdx.x; i < behind.count; i += kThreads) {
    Check(checks[i], behind.states + i);
  }
}

// --- pages ---------------------------------------------------------------------------------------

__device__ __forceinline__ uint64_t PieceStart(const PageSide& side, const unsigned char* table,
                                               uint32_t page, uint32_t plane) {
  const void* entries = side.entries != nullptr ? side.entries : table + side.entries_offset;
  uint64_t start = side.has_planes != 0
                       ? reinterpret_cast<const uint64_t*>(table + side.planes_offset)[plane]
                       : side.base + plane * side.plane_stride;
  switch (side.kind) {
    case PageSide::kIndex32:
      return start +
             static_cast<uint64_t>(static_cast<const uint32_t*>(entries)[page]) * side.page_stride;
    case PageSide::kIndex64:
      return start + static_cast<const uint64_t*>(entries)[page] * side.page_stride;
    case PageSide::kPointer:
      return static_cast<const uint64_t*>(entries)[page] + plane * side.plane_stride;
    default:
      return start + page * side.page_stride;
  }
}

struct Place {
  char* to;
  const char* from;
  uint32_t bytes;
};

__device__ __forceinline__ Place PlaceOf(const PageJob& job, const unsigned char* table,
                                         uint32_t unit, uint32_t units_per_piece) {
  const uint32_t piece = unit / units_per_piece;
  const uint32_t at = (unit - piece * units_per_piece) * kUnitBytes;
  const uint32_t page = piece / job.planes;
  const uint32_t plane = piece - page * job.planes;
  const uint32_t left = job.piece_bytes - at;
  return {reinterpret_cast<char*>(PieceStart(job.to, table, page, plane) + at),
          reinterpret_cast<const char*>(PieceStart(job.from, table, page, plane) + at),
          left < kUnitBytes ? left : kUnitBytes};
}

// The same distribution of units as above.  Where the next unit is is looked up before this one is
// moved, so that tables are not waited for.
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    CopyPageUnits(const __grid_constant__ InlineTable inlined, const void* device,
                  const __grid_constant__ PageJob job, uint32_t units, uint32_t units_per_piece) {
  const unsigned char* table = TableAt(device, inlined);
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t begin = static_cast<uint32_t>(uint64_t{units} * blockIdx.x / gridDim.x);
  const uint32_t end = static_cast<uint32_t>(uint64_t{units} * (blockIdx.x + 1) / gridDim.x);
  uint32_t unit = begin + threadIdx.x / 32;
  if (unit >= end) return;
  Place place = PlaceOf(job, table, unit, units_per_piece);
  for (;;) {
    unit += kWarps;
    Place next = place;
    if (unit < end) next = PlaceOf(job, table, unit, units_per_piece);
    CopyUnit(place.to, place.from, place.bytes, job.vector, lane);
    if (unit >= end) return;
    place = next;
  }
}

// --- generations ---------------------------------------------------------------------------------

__global__ void CheckGenerations(const __grid_constant__ InlineTable inlined, const void* device,
                                 uint32_t count, uint32_t* states) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  // What earlier launches and copies of this stream read, they have read.
  Check(reinterpret_cast<const CheckEntry*>(TableAt(device, inlined))[i], states + i);
}

// --- launches ------------------------------------------------------------------------------------

InlineTable Inlined(const Table& table) {
  InlineTable inlined;
  if (table.device == nullptr && table.inline_bytes != 0) {
    std::memcpy(inlined.bytes, table.inlined, std::min(table.inline_bytes, kInlineBytes));
  }
  return inlined;
}

unsigned Blocks(uint32_t units, int blocks) {
  const unsigned useful = std::max((units + kWarps - 1) / kWarps, 1u);
  return std::min(static_cast<unsigned>(std::max(blocks, 1)), useful);
}

}  // namespace

uint32_t VectorFor(uint64_t addresses_and_strides) {
  if (addresses_and_strides % 16 == 0) return 16;
  return addresses_and_strides % 4 == 0 ? 4 : 1;
}

int BlocksFor(uint64_t units, uint32_t run_bytes, int multiprocessors) {
  const uint64_t runs = units / (run_bytes / kUnitBytes);
  const uint64_t least = static_cast<uint64_t>(kBlocksPerMultiprocessor) * multiprocessors;
  return static_cast<int>(std::min<uint64_t>(std::max(runs, least), 1u << 30));
}

cudaError_t LaunchPieces(const Table& entries, uint32_t count, uint32_t units, const Behind& behind,
                         int blocks, cudaStream_t stream) {
  InlineTable inlined = Inlined(entries);
  const void* device = entries.device;
  Behind copied = behind;
  void* arguments[] = {&inlined, &device, &count, &units, &copied};
  return cudaLaunchKernel(reinterpret_cast<const void*>(CopyPieces), dim3(Blocks(units, blocks)),
                          dim3(kThreads), arguments, 0, stream);
}

cudaError_t LaunchPages(const PageJob& job, const Table& table, int blocks, cudaStream_t stream) {
  uint32_t units_per_piece = (job.piece_bytes + kUnitBytes - 1) / kUnitBytes;
  const uint64_t all = uint64_t{units_per_piece} * job.pages * job.planes;
  if (all == 0 || all > 0x7fffffffu) return cudaErrorInvalidValue;
  auto units = static_cast<uint32_t>(all);
  InlineTable inlined = Inlined(table);
  const void* device = table.device;
  PageJob copied = job;
  void* arguments[] = {&inlined, &device, &copied, &units, &units_per_piece};
  return cudaLaunchKernel(reinterpret_cast<const void*>(CopyPageUnits), dim3(Blocks(units, blocks)),
                          dim3(kThreads), arguments, 0, stream);
}

cudaError_t LaunchChecks(const Table& entries, uint32_t count, uint32_t* states,
                         cudaStream_t stream) {
  InlineTable inlined = Inlined(entries);
  const void* device = entries.device;
  void* arguments[] = {&inlined, &device, &count, &states};
  constexpr unsigned kCheckThreads = 64;
  return cudaLaunchKernel(reinterpret_cast<const void*>(CheckGenerations),
                          dim3((count + kCheckThreads - 1) / kCheckThreads), dim3(kCheckThreads),
                          arguments, 0, stream);
}

}  // namespace moonpool::gpu::kernels
