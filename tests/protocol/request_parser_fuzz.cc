// libFuzzer target: arbitrary bytes, in arbitrary fragments, under various limits.
//
//     cmake -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DMOONPOOL_FUZZERS=ON
//     build/fuzz/tests/request_parser_fuzz -max_total_time=60 new/ tests/protocol/corpus/
//
// The first bytes choose the limits and the sizes of the fragments, the rest is what the client
// sends.  Fragments, ParseWhole and bodies must not change what comes out.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tests/protocol/parser_driver.h"

using moonpool::protocol::ParseAtOnce;
using moonpool::protocol::Parsed;
using moonpool::protocol::ParserDriver;
using moonpool::protocol::ParserLimits;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 6;
  if (size < kHead) return 0;
  ParserLimits limits;
  // Small ones, so that short inputs reach them; 255 stands for the default.
  if (data[0] != 255) limits.max_bulk_bytes = data[0];
  if (data[1] != 255) limits.max_arguments = data[1];
  if (data[2] != 255) limits.max_inline_bytes = data[2];
  limits.authenticated = (data[3] & 1) != 0;
  ParserLimits with_bodies = limits;
  with_bodies.body_threshold = data[3] >> 1;
  const std::string_view input(reinterpret_cast<const char*>(data) + kHead, size - kHead);

  const Parsed expected = ParseAtOnce(input, limits);
  MOONPOOL_CHECK(ParseAtOnce(input, limits, true) == expected);
  MOONPOOL_CHECK(ParseAtOnce(input, with_bodies) == expected);
  for (const ParserLimits& chosen : {limits, with_bodies}) {
    ParserDriver driver(chosen, true);
    size_t step = data[4];
    for (size_t i = 0; i < input.size();) {
      const size_t length = 1 + step % 32;
      driver.Feed(input.substr(i, length));
      i += length;
      step = step * 5 + data[5];
    }
    MOONPOOL_CHECK(driver.parsed() == expected);
  }
  return 0;
}
