// How copies are timed: many under way at once, or one call after the other.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <functional>

namespace moonpool::bench {

// GB/s of `bytes` per round, over rounds that follow each other without a wait, and one wait at the
// end of so many that it costs next to nothing; measured for about `seconds`.  `round` gets a
// number that rises, so that it can use other memory each time.
double RateOfRounds(uint64_t bytes, double seconds,
                    const std::function<void(uint64_t round)>& round,
                    const std::function<void()>& wait);
// The median time of one of so many calls, in microseconds.
double MedianMicroseconds(int calls, const std::function<void(uint64_t round)>& call);

}  // namespace moonpool::bench
