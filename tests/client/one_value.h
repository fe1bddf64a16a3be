// Batches of one, for tests: what became of the only key.
#pragma once

#include <span>
#include <string_view>

#include "client/moonpool/client.h"

namespace moonpool::client {

inline KeyResult PutOne(Client& to, std::string_view key, const void* data, size_t bytes,
                        const PutOptions& options = {}) {
  const ConstBuffer buffer{data, bytes};
  return to.BatchPutFrom(std::span(&key, 1), std::span(&buffer, 1), options)[0];
}
inline KeyResult GetOne(Client& from, std::string_view key, void* data, size_t bytes) {
  const Buffer buffer{data, bytes};
  return from.BatchGetInto(std::span(&key, 1), std::span(&buffer, 1))[0];
}

}  // namespace moonpool::client
