#include "gpu/place_cache.h"

#include <string>

namespace moonpool::gpu {

namespace {

// Beyond that many ranges the driver is asked again: searching would cost as much.
constexpr size_t kMostRanges = 64;

bool Holds(const Place& place, uintptr_t begin, uint64_t bytes) {
  return begin >= place.begin && begin < place.end && bytes <= place.end - begin;
}

}  // namespace

Result<Place> PlaceCache::Find(const void* address, uint64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (last_ < known_.size() && Holds(known_[last_], begin, bytes)) return known_[last_];
  for (size_t i = 0; i < known_.size(); ++i) {
    if (!Holds(known_[i], begin, bytes)) continue;
    last_ = i;
    return known_[i];
  }
  Result<Place> place = device_->WhereIs(address);
  if (!place) return place;
  if (place->end <= place->begin) {
    place->begin = begin;
    place->end = begin + bytes;
  } else if (!Holds(*place, begin, bytes)) {
    // The driver says where the range ends that the address is in; past it may be anything.
    const Result<Place> last = device_->WhereIs(static_cast<const char*>(address) + bytes - 1);
    if (!last) return last;
    if (last->kind != place->kind || last->device != place->device ||
        last->device_offset != place->device_offset) {
      return Fail(ErrorCode::kInvalidArgument,
                  std::to_string(bytes) + " bytes to copy reach beyond the memory they begin in");
    }
    return place;
  }
  if (known_.size() == kMostRanges) known_.clear();
  last_ = known_.size();
  known_.push_back(*place);
  return place;
}

}  // namespace moonpool::gpu
