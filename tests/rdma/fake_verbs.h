// A network of hosts with NICs in this process: Verbs that really move bytes, and that can fail,
// delay and reorder.
//
// READs of one queue pair look at the other side's memory in any order, but for fenced ones; they
// complete in order, as the specification has it.  Nothing moves before Step() (or at once, or by a
// thread: see Moves).
// Threads: any; one lock for everything.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "rdma/verbs.h"
#include "tests/protocol/random.h"

namespace moonpool::rdma::test {

class FakeDevice;
class FakeQueuePair;
class FakeConnection;
class FakeEvents;

class FakeFabric {
 public:
  enum class Moves {
    kAtOnce,    // when posted
    kBySteps,   // by Step()
    kByThread,  // by a thread, in its own time
  };
  explicit FakeFabric(Moves moves, uint64_t seed = 1);
  ~FakeFabric();

  // Adds a device of a host, with one port and an address.  Over iWARP who listens on all addresses is
  // not heard (as on one host), READs cannot be fenced, and land only where there is remote write
  // access, and WRITEs that are refused complete as if they were not.
  void AddDevice(const std::string& host, const std::string& device, const std::string& address,
                 Protocol protocol = Protocol::kRoceV2);
  std::unique_ptr<Verbs> Host(const std::string& host);

  // Carries out one request, any that may be next.  False when there is none.
  bool Step();
  void StepAll();
  // Requests that are posted and not carried out.
  size_t pending();

  // --- what goes wrong
  // The port goes down: an event on its host; what goes over it fails.
  void SetPort(const std::string& device, bool up);
  // What goes over the device is lost, and nobody is told.
  void SetSilent(const std::string& device, bool silent);
  // Requests of queue pairs on the device are carried out only one time in so many.
  void SetSlowness(const std::string& device, uint32_t slowness);
  // Its queue pairs do not flush when they go into the error state.
  void SetNeverFlushes(const std::string& device, bool never);
  // What the other side of a connection that goes sees of it, at first: its queue pair flushed, the
  // event, or both.
  enum class Closing { kBoth, kFlushAlone, kEventAlone };
  void SetClosing(Closing closing);
  // Breaks every queue pair of the device, as a link error does.
  void BreakQueuePairs(const std::string& device);
  // Somebody else listens there: that port of that address cannot be had.
  void TakePort(const std::string& address, uint16_t port);
  // The next so many posts to queue pairs of the device are refused.
  void RefusePosts(const std::string& device, uint32_t count);
  void RefuseRegistrations(const std::string& device, bool refuse);
  // As NICs without dma-buf do.
  void RefuseDmabufs(const std::string& device, bool refuse);
  // A dma-buf is a memory file here.  What a READ brings into one is written by calling `write`:
  // now or later, by whoever knows what the device at `address` does.
  void OnDmabufWrite(
      std::function<void(uint64_t address, std::function<void()> write)> on_dmabuf_write);
  // Called for each request that is carried out, before its bytes move.
  void OnExecute(std::function<void(const WorkRequest&, const std::string& device)> on_execute);

  struct Counters {
    uint64_t doorbells = 0;
    uint64_t requests = 0;
    uint64_t completions = 0;
    uint64_t registrations = 0;  // now
    uint64_t dmabufs = 0;        // of these
    uint64_t dmabuf_tries = 0;   // that were to be registered, ever
    uint64_t queue_pairs = 0;    // now
    uint64_t bytes = 0;
    std::map<std::string, uint64_t> device_bytes;  // by the device that made the requests
  };
  Counters counters();

 private:
  friend class FakeDevice;
  friend class FakeVerbs;
  friend class FakeQueuePair;
  friend class FakeConnection;
  friend class FakeEvents;
  friend class FakeRegistered;
  friend class FakeDomain;
  friend class FakeQueue;
  friend class FakeChannel;

  class Mapping;
  struct Registration {
    uint64_t address = 0;
    uint64_t bytes = 0;
    uint32_t access = 0;
    const void* domain = nullptr;
    std::shared_ptr<Mapping> mapping = nullptr;  // of a dma-buf
  };
  struct Slot {
    WorkRequest request;
    std::vector<Piece> pieces;
    std::string inlined;
    bool executed = false;
    Completion::Status status = Completion::Status::kOk;
    const char* text = "";
  };

  std::vector<size_t> Eligible(const FakeQueuePair& pair) REQUIRES(mu_);
  bool StepLocked() REQUIRES(mu_);
  void Execute(FakeQueuePair* pair, size_t index) REQUIRES(mu_);
  Completion::Status Carry(FakeQueuePair* pair, Slot* slot) REQUIRES(mu_);
  // `mapping`: what the memory is in, if that is a dma-buf.
  char* Reach(FakeDevice* device, const void* domain, uint64_t address, uint64_t bytes,
              uint32_t key, uint32_t access, std::shared_ptr<Mapping>* mapping = nullptr)
      REQUIRES(mu_);
  void Complete(FakeQueuePair* pair) REQUIRES(mu_);
  void Break(FakeQueuePair* pair) REQUIRES(mu_);
  FakeDevice* DeviceAt(const std::string& address) REQUIRES(mu_);
  FakeDevice* Named(const std::string& device) REQUIRES(mu_);

  const Moves moves_;
  Mutex mu_;
  moonpool::test::Random random_ GUARDED_BY(mu_);
  std::vector<std::shared_ptr<FakeDevice>> devices_ GUARDED_BY(mu_);
  std::vector<FakeQueuePair*> pairs_ GUARDED_BY(mu_);  // as they were made
  // Null: somebody else's.
  std::map<std::pair<std::string, uint16_t>, FakeConnection*> listeners_ GUARDED_BY(mu_);
  Closing closing_ GUARDED_BY(mu_) = Closing::kBoth;
  uint32_t next_key_ GUARDED_BY(mu_) = 1000;
  uint16_t next_port_ GUARDED_BY(mu_) = 20000;
  uint32_t next_pair_ GUARDED_BY(mu_) = 1;
  Counters counters_ GUARDED_BY(mu_);
  std::function<void(const WorkRequest&, const std::string&)> on_execute_ GUARDED_BY(mu_);
  std::function<void(uint64_t, std::function<void()>)> on_dmabuf_write_ GUARDED_BY(mu_);
  bool stop_ GUARDED_BY(mu_) = false;
  CondVar posted_;
  std::thread thread_;
};

}  // namespace moonpool::rdma::test
