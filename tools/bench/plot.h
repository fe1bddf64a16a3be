// A picture of a comparison: one bar per row, how far it got on the way to what is asked for.
#pragma once

#include <string>
#include <vector>

#include "tools/bench/report.h"

namespace moonpool::bench {

// Draws with gnuplot, which must be in PATH, into a PNG file.  Throws Failure.
void PlotComparison(const std::string& path, const std::vector<Row>& rows,
                    const std::string& subtitle);

}  // namespace moonpool::bench
