// Devices, memory and queues over libibverbs; the rest of ibverbs.h is in ibverbs_connection.cc.
//
// Threads: as verbs.h says.  The contexts are librdmacm's own: connections need the same ones, and
// it keeps them open for the life of the process.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "protocol/mutex.h"
#include "rdma/verbs.h"

namespace moonpool::rdma {

class IbDevice : public Device {
 public:
  explicit IbDevice(ibv_context* context);

  ibv_context* context() const { return context_; }
  const ibv_device_attr& attributes() const { return attributes_; }

  const std::string& name() const override { return name_; }
  Result<DeviceAttributes> Query() override;
  Result<std::unique_ptr<ProtectionDomain>> NewProtectionDomain() override;
  Result<std::unique_ptr<CompletionChannel>> NewCompletionChannel() override;
  Result<std::unique_ptr<CompletionQueue>> NewCompletionQueue(uint32_t entries,
                                                              CompletionChannel* channel) override;
  int command_fd() const override { return context_->cmd_fd; }
  int event_fd() const override { return context_->async_fd; }
  void TakeEvents() override;
  bool port_up(uint8_t port) const override {
    return port < down_.size() && !down_[port].load(std::memory_order_relaxed);
  }

 private:
  ibv_context* const context_;
  const std::string name_;
  std::array<std::atomic<bool>, 256> down_{};  // by port
  ibv_device_attr attributes_ = {};
};

// Every device once in this process, however often it is looked for: there is one stream of events.
class IbDevices {
 public:
  static IbDevices& OfProcess();
  Result<std::vector<std::shared_ptr<Device>>> All() EXCLUDES(mu_);
  // Null when there is no such device.
  IbDevice* Of(ibv_context* context) EXCLUDES(mu_);

 private:
  IbDevice* Find(ibv_context* context) REQUIRES(mu_);

  Mutex mu_;
  std::vector<std::shared_ptr<IbDevice>> devices_ GUARDED_BY(mu_);
};

class IbProtectionDomain : public ProtectionDomain {
 public:
  explicit IbProtectionDomain(ibv_pd* pd) : pd_(pd) {}
  ~IbProtectionDomain() override { ibv_dealloc_pd(pd_); }
  ibv_pd* pd() const { return pd_; }
  Result<std::unique_ptr<Registered>> Register(void* data, size_t bytes, uint32_t access) override;
  Result<std::unique_ptr<Registered>> RegisterDmabuf(int fd, uint64_t offset, size_t bytes,
                                                     uint64_t address, uint32_t access) override;

 private:
  int Flags(uint32_t access) const;

  ibv_pd* const pd_;
};

class IbCompletionQueue : public CompletionQueue {
 public:
  ~IbCompletionQueue() override {
    if (cq_ != nullptr) ibv_destroy_cq(cq_);
  }
  // The verbs object refers to this one, for CompletionChannel::Next().
  void Take(ibv_cq* cq) { cq_ = cq; }
  ibv_cq* cq() const { return cq_; }
  size_t Poll(std::span<Completion> completions) override;
  Status Arm() override;

 private:
  ibv_cq* cq_ = nullptr;
};

// Wraps a queue pair that its connection owns.
class IbQueuePair : public QueuePair {
 public:
  IbQueuePair(ibv_qp* qp, const QueuePairLimits& limits) : qp_(qp), limits_(limits) {}
  uint32_t number() const override { return qp_->qp_num; }
  const QueuePairLimits& limits() const override { return limits_; }
  size_t Post(std::span<const WorkRequest> requests) override;
  Status PostReceive(uint64_t id, const Piece& piece) override;
  Status ToError() override;

 private:
  ibv_qp* const qp_;
  const QueuePairLimits limits_;
};

Status SetNonBlocking(int fd);

}  // namespace moonpool::rdma
