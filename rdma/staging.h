// Memory of an engine through which bytes go whose own memory is not registered.
#pragma once

#include <cstdint>

namespace moonpool::rdma {

// One slice uses one block.
inline constexpr uint64_t kStagingBlockBytes = 128 << 10;

}  // namespace moonpool::rdma
