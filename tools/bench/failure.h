// Why a run cannot go on.  Thrown inside moonpool-bench only; main() prints it and exits with 1.
#pragma once

#include <stdexcept>

namespace moonpool::bench {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace moonpool::bench
