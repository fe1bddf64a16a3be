// The partitions of a keyspace while it runs: which keys are whose, what each has, and which is
// furthest above its share.
//
// A partition is known by a small number, its *slot*, which its values carry
// (BulkValue::partition(), SsdPlace::partition).  Slot 0 is the default partition.  A partition
// keeps its slot as long as its name is defined; another gets one that neither this set nor the one
// before it uses, so that while values move over, stripe by stripe, no number means two things.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "protocol/descriptor.h"
#include "storage/partition_options.h"

namespace moonpool::storage {

// Which keys are in which partition.  Immutable, so any thread may use it while it holds it.
class PartitionSet {
 public:
  struct Member {
    uint8_t slot;
    PartitionOptions options;
  };
  // `before`: the set that this one is to replace; null: there is none.
  PartitionSet(std::vector<PartitionOptions> partitions, const PartitionSet* before);
  PartitionSet(const PartitionSet&) = delete;

  // The slot of the member with the longest prefix of `key`; 0: none matches.
  uint8_t Match(std::string_view key) const {
    for (const Prefix& prefix : prefixes_) {
      if (key.starts_with(prefix.text)) return prefix.slot;
    }
    return 0;
  }
  const std::vector<Member>& members() const { return members_; }  // as they were defined
  bool Uses(uint8_t slot) const;

 private:
  struct Prefix {
    std::string_view text;  // of a member
    uint8_t slot;
  };
  std::vector<Member> members_;
  std::vector<Prefix> prefixes_;  // the longest first
};

// What the slots stand for and count.
//
// Threads: any.  Open(), Close() and Configure(): the one that changes the set; Configure() with
// all stripes locked, so that what a thread reads under the lock of one stripe goes together.
// Counters are relaxed: a sum is exact when nothing moves.
class Partitions {
 public:
  static constexpr size_t kSlots = 1 + 2 * kMaxPartitions;

  explicit Partitions(MaxmemoryPolicy policy);
  Partitions(const Partitions&) = delete;

  // --- what is set
  // False: there is only the default partition, and nobody needs to ask for any other.
  bool any() const { return any_.load(std::memory_order_relaxed); }
  MaxmemoryPolicy policy(uint8_t slot) const { return Read(slots_[slot].policy); }
  Admission admission(uint8_t slot) const { return Read(slots_[slot].admission); }
  bool memory_only(uint8_t slot) const { return Read(slots_[slot].memory_only); }
  // Empty: the server's.
  std::optional<SsdCompression> compression(uint8_t slot) const;
  // Whether large values of some partition may be evicted.
  bool evicts() const;

  void SetPolicy(uint8_t slot, MaxmemoryPolicy policy) { Write(slots_[slot].policy, policy); }
  // A slot counts from 0 and takes part until it is closed.
  void Open(uint8_t slot, MaxmemoryPolicy policy);
  void Close(uint8_t slot) { Write(slots_[slot].used, false); }
  // What the members of the set say; `set` may be null.  `policy`: of those that say none.
  void Configure(const PartitionSet* set, MaxmemoryPolicy policy);

  // --- what they have
  struct Counts {
    uint64_t dram_bytes = 0;  // extents of large values that keys refer to
    uint64_t dram_keys = 0;
    uint64_t cxl_bytes = 0;  // the same in CXL memory
    uint64_t cxl_keys = 0;
    uint64_t gpu_bytes = 0;  // and on devices
    uint64_t gpu_keys = 0;
    uint64_t ssd_bytes =
        0;  // lengths of values on the SSD, those that are in memory too among them
    uint64_t ssd_keys = 0;
    uint64_t hits = 0;  // reads of values, small and large
    uint64_t misses = 0;
    uint64_t evictions = 0;  // large values that memory lost to make room, wherever they went
    uint64_t demotions = 0;  // values written to the SSD
    uint64_t drops = 0;      // large values lost altogether to make room
  };
  Counts counts(uint8_t slot) const;
  uint64_t keys_in(protocol::Tier tier) const;  // large values, of all
  void ResetStats();

