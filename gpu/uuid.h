// Names a GPU (or a MIG instance of one) the same way in every process, whatever
// CUDA_VISIBLE_DEVICES says there: the UUID that the driver gives it (`nvidia-smi -L`).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moonpool::gpu {

struct Uuid {
  std::array<uint8_t, 16> bytes{};

  // "GPU-01234567-89ab-cdef-0123-456789abcdef".
  std::string ToString() const;
  // The same, with "MIG-" in front or nothing, in either case of letters.
  static std::optional<Uuid> Parse(std::string_view text);

  friend bool operator==(const Uuid&, const Uuid&) = default;
};

}  // namespace moonpool::gpu
