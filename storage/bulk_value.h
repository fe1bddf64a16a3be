// A committed large value and the handles to it.
//
//   ExtentPool::Reserve() -> WriteHandle   nobody can see the bytes yet
//   WriteHandle::Publish() -> ValueRef     one committed version, immutable from here on
//
// A ValueRef pins: while one exists, the extent is not reused.  The entry in the keyspace holds
// one; leases, holds and replies on their way out hold others.  When the last one goes, the
// extent is recycled (generation first, then the free list): that is the whole quarantine.
//
// Threads: handles are moved between threads freely; one handle is used by one thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

#include "storage/entry.h"
#include "storage/eviction_policy.h"
#include "storage/region.h"

namespace moonpool::storage {

class ExtentPool;
class ValueRef;

// Of a server's life; whose clients write to extents themselves.
using SessionId = uint64_t;
inline constexpr SessionId kNoSession = 0;

struct Extent {
  Region* region = nullptr;
  uint64_t offset = 0;      // bytes from the start of the region
  uint64_t length = 0;      // bytes of the value; the extent is this rounded up to 4 KiB
  uint32_t slot = 0;        // generation slot
  uint64_t generation = 0;  // what the slot holds while this extent lives

  // For the processor.  REQUIRES: in host memory.
  char* data() const { return region->data() + offset; }
  // For copies, wherever it is.
  char* address() const { return region->address() + offset; }
};

class BulkValue : public PolicyItem {
 public:
  const Extent& extent() const { return extent_; }
  uint64_t length() const { return extent_.length; }
  // REQUIRES: in host memory.
  const char* data() const { return extent_.data(); }
  // Null: in host memory.
  DeviceMemory* device() const { return extent_.region->device(); }
  size_t device_number() const { return extent_.region->device_number(); }
  bool OnOneOf(DeviceSet devices) const {
    return device() != nullptr && (devices >> device_number() & 1) != 0;
  }
  // On a device, and in a region that clients' NICs read.
  bool OnDeviceForNics() const { return device() != nullptr && extent_.region->exported(); }
  protocol::Tier tier() const { return extent_.region->tier(); }
  std::optional<uint32_t> crc() const { return crc_; }
  // Hash of the key whose entry refers to this value; changes on RENAME.
  uint64_t owner_hash() const { return owner_hash_.load(std::memory_order_relaxed); }
  void set_owner_hash(uint64_t hash) { owner_hash_.store(hash, std::memory_order_relaxed); }
  // The partition of that key: the slot of Partitions that it counts in, and of the policy it is linked
  // in.  Once a key refers to the value it is changed through BulkPolicy::Assign(), with the stripe of
  // its owner locked; who holds neither that nor the policy's lock reads what was true a moment ago.
  uint8_t partition() const { return partition_.load(std::memory_order_relaxed); }
  void set_partition(uint8_t slot) { partition_.store(slot, std::memory_order_relaxed); }
  // Where the same bytes are on the SSD.  Under the lock of the owner's stripe.
  const SsdPlace& place() const { return place_; }
  void set_place(const SsdPlace& place) { place_ = place; }
  // On its way to the SSD; false when it was already.
  bool BeginDemotion() { return !demoting_.exchange(true, std::memory_order_relaxed); }
  void EndDemotion() { demoting_.store(false, std::memory_order_relaxed); }
  // How the value came from the SSD, until it is read for the first time.
  enum class Arrival : uint8_t {
    kNone,
    kCold,   // for one reader: that read is no reason to keep it
    kAhead,  // before anybody asked
  };
  Arrival arrival() const { return arrival_.load(std::memory_order_relaxed); }
  void set_arrival(Arrival arrival) { arrival_.store(arrival, std::memory_order_relaxed); }
  Arrival TakeArrival() {
    if (arrival_.load(std::memory_order_relaxed) == Arrival::kNone) return Arrival::kNone;
    return arrival_.exchange(Arrival::kNone, std::memory_order_relaxed);
  }
  // In CXL memory: how often it was read there.  Under BulkPolicy's lock.
  uint8_t cxl_reads = 0;
  // More than the entry's own and the caller's: evicting the value would free nothing yet.
  uint32_t references() const { return references_.load(std::memory_order_relaxed); }