  void AddMemory(protocol::Tier tier, uint8_t slot, int64_t bytes, int64_t keys) {
    Add(In(slots_[slot], tier).bytes, bytes);
    Add(In(slots_[slot], tier).keys, keys);
  }
  void AddSsd(uint8_t slot, int64_t bytes, int64_t keys) {
    Add(slots_[slot].ssd_bytes, bytes);
    Add(slots_[slot].ssd_keys, keys);
  }
  // FLUSHALL: nothing is on the SSD.  With all stripes locked.
  void ClearSsd();
  // Bytes in that tier that are on their way to a lower one, and will be free without another victim.
  void AddLeaving(protocol::Tier tier, uint8_t slot, int64_t bytes) {
    Add(In(slots_[slot], tier).leaving, bytes);
  }
  void CountRead(uint8_t slot, bool hit);
  void CountEviction(uint8_t slot) { Add(slots_[slot].evictions, 1); }
  void CountDemotion(uint8_t slot) { Add(slots_[slot].demotions, 1); }
  void CountDrop(uint8_t slot) { Add(slots_[slot].drops, 1); }

  // --- who gives
  // Slots in the order in which they are to be asked for a victim in that tier: furthest above its
  // share (bytes by share) first.  What is a partition's share of DRAM is its share of the others.
  // Those without a share of their own count with the default partition, which has what is left of
  // 1; among themselves they come in a random order, one with twice the bytes twice as often first.
  // Nothing is left: what the default partition has goes first.
  using Order = std::array<uint8_t, kSlots>;
  size_t VictimOrder(Order* order, protocol::Tier tier = protocol::Tier::kDram) const;
  // How far above its share each is on the SSD.  Zero for slots that have nothing there.
  using Pressures = std::array<double, kSlots>;
  void SsdPressures(Pressures* pressures) const;

 private:
  static constexpr double kNoShare = -1;
  // Readers of one partition on many loops do not fight over one counter.
  static constexpr size_t kReadShards = 8;
  struct alignas(16) Reads {
    std::atomic<uint64_t> hits{0};
    std::atomic<uint64_t> misses{0};
  };
  struct alignas(64) ReadShard {
    std::array<Reads, kSlots> slots;
  };
  struct InTier {
    std::atomic<int64_t> bytes{0}, keys{0}, leaving{0};
  };
  struct alignas(64) Slot {
    std::array<InTier, protocol::kTiers> memory;
    std::atomic<int64_t> ssd_bytes{0}, ssd_keys{0};
    std::atomic<uint64_t> evictions{0}, demotions{0}, drops{0};
    std::atomic<double> dram_share{0}, ssd_share{0};  // kNoShare: nothing; 0: none of its own
    std::atomic<MaxmemoryPolicy> policy{MaxmemoryPolicy::kNoEviction};
    std::atomic<Admission> admission{Admission::kSecondRead};
    std::atomic<SsdCompression> compression{SsdCompression::kNone};
    std::atomic<bool> has_compression{false};
    std::atomic<bool> memory_only{false};
    std::atomic<bool> used{false};
  };

  template <typename T>
  static T Read(const std::atomic<T>& value) {
    return value.load(std::memory_order_relaxed);
  }
  template <typename T>
  static void Write(std::atomic<T>& value, std::type_identity_t<T> to) {
    value.store(to, std::memory_order_relaxed);
  }
  template <typename T>
  static void Add(std::atomic<T>& value, std::type_identity_t<T> by) {
    value.fetch_add(by, std::memory_order_relaxed);
  }
  static InTier& In(Slot& slot, protocol::Tier tier) {
    return slot.memory[static_cast<size_t>(tier)];
  }
  static const InTier& In(const Slot& slot, protocol::Tier tier) {
    return slot.memory[static_cast<size_t>(tier)];
  }
  static uint64_t NotBelowZero(const std::atomic<int64_t>& value);
  void ConfigureSlot(uint8_t slot, const PartitionOptions& options, MaxmemoryPolicy policy);
  // Above every slot in use.
  size_t end() const { return end_.load(std::memory_order_relaxed); }
  // Bytes by share, of `share` and what `bytes` tells.
  template <typename Bytes>
  void FillPressures(std::atomic<double> Slot::*share, Bytes&& bytes, Pressures* pressures) const;

  std::atomic<bool> any_{false};
  std::atomic<size_t> end_{1};
  std::array<Slot, kSlots> slots_;
  std::array<ReadShard, kReadShards> reads_;
};

}  // namespace moonpool::storage
