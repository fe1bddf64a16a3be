// Batches of stamped values, read side by side into one block, each of whose keys must have a miss
// or one whole version of its own, no older than the last that was acknowledged before.
//
// Threads: any number of readers.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "client/moonpool/client.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {

struct BatchCheck {
  std::atomic<uint64_t> good{0};
  std::atomic<uint64_t> bad{0};

  // name(key) and acknowledged(key); every value has `most` bytes of `block` to itself.
  template <typename Name, typename Acknowledged>
  void Read(Client& client, const std::vector<size_t>& keys, Name&& name,
            Acknowledged&& acknowledged, char* block, size_t most) {
    std::vector<std::string> names;
    std::vector<uint64_t> least;
    std::vector<Buffer> buffers;
    for (size_t i = 0; i < keys.size(); ++i) {
      names.push_back(name(keys[i]));
      least.push_back(acknowledged(keys[i]));
      buffers.push_back({block + i * most, most});
    }
    const std::vector<std::string_view> views(names.begin(), names.end());
    const auto results = client.BatchGetInto(views, buffers);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (results[i].code == Code::kMiss) continue;
      EXPECT_TRUE(results[i].ok()) << results[i].message;
      Stamp stamp;
      std::string wrong = CheckStamped(buffers[i].data, results[i].bytes, keys[i], &stamp);
      if (wrong.empty() && stamp.version < least[i]) wrong = "an older version";
      if (wrong.empty()) {
        ++good;
      } else if (++bad <= 5) {
        ADD_FAILURE() << "key " << keys[i] << ": " << wrong;
      }
    }
  }
};

}  // namespace moonpool::client
