// Made-up traces of kinds that serving systems see, for comparing eviction policies: what is good
// for one of them must not be bad for the others.  None is fitted to a real trace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/trace.h"

namespace moonpool::bench {

struct TraceFamily {
  std::string name;
  std::string what;  // one line
};

const std::vector<TraceFamily>& TraceFamilies();

// Throws Failure when there is no such family.
Trace GenerateFamily(const std::string& name, uint64_t requests, uint64_t seed);

}  // namespace moonpool::bench
