// The objects of FakeFabric, which guards all of them by its one lock.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <deque>

#include "protocol/unique_fd.h"
#include "tests/rdma/fake_verbs.h"

namespace moonpool::rdma::test {

// Readable while there is something to take.
class FakeSignal {
 public:
  FakeSignal() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  int fd() const { return fd_.get(); }
  void Raise() {
    const uint64_t one = 1;
    (void)!write(fd_.get(), &one, sizeof(one));
  }
  void Lower() {
    uint64_t ignored;
    (void)!read(fd_.get(), &ignored, sizeof(ignored));
  }

 private:
  UniqueFd fd_;
};

class FakeQueue;

// A part of a file that holds a device's memory.
class FakeFabric::Mapping {
 public:
  // Null when the file has no such part.
  static std::shared_ptr<Mapping> Of(int fd, uint64_t offset, uint64_t bytes);
  ~Mapping();
  char* data() const { return start_ + skipped_; }

 private:
  Mapping(char* start, uint64_t skipped, uint64_t mapped_bytes)
      : start_(start), skipped_(skipped), mapped_bytes_(mapped_bytes) {}
  char* const start_;
  const uint64_t skipped_;  // the offset's part of a page
  const uint64_t mapped_bytes_;
};

class FakeChannel : public CompletionChannel {
 public:
  explicit FakeChannel(FakeFabric& fabric) : fabric_(fabric) {}
  int fd() const override { return signal.fd(); }
  CompletionQueue* Next() override;

  FakeSignal signal;
  std::deque<FakeQueue*> events;

 private:
  FakeFabric& fabric_;
};

class FakeQueue : public CompletionQueue {
 public:
  FakeQueue(FakeFabric& fabric, FakeChannel* events) : channel(events), fabric_(fabric) {}
  ~FakeQueue() override;
  size_t Poll(std::span<Completion> completions) override;
  Status Arm() override;
  void Push(const Completion& completion);

  FakeChannel* const channel;
  bool armed = false;
  std::deque<Completion> completions_;

 private:
  FakeFabric& fabric_;
};

class FakeDevice : public Device {
 public:
  FakeDevice(FakeFabric& fabric, std::string of, std::string name, std::string at, Protocol speaks)
      : host(std::move(of)),
        address(std::move(at)),
        protocol(speaks),
        fabric_(fabric),
        name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  Result<DeviceAttributes> Query() override;
  Result<std::unique_ptr<ProtectionDomain>> NewProtectionDomain() override;
  Result<std::unique_ptr<CompletionChannel>> NewCompletionChannel() override;
  Result<std::unique_ptr<CompletionQueue>> NewCompletionQueue(uint32_t entries,
                                                              CompletionChannel* channel) override;
  int event_fd() const override { return signal.fd(); }
  void TakeEvents() override;
  bool port_up(uint8_t) const override { return seen_up; }

  const std::string host;
  const std::string address;
  const Protocol protocol;
  bool up = true;
  bool silent = false;
  bool never_flushes = false;
  bool refuses_registrations = false;
  bool refuses_dmabufs = false;
  uint32_t refused_posts = 0;
  uint32_t slowness = 1;
  FakeSignal signal;
  std::atomic<bool> seen_up{true};
  std::map<uint32_t, FakeFabric::Registration> registrations;

 private:
  FakeFabric& fabric_;
  const std::string name_;
};

class FakeDomain : public ProtectionDomain {
 public:
  FakeDomain(FakeFabric& fabric, FakeDevice& device) : fabric_(fabric), device_(device) {}
  Result<std::unique_ptr<Registered>> Register(void* data, size_t bytes, uint32_t access) override;
  Result<std::unique_ptr<Registered>> RegisterDmabuf(int fd, uint64_t offset, size_t bytes,
                                                     uint64_t address, uint32_t access) override;

 private:
  std::unique_ptr<Registered> Add(FakeFabric::Registration registration);

  FakeFabric& fabric_;
  FakeDevice& device_;
};

class FakeQueuePair : public QueuePair {
 public:
  FakeQueuePair(FakeFabric& fabric, FakeDevice& device, const void* domain, FakeQueue& queue,
                const QueuePairLimits& limits, uint32_t number);
  ~FakeQueuePair() override;

  uint32_t number() const override { return number_; }
  const QueuePairLimits& limits() const override { return limits_; }
  size_t Post(std::span<const WorkRequest> requests) override;
  Status PostReceive(uint64_t id, const Piece& piece) override;
  Status ToError() override;

  FakeDevice& device;
  const void* const domain;
  FakeQueue& queue;
  FakeQueuePair* peer = nullptr;
  bool broken = false;
  std::deque<FakeFabric::Slot> slots;
  std::deque<std::pair<uint64_t, Piece>> receives;

 private:
  FakeFabric& fabric_;
  QueuePairLimits limits_;
  const uint32_t number_;
};

class FakeConnection : public Connection {
 public:
  FakeConnection(FakeFabric& fabric, FakeEvents& events);
  ~FakeConnection() override;
  Status ResolveAddress(const std::string& source, const std::string& destination, uint16_t port,
                        int timeout_ms) override;
  Status ResolveRoute(int timeout_ms) override;
  Status Connect(const ConnectParameters& parameters) override;
  Status Listen(const std::string& address, uint16_t port, int backlog) override;
  uint16_t port() const override { return port_; }
  Status Accept(const ConnectParameters& parameters) override;
  Status Reject(std::string_view private_data) override;
  Device* device() const override { return device_; }
  Status CreateQueuePair(ProtectionDomain& domain, CompletionQueue& completions,
                         const QueuePairLimits& limits) override;
  QueuePair* queue_pair() const override { return pair_.get(); }
  void Disconnect() override;
  std::string peer() const override { return destination_; }

  FakeConnection* other = nullptr;
  FakeEvents* events;
  FakeDevice* device_ = nullptr;
  std::string destination_;
  std::unique_ptr<FakeQueuePair> pair_;
  uint8_t reads_made = 0;

 private:
  void Part();

  FakeFabric& fabric_;
  uint16_t port_ = 0;
  std::string address_;  // where it listens
  bool listening_ = false;
};

class FakeEvents : public ConnectionEvents {
 public:
  FakeEvents(FakeFabric& fabric, std::string of) : host(std::move(of)), fabric_(fabric) {}
  int fd() const override { return signal.fd(); }
  std::optional<ConnectionEvent> Next() override;
  Result<std::unique_ptr<Connection>> NewConnection() override;
  void Push(ConnectionEvent event) {
    queue.push_back(std::move(event));
    signal.Raise();
  }

  const std::string host;
  FakeSignal signal;
  std::deque<ConnectionEvent> queue;

 private:
  FakeFabric& fabric_;
};

}  // namespace moonpool::rdma::test
