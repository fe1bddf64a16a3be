#pragma once

#include <cstdint>

namespace moonpool::client {

// How often this process's ancestors have forked since the library was first used: state made
// under a lower count belongs to a parent, and its mappings do not exist here.
uint64_t ForkCount();

}  // namespace moonpool::client
