#include "storage/hash.h"

#include <random>

namespace moonpool::storage {

namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace

const uint64_t kHashSeed = DrawSeed();

}  // namespace moonpool::storage
