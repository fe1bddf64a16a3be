// One table from CUDA's errors to Moonpool's, with what to do about each.
#pragma once

#include <string>
#include <string_view>

#include "protocol/status.h"

namespace moonpool::gpu {

// `code`: a cudaError_t or a CUresult, which have the same numbers (driver_types.h).
ErrorCode CodeOfCuda(int code);
// Whether a driver runs programs that were built with that runtime library: kUnavailable for one of
// an earlier major version (CUDA Compatibility, "Minor Version Compatibility").  As CUDA counts:
// 12040 is 12.4.
Status DriverServes(int driver_version, int runtime_version);
// One sentence.
std::string_view CureOfCuda(int code);
// "<what>: cudaErrorIllegalAddress (700); <cure>".
tl::unexpected<Error> FailCuda(int code, std::string_view what);

}  // namespace moonpool::gpu
