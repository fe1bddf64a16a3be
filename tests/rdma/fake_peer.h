// Memory of a device for tests of rdma: where the processor must not touch it (that ends the test),
// with a file that NICs of the double take.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "rdma/registration.h"

namespace moonpool::rdma::test {

class FakePeer : public PeerMemory {
 public:
  explicit FakePeer(uint64_t bytes) : bytes_(bytes), fd_(memfd_create("peer", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes)), 0);
    data_ = Map(PROT_NONE);
    view_ = Map(PROT_READ | PROT_WRITE);
  }
  ~FakePeer() override {
    munmap(data_, bytes_);
    munmap(view_, bytes_);
  }

  Result<File> Export(char* data, uint64_t bytes) override {
    ++exports;
    if (!exports_any) return Fail(ErrorCode::kUnavailable, "this memory has no file");
    EXPECT_TRUE(data >= data_ && data + bytes <= data_ + bytes_);
    return File{UniqueFd(dup(fd_.get())), static_cast<uint64_t>(data - data_)};
  }
  Status Flush() override {
    ++flushes;
    return {};
  }

  // As the device has it, and as the test sees it.
  char* data() const { return data_; }
  char* view() const { return view_; }

  std::atomic<int> exports{0};
  std::atomic<int> flushes{0};
  bool exports_any = true;

 private:
  char* Map(int protection) const {
    void* const data = mmap(nullptr, bytes_, protection, MAP_SHARED, fd_.get(), 0);
    EXPECT_NE(data, MAP_FAILED);
    return static_cast<char*>(data);
  }

  const uint64_t bytes_;
  const UniqueFd fd_;
  char* data_ = nullptr;
  char* view_ = nullptr;
};

}  // namespace moonpool::rdma::test
