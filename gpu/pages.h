// Where the pages of a paged KV cache are.
//
// A page is cut into `planes` pieces of the same size: one per layer and K or V, or only one.
// Piece p of the k-th page of a transfer lies at
//
//     planes[p]               + entry(k) * page_stride        or, without `planes`,
//     base + p * plane_stride + entry(k) * page_stride
//
// where entry(k) comes from the page table, or is k without one; a table of pointers takes the
// place of base + entry * page_stride.  What engines have:
//
//   vLLM, per layer [2, blocks, block bytes]: planes = K and V of every layer; page_stride = block
//     bytes
//   separate K and V per layer: the same
//   page first, [blocks, layers, 2, bytes]: one plane: the whole page; page_stride = page bytes
//   MLA latent, per layer [blocks, bytes]: planes = the layers
//   values of the pool, one key per page: table of pointers; plane_stride = piece bytes
//   one long value, page after page: base; page_stride = page bytes
#pragma once

#include <cstdint>
#include <span>

#include "protocol/status.h"

namespace moonpool::gpu {

struct PageTable {
  enum class Kind : uint8_t { kNone, kIndex32, kIndex64, kPointers };
  Kind kind = Kind::kNone;
  // int32_t, int64_t or char*, one per page; in host memory (read before the call returns) or in
  // memory of the device (read on the stream, not checked).  Pointers in memory of the device must
  // be multiples of 16: bytes are moved as if they were.
  const void* entries = nullptr;

  static PageTable Of(std::span<const int32_t> indexes) { return {Kind::kIndex32, indexes.data()}; }
  static PageTable Of(std::span<const int64_t> indexes) { return {Kind::kIndex64, indexes.data()}; }
  static PageTable Of(std::span<char* const> pages) { return {Kind::kPointers, pages.data()}; }
};

struct Pages {
  std::span<char* const> planes = {};  // in host memory; empty: base and plane_stride
  char* base = nullptr;
  uint64_t plane_stride = 0;
  uint64_t page_stride = 0;
  PageTable table = {};
  // Entries of an index table in host memory are checked to be below this; 0: they are not.
  uint64_t page_limit = 0;
};

// Copies page_count * plane_count pieces of piece_bytes.
struct PageCopy {
  Pages from;
  Pages to;
  uint32_t page_count = 0;
  uint32_t plane_count = 1;
  uint64_t piece_bytes = 0;

  uint64_t bytes() const { return uint64_t{page_count} * plane_count * piece_bytes; }
};

// What can be told without touching the pages.  `tables_in_host_memory`: each side's table may be
// read here.  kInvalidArgument says what is wrong with which side.
Status Validate(const PageCopy& copy, bool from_table_on_host, bool to_table_on_host);

// Where a piece is.  REQUIRES: a valid description with its table in memory that may be read here.
char* PieceAddress(const Pages& pages, uint32_t page, uint32_t plane);

// True when the side is one run of bytes, page after page and plane after plane.
bool IsContiguous(const Pages& pages, const PageCopy& copy);

}  // namespace moonpool::gpu
