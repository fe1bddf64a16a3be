// One table from CUDA's errors to Moonpool's, with what to do about each.
#pragma once

#include <string>
#include <string_view>

#include "protocol/status.h"

namespace moonpool::gpu {

// `code`: a cudaError_t or a CUresult, which have the same numbers (driver_types.h).
ErrorCode CodeOfCuda(int code);
// One sentence.
std::string_view CureOfCuda(int code);
// "<what>: cudaErrorIllegalAddress (700); <cure>".
tl::unexpected<Error> FailCuda(int code, std::string_view what);

}  // namespace moonpool::gpu
