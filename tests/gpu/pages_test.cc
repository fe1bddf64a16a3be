#include "gpu/pages.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace moonpool::gpu {
namespace {

char* At(uintptr_t address) {
  return reinterpret_cast<char*>(address);
}

TEST(Pages, AddressesOfPieces) {
  const std::vector<int32_t> table = {5, 2};
  const std::vector<char*> planes = {At(0x1000), At(0x9000)};
  Pages by_plane;
  by_plane.planes = planes;
  by_plane.page_stride = 0x100;
  by_plane.table = PageTable::Of(table);
  EXPECT_EQ(PieceAddress(by_plane, 0, 0), At(0x1500));
  EXPECT_EQ(PieceAddress(by_plane, 1, 1), At(0x9200));

  Pages page_first;
  page_first.base = At(0x1000);
  page_first.plane_stride = 0x40;
  page_first.page_stride = 0x100;
  EXPECT_EQ(PieceAddress(page_first, 2, 3), At(0x12c0));

  const std::vector<char*> pointers = {At(0x5000), At(0x3000)};
  Pages by_pointer;
  by_pointer.table = PageTable::Of(std::span<char* const>(pointers));
  by_pointer.plane_stride = 0x10;
  EXPECT_EQ(PieceAddress(by_pointer, 1, 2), At(0x3020));
}

TEST(Pages, ContiguousRuns) {
  PageCopy copy;
  copy.page_count = 4;
  copy.plane_count = 3;
  copy.piece_bytes = 0x10;
  Pages run;
  run.base = At(0x1000);
  run.plane_stride = 0x10;
  run.page_stride = 0x30;
  EXPECT_TRUE(IsContiguous(run, copy));
  Pages with_gaps = run;
  with_gaps.page_stride = 0x40;
  EXPECT_FALSE(IsContiguous(with_gaps, copy));
  copy.page_count = 1;
  EXPECT_TRUE(IsContiguous(with_gaps, copy));
}

TEST(Pages, WhatIsWrongIsSaid) {
  const std::vector<int64_t> table = {0, -1};
  const std::vector<char*> planes = {At(0x1000)};
  PageCopy copy;
  copy.page_count = 2;
  copy.piece_bytes = 16;
  copy.from.base = At(0x1000);
  copy.from.page_stride = 16;
  copy.to = copy.from;
  EXPECT_TRUE(Validate(copy, true, true));
  const auto said = [&](const PageCopy& wrong) {
    const Status status = Validate(wrong, true, true);
    return status ? std::string("nothing") : status.error().message;
  };
  PageCopy wrong = copy;
  wrong.to.table = PageTable::Of(table);
  EXPECT_EQ(said(wrong), "destination pages: entry 1 of the table is -1, of 0 pages");
  EXPECT_TRUE(Validate(wrong, true, false));
  wrong = copy;
  wrong.from.base = nullptr;
  EXPECT_EQ(said(wrong), "source pages: neither a base nor plane addresses are given");
  wrong = copy;
  wrong.plane_count = 2;
  wrong.from.planes = planes;
  EXPECT_EQ(said(wrong), "source pages: there are 1 plane addresses for 2 planes");
  wrong = copy;
  wrong.plane_count = 2;
  EXPECT_EQ(said(wrong), "source pages: plane_stride is smaller than piece_bytes: pieces overlap");
  wrong = copy;
  wrong.piece_bytes = 1ull << 32;
  EXPECT_EQ(said(wrong), "a piece of a page must be smaller than 4 GiB");
}

}  // namespace
}  // namespace moonpool::gpu
