#include "gpu/staging.h"

#include <utility>

namespace moonpool::gpu {

Status Staging::Step(const Leg& fill, const Leg& empty) {
  const size_t index = steps_++ % slots_.size();
  Slot& slot = slots_[index];
  if (slot.filled == nullptr) {
    Result<std::unique_ptr<Event>> filled = filler_.device->NewEvent();
    if (!filled) return tl::unexpected(std::move(filled.error()));
    Result<std::unique_ptr<Event>> emptied = emptier_.device->NewEvent();
    if (!emptied) return tl::unexpected(std::move(emptied.error()));
    slot = {std::move(*filled), std::move(*emptied)};
  } else if (Status status = filler_.device->WaitFor(filler_.stream, *slot.emptied); !status) {
    return status;
  }
  if (Status status = fill(chunks_[index]); !status) return status;
  if (Status status = filler_.device->Record(*slot.filled, filler_.stream); !status) return status;
  if (Status status = emptier_.device->WaitFor(emptier_.stream, *slot.filled); !status) {
    return status;
  }
  if (Status status = empty(chunks_[index]); !status) return status;
  return emptier_.device->Record(*slot.emptied, emptier_.stream);
}

Status Chain(const Worker& first, const Worker& second) {
  Result<std::unique_ptr<Event>> event = first.device->NewEvent();
  if (!event) return tl::unexpected(std::move(event.error()));
  if (Status status = first.device->Record(**event, first.stream); !status) return status;
  return second.device->WaitFor(second.stream, **event);
}

}  // namespace moonpool::gpu
