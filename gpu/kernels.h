// The kernels, behind functions of plain C++.  Each call puts one launch into the stream, in the
// context that is current.
//
// Threads: any.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace moonpool::gpu::kernels {

// What one warp moves at a time: 32 lanes, eight loads of 16 bytes in flight each.
inline constexpr uint32_t kUnitBytes = 4096;
// How many blocks a multiprocessor runs at once.
inline constexpr int kBlocksPerMultiprocessor = 4;
// What a block moves of a long copy.  Blocks begin in order, so that those under way are close to
// each other in memory: DRAM pages and the TLB gain more by it than new blocks cost.  64 KiB
// is the best length for pages (H200, of 32 KiB to 512 KiB); pieces have longer runs, as a block of
// theirs that is to be checked ends with a fence of system scope.
inline constexpr uint32_t kPageRunBytes = 64 << 10;
inline constexpr uint32_t kPieceRunBytes = 128 << 10;
// Tables up to this size travel with the launch itself; 4 KiB is what every driver takes.
inline constexpr size_t kInlineBytes = 3840;

// For copies within the device; `run_bytes` is one of the above.
int BlocksFor(uint64_t units, uint32_t run_bytes, int multiprocessors);

// A table in memory of the device, or in the launch: the first `inline_bytes` of `inlined`.
struct Table {
  const void* device = nullptr;
  size_t inline_bytes = 0;  // when `device` is null
  const void* inlined = nullptr;
};

struct PieceEntry {
  uint64_t to = 0;
  uint64_t from = 0;
  uint64_t bytes = 0;
  uint32_t first_unit = 0;  // units of all pieces before this one
  uint32_t vector = 0;      // access width in bytes: 16, 4 or 1, by the alignment of both addresses
};
// 16, 4 or 1.
uint32_t VectorFor(uint64_t addresses_and_strides);

// Checks that the last block of a launch does.
struct Behind {
  uint32_t count = 0;
  uint32_t offset = 0;  // of the CheckEntries in the table, bytes
  uint32_t* states = nullptr;
  // A word of device memory: 0 before and after; for one launch at a time.
  uint32_t* blocks_done = nullptr;
};
// Launches of at most `blocks` blocks.  Sources may be written at the same time by a process that
// has taken the extent over; the generation check behind the copy finds that out.  Loads are
// ld.relaxed.sys: by the letter of the PTX memory model (ISA, section 8) no data race.
cudaError_t LaunchPieces(const Table& entries, uint32_t count, uint32_t units, const Behind& behind,
                         int blocks, cudaStream_t stream);

// One side of a page copy.  Offsets are of the words in the table.
struct PageSide {
  enum Entries : uint32_t { kOrdinal, kIndex32, kIndex64, kPointer };
  uint64_t base = 0;
  uint64_t plane_stride = 0;
  uint64_t page_stride = 0;
  const void* entries = nullptr;  // null: at entries_offset of the table
  uint32_t entries_offset = 0;    // bytes
  uint32_t planes_offset = 0;     // bytes
  uint32_t has_planes = 0;
  uint32_t kind = kOrdinal;
};
struct PageJob {
  PageSide from;
  PageSide to;
  uint32_t pages = 0;
  uint32_t planes = 0;
  uint32_t piece_bytes = 0;
  uint32_t vector = 0;
};
cudaError_t LaunchPages(const PageJob& job, const Table& table, int blocks, cudaStream_t stream);

struct CheckEntry {
  uint64_t counter = 0;
  uint64_t generation = 0;
};
cudaError_t LaunchChecks(const Table& entries, uint32_t count, uint32_t* states,
                         cudaStream_t stream);

}  // namespace moonpool::gpu::kernels