 private:
  friend class ExtentPool;
  friend class ValueRef;
  BulkValue() = default;

  std::atomic<uint32_t> references_{1};
  ExtentPool* pool_ = nullptr;
  Extent extent_;
  std::optional<uint32_t> crc_;
  std::atomic<uint64_t> owner_hash_{0};
  SsdPlace place_;
  std::atomic<bool> demoting_{false};
  std::atomic<Arrival> arrival_{Arrival::kNone};
  std::atomic<uint8_t> partition_{0};
  BulkValue* next_alias_ = nullptr;  // further values showing the same extent (COPY)
};

class ValueRef {
 public:
  ValueRef() = default;
  // Takes over one reference.
  static ValueRef Adopt(BulkValue* value) { return ValueRef(value); }
  // A further reference.  REQUIRES: somebody else's reference keeps `value` alive meanwhile.
  static ValueRef Share(BulkValue* value) {
    value->references_.fetch_add(1, std::memory_order_relaxed);
    return ValueRef(value);
  }
  ValueRef(ValueRef&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  ValueRef& operator=(ValueRef&& other) noexcept {
    if (this != &other) {
      Reset();
      value_ = std::exchange(other.value_, nullptr);
    }
    return *this;
  }
  ~ValueRef() { Reset(); }

  ValueRef Share() const { return Share(value_); }
  // Gives the reference away without dropping it.
  BulkValue* Release() { return std::exchange(value_, nullptr); }
  void Reset() {
    if (value_ == nullptr) return;
    BulkValue* value = std::exchange(value_, nullptr);
    if (value->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) Destroy(value);
  }

  explicit operator bool() const { return value_ != nullptr; }
  BulkValue* get() const { return value_; }
  BulkValue* operator->() const { return value_; }
  BulkValue& operator*() const { return *value_; }

 private:
  explicit ValueRef(BulkValue* value) : value_(value) {}
  static void Destroy(BulkValue* value);

  BulkValue* value_ = nullptr;
};

// A reserved extent.  Dropping it gives the extent back: at once, but for one on a device that a client
// writes to.  That is free when its client said that it is done (WriterDone(), or
// ExtentPool::WriterGone() for all that it has).
class WriteHandle {
 public:
  WriteHandle() = default;
  WriteHandle(WriteHandle&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        extent_(other.extent_),
        late_writer_(other.late_writer_) {}
  WriteHandle& operator=(WriteHandle&& other) noexcept {
    if (this != &other) {
      Abort();
      pool_ = std::exchange(other.pool_, nullptr);
      extent_ = other.extent_;
      late_writer_ = other.late_writer_;
    }
    return *this;
  }
  ~WriteHandle() { Abort(); }

  explicit operator bool() const { return pool_ != nullptr; }
  const Extent& extent() const { return extent_; }
  // Where to write, for extents of shared regions in host memory.
  char* data() const { return extent_.data(); }
  uint64_t length() const { return extent_.length; }

  // The bytes are complete.
  ValueRef Publish(std::optional<uint32_t> crc = std::nullopt) &&;
  void Abort();
  // Its client writes there no more, or was never told of it.
  void WriterDone() { late_writer_ = kNoSession; }

 private:
  friend class ExtentPool;
  WriteHandle(ExtentPool* pool, const Extent& extent) : pool_(pool), extent_(extent) {}

  ExtentPool* pool_ = nullptr;
  Extent extent_;
  SessionId late_writer_ = kNoSession;  // whose client may write there when this is gone
};

}  // namespace moonpool::storage
