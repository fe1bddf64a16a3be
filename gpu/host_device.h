// A device in host memory, for tests: streams that run on a thread, events, kernels in plain C++.
// It is as strict as the real one (memory it cannot reach, addresses of the wrong side) and can be
// told to stop, to fail, and in which random order streams go on.  What a NIC (of a test) writes
// into its memory is not there before it is flushed.
//
// Threads: any.  All devices of one HostDevices share a thread and a lock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "gpu/device.h"

namespace moonpool::gpu {

struct HostDeviceOptions {
  int devices = 1;
  Link link = Link::kNvlink;  // between any two of them
  int island = 0;             // so many each are linked by NVLink, whatever `link` says
  HandleKind handles = HandleKind::kPosixFd;
  bool pins_read_only = true;
  bool dmabuf = true;
  // The processor faults on addresses of device memory, as on a GPU's; else tests may look there.
  bool hidden = false;
  uint64_t memory_bytes = 1ull << 30;
  uint64_t granularity = 2 << 20;
  // Device addresses of pinned memory are this far from the processor's.
  intptr_t pinned_offset = 0;
  // Of the order in which streams go on when several can.
  uint64_t seed = 1;
};

class HostDevice : public Device {
 public:
  // What it was asked to do so far.
  struct Counts {
    uint64_t one = 0;   // CopyOne
    uint64_t many = 0;  // CopyMany: launches, and pieces in them
    uint64_t many_pieces = 0;
    uint64_t pages = 0;          // CopyPages
    uint64_t host_launches = 0;  // of the last two, with host memory on one side
    uint64_t checks = 0;         // CheckGenerations
    uint64_t checks_behind = 0;  // CopyMany with checks
    uint64_t staged_blocks = 0;  // NewHostBlock and NewDeviceBlock of 4 KiB and more
    uint64_t dmabufs = 0;        // ExportDmabuf
    uint64_t flushes = 0;        // FlushRemoteWrites
  };
  virtual Counts counts() const = 0;

  // Nothing in a stream of this device is done until Resume(); `after` more steps still are.
  virtual void Pause(uint64_t after = 0) = 0;
  virtual void Resume() = 0;
  // No stream of this device goes on by itself: all is done, or Pause() holds it.
  virtual bool still() const = 0;
  // After so many more steps in streams the device falls off the bus: everything fails.
  virtual void LoseAfter(uint64_t steps) = 0;
  // Allocate() does not return until this is taken back; how many do not now.
  virtual void HoldAllocations(bool hold) = 0;
  virtual int allocations_held() const = 0;
  // Likewise ExportDmabuf().
  virtual void HoldDmabufs(bool hold) = 0;
  virtual int dmabufs_held() const = 0;
  // The next call that allocates, exports, flushes or puts work into a stream, after so many more,
  // fails.
  virtual void FailCallAfter(uint64_t calls) = 0;
  // A program captures the stream into a graph, or has ended that.
  virtual void SetCaptured(StreamRef stream, bool captured) = 0;
  // What a NIC writes into memory of this device: done by the next FlushRemoteWrites(), after what
  // came before it, or never.
  virtual void HoldUntilFlush(std::function<void()> write) = 0;
};

// Makes devices that know each other.  Their UUIDs are the same in every process.
std::vector<std::unique_ptr<HostDevice>> MakeHostDevices(const HostDeviceOptions& options = {});

}  // namespace moonpool::gpu
