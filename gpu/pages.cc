#include "gpu/pages.h"

#include <limits>
#include <string>

namespace moonpool::gpu {

namespace {

int64_t IndexAt(const PageTable& table, uint32_t page) {
  if (table.kind == PageTable::Kind::kIndex32) {
    return static_cast<const int32_t*>(table.entries)[page];
  }
  return static_cast<const int64_t*>(table.entries)[page];
}

Status ValidateSide(const Pages& pages, const PageCopy& copy, bool table_on_host,
                    const std::string& side) {
  const auto wrong = [&](const std::string& what) -> Status {
    return Fail(ErrorCode::kInvalidArgument, side + " pages: " + what);
  };
  using Kind = PageTable::Kind;
  const bool pointers = pages.table.kind == Kind::kPointers;
  if (!pages.planes.empty() && pages.planes.size() != copy.plane_count) {
    return wrong("there are " + std::to_string(pages.planes.size()) + " plane addresses for " +
                 std::to_string(copy.plane_count) + " planes");
  }
  if (pointers && !pages.planes.empty()) {
    return wrong("a table of pointers takes no plane addresses; give plane_stride");
  }
  if (!pointers && pages.planes.empty() && pages.base == nullptr) {
    return wrong("neither a base nor plane addresses are given");
  }
  for (const char* plane : pages.planes) {
    if (plane == nullptr) return wrong("a plane address is null");
  }
  if (pages.planes.empty() && copy.plane_count > 1 && pages.plane_stride < copy.piece_bytes) {
    return wrong("plane_stride is smaller than piece_bytes: pieces overlap");
  }
  if (!pointers && copy.page_count > 1 && pages.page_stride < copy.piece_bytes) {
    return wrong("page_stride is smaller than piece_bytes: pieces overlap");
  }
  if (pages.table.kind == Kind::kNone) return {};
  if (pages.table.entries == nullptr) return wrong("the page table is null");
  if (!table_on_host) return {};
  for (uint32_t k = 0; k < copy.page_count; ++k) {
    if (pointers) {
      if (static_cast<char* const*>(pages.table.entries)[k] == nullptr) {
        return wrong("pointer " + std::to_string(k) + " of the table is null");
      }
      continue;
    }
    const int64_t index = IndexAt(pages.table, k);
    if (index < 0 || (pages.page_limit != 0 && static_cast<uint64_t>(index) >= pages.page_limit)) {
      return wrong("entry " + std::to_string(k) + " of the table is " + std::to_string(index) +
                   ", of " + std::to_string(pages.page_limit) + " pages");
    }
  }
  return {};
}

}  // namespace

Status Validate(const PageCopy& copy, bool from_table_on_host, bool to_table_on_host) {
  if (copy.page_count == 0 || copy.plane_count == 0 || copy.piece_bytes == 0) {
    return Fail(ErrorCode::kInvalidArgument,
                "page_count, plane_count and piece_bytes must not be zero");
  }
  if (copy.piece_bytes > std::numeric_limits<uint32_t>::max()) {
    return Fail(ErrorCode::kInvalidArgument, "a piece of a page must be smaller than 4 GiB");
  }
  if (Status status = ValidateSide(copy.from, copy, from_table_on_host, "source"); !status) {
    return status;
  }
  return ValidateSide(copy.to, copy, to_table_on_host, "destination");
}

char* PieceAddress(const Pages& pages, uint32_t page, uint32_t plane) {
  char* const start = pages.planes.empty() ? pages.base : pages.planes[plane];
  const uint64_t in_page = pages.planes.empty() ? plane * pages.plane_stride : 0;
  switch (pages.table.kind) {
    case PageTable::Kind::kPointers:
      return static_cast<char* const*>(pages.table.entries)[page] + in_page;
    case PageTable::Kind::kNone:
      return start + in_page + page * pages.page_stride;
    default:
      return start + in_page +
             static_cast<uint64_t>(IndexAt(pages.table, page)) * pages.page_stride;
  }
}

bool IsContiguous(const Pages& pages, const PageCopy& copy) {
  return pages.table.kind == PageTable::Kind::kNone && pages.planes.empty() &&
         (copy.plane_count == 1 || pages.plane_stride == copy.piece_bytes) &&
         (copy.page_count == 1 || pages.page_stride == copy.plane_count * copy.piece_bytes);
}

}  // namespace moonpool::gpu
