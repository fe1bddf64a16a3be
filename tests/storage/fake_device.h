// A device for tests of storage: its memory is where the processor must not touch it (that ends the
// test), and only Copy() and its dma-buf (a memory file) know the way there.  It can be told to
// stop, to have no memory, to fail and to be lost.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "protocol/mutex.h"
#include "storage/device_memory.h"

namespace moonpool::storage {

class FakeDevice : public DeviceMemory {
 public:
  explicit FakeDevice(uint8_t number, uint64_t granularity = 2 << 20)
      : name_("GPU-00000000-0000-0000-0000-0000000000" + std::string(1, static_cast<char>('a' + number)) +
              "0"),
        granularity_(granularity) {
    uuid_[15] = static_cast<uint8_t>(0xa0 + (number << 4));
  }
  ~FakeDevice() override {
    MutexLock lock(mu_);
    EXPECT_TRUE(ranges_.empty()) << "memory of the device leaks";
  }

  const Uuid& uuid() const override { return uuid_; }
  const std::string& name() const override { return name_; }

  Result<std::unique_ptr<Range>> Allocate(uint64_t bytes) override {
    MutexLock lock(mu_);
    ++allocations_;
    while (allocations_held_ && !lost_) changed_.Wait(mu_);
    if (lost_) return Lost();
    bytes = (bytes + granularity_ - 1) / granularity_ * granularity_;
    if (allocated_ + bytes > capacity_) return Fail(ErrorCode::kOutOfMemory, "no memory");
    allocated_ += bytes;
    return std::make_unique<FakeRange>(this, bytes);
  }

  Status Copy(char* to, const char* from, uint64_t bytes) override {
    {
      MutexLock lock(mu_);
      ++copies_;
      while (stopped_ && !lost_) changed_.Wait(mu_);
      if (lost_) return Lost();
      if (fail_next_ > 0) {
        --fail_next_;
        return Fail(ErrorCode::kSystem, "a copy failed");
      }
      to = HostView(to, bytes);
      from = HostView(const_cast<char*>(from), bytes);
    }
    std::memcpy(to, from, bytes);
    return {};
  }
  bool lost() const override {
    MutexLock lock(mu_);
    return lost_;
  }
  void Probe() override {
    MutexLock lock(mu_);
    if (dead_) lost_ = true;
  }

  // --- what tests tell it
  void Stop(bool stopped) {
    MutexLock lock(mu_);
    stopped_ = stopped;
    changed_.NotifyAll();
  }
  void HoldAllocations(bool held) {
    MutexLock lock(mu_);
    allocations_held_ = held;
    changed_.NotifyAll();
  }
  // Exports of dma-bufs do not return, or say that there are none.
  void HoldDmabufs(bool held) {
    MutexLock lock(mu_);
    dmabufs_held_ = held;
    changed_.NotifyAll();
  }
  void RefuseDmabufs(bool refuse) {
    MutexLock lock(mu_);
    refuses_dmabufs_ = refuse;
  }
  uint64_t dmabufs() const {  // that were asked for
    MutexLock lock(mu_);
    return dmabufs_;
  }
  void FailNext(int copies) {
    MutexLock lock(mu_);
    fail_next_ = copies;
  }
  void Lose() {
    MutexLock lock(mu_);
    lost_ = true;
    changed_.NotifyAll();
  }
  // Nobody has noticed yet.
  void Die() {
    MutexLock lock(mu_);
    dead_ = true;
  }
  void set_capacity(uint64_t bytes) {
    MutexLock lock(mu_);
    capacity_ = bytes;
  }
  uint64_t allocated() const {
    MutexLock lock(mu_);
    return allocated_;
  }
  uint64_t allocations() const {  // that were begun
    MutexLock lock(mu_);
    return allocations_;
  }
  uint64_t copies() const {
    MutexLock lock(mu_);
    return copies_;
  }

 private:
  class FakeRange : public Range {
   public:
    FakeRange(FakeDevice* device, uint64_t bytes) : device_(*device), bytes_(bytes) {
      fd_.Reset(memfd_create("fake-device", MFD_CLOEXEC));
      EXPECT_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes)), 0);
      data_ = Map(PROT_NONE);
      view_ = Map(PROT_READ | PROT_WRITE);
      device_.mu_.AssertHeld();
      device_.ranges_[data_] = {view_, bytes};
    }
    ~FakeRange() override {
      {
        MutexLock lock(device_.mu_);
        device_.ranges_.erase(data_);
        device_.allocated_ -= bytes_;
      }
      munmap(data_, bytes_);
      munmap(view_, bytes_);
    }
    char* data() const override { return data_; }
    uint64_t bytes() const override { return bytes_; }
    Result<Handle> Export() const override {
      Handle handle;
      handle.kind = protocol::DeviceHandleKind::kPosixFd;
      handle.fd.Reset(dup(fd_.get()));
      return handle;
    }
    Result<Dmabuf> ExportDmabuf() const override {
      MutexLock lock(device_.mu_);
      ++device_.dmabufs_;
      while (device_.dmabufs_held_ && !device_.lost_) device_.changed_.Wait(device_.mu_);
      if (device_.lost_) return Lost();
      if (device_.refuses_dmabufs_) return Fail(ErrorCode::kUnavailable, "it has no dma-buf");
      return Dmabuf{UniqueFd(dup(fd_.get())), 0};
    }

   private:
    char* Map(int protection) const {
      void* const data = mmap(nullptr, bytes_, protection, MAP_SHARED, fd_.get(), 0);
      EXPECT_NE(data, MAP_FAILED);
      return static_cast<char*>(data);
    }

    FakeDevice& device_;
    const uint64_t bytes_;
    UniqueFd fd_;
    char* data_ = nullptr;
    char* view_ = nullptr;
  };

  static tl::unexpected<Error> Lost() { return Fail(ErrorCode::kUnavailable, "the device is lost"); }
  // Where the processor finds it; host memory as it is.
  char* HostView(char* address, uint64_t bytes) REQUIRES(mu_) {
    auto above = ranges_.upper_bound(address);
    if (above == ranges_.begin()) return address;
    const auto& [data, range] = *std::prev(above);
    if (address >= data + range.second) return address;
    EXPECT_LE(address + bytes, data + range.second) << "a copy leaves its range";
    return range.first + (address - data);
  }

  Uuid uuid_{};
  const std::string name_;
  const uint64_t granularity_;
  mutable Mutex mu_;
  CondVar changed_;
  std::map<char*, std::pair<char*, uint64_t>> ranges_ GUARDED_BY(mu_);  // data -> view, bytes
  uint64_t capacity_ GUARDED_BY(mu_) = 1ull << 40;
  uint64_t allocated_ GUARDED_BY(mu_) = 0;
  uint64_t copies_ GUARDED_BY(mu_) = 0;
  uint64_t allocations_ GUARDED_BY(mu_) = 0;
  uint64_t dmabufs_ GUARDED_BY(mu_) = 0;
  bool allocations_held_ GUARDED_BY(mu_) = false;
  bool dmabufs_held_ GUARDED_BY(mu_) = false;
  bool refuses_dmabufs_ GUARDED_BY(mu_) = false;
  int fail_next_ GUARDED_BY(mu_) = 0;
  bool stopped_ GUARDED_BY(mu_) = false;
  bool lost_ GUARDED_BY(mu_) = false;
  bool dead_ GUARDED_BY(mu_) = false;
};

}  // namespace moonpool::storage
