// What the setting `partitions` says: named parts of the keyspace, by the beginning of keys.
//
//   chat prefix=chat: dram=0.5 ssd=0.3 policy=allkeys-lru; batch prefix=batch/ dram=0.1 ssd=no
//
// Definitions are separated by semicolons, their words by spaces:
//   NAME                   letters, digits, '-' and '_'; not "default", where all other keys are
//   prefix=TEXT            what its keys begin with; the longest prefix of a key decides
//   dram=SHARE             more than 0, at most 1; those of all partitions sum up to at most 1
//   ssd=SHARE|no           the same for the SSD; no: its values never go there
//   policy=POLICY          a maxmemory-policy; left out: the server's
//   admission=second-read|always|never   see Admission
//   compression=none|lz4|zstd            on the SSD; left out: ssd-compression
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/status.h"
#include "storage/maxmemory_policy.h"
#include "storage/ssd_compression.h"

namespace moonpool::storage {

// Enough for teams or models; the index of a partition has 8 bits, and a change may need as many
// again for those that come and go.
inline constexpr size_t kMaxPartitions = 64;
inline constexpr std::string_view kDefaultPartition = "default";

// What reading a value on the SSD does to memory.
enum class Admission : uint8_t {
  kSecondRead,  // it comes up cold, the next to go; to stay if it was read a while ago as well
  kAlways,      // it comes up to stay
  kNever,       // it comes up cold, and no read changes that
};
std::string_view NameOf(Admission admission);
std::string_view NameOf(SsdCompression compression);

struct PartitionOptions {
  std::string name;
  std::string prefix;
  double dram_share = 0;  // 0: none of its own, it counts with the default partition
  double ssd_share = 0;
  bool ssd = true;  // false: never there
  std::optional<MaxmemoryPolicy> policy;
  Admission admission = Admission::kSecondRead;
  std::optional<SsdCompression> compression;

  bool operator==(const PartitionOptions&) const = default;
};

// kInvalidArgument; the message says which definition, what is wrong and what would be right.
Result<std::vector<PartitionOptions>> ParsePartitions(std::string_view text);

}  // namespace moonpool::storage
