// What the rows of `moonpool-bench rdma` share, and those that go through a server process.
//
// Threads: one at a time.  Throw Failure.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/moonpool/client.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/rdma.h"
#include "tools/bench/rdma_pool.h"
#include "tools/bench/test_server.h"

namespace moonpool::bench {

// Batches of random values: neighbours in the pool are rarely neighbours in a batch.
std::vector<std::vector<uint32_t>> Batches(size_t values, size_t batch, size_t count);
// Of read(batches), called until it takes about that long: the clock itself may cost more than a
// batch.
double GigabytesPerSecond(const std::function<void(size_t)>& read, uint64_t batch_bytes,
                          double seconds);
// The device's own figure, of two ways to wait the better one.
class RawRate {
 public:
  RawRate(RdmaPool& pool, uint64_t session, uint64_t batch_bytes,
          const std::vector<std::vector<uint32_t>>& batches, double seconds);
  double Measure(double seconds);
  double looking() const { return looking_; }
  double sleeping() const { return sleeping_; }

 private:
  double By(RawReader::Waits waits, double seconds);

  RawReader raw_;
  const uint64_t batch_bytes_;
  const std::vector<std::vector<uint32_t>>& batches_;
  double looking_ = 0;
  double sleeping_ = 0;
};

// A client of a server process with values of one size.
class ServerReader {
 public:
  // `options`: of the URL, "transport=rdma&..".
  ServerReader(const TestServer& server, const std::string& options, uint64_t buffer_bytes);

  // Values of that size with these numbers; leaves them in the server.
  void Fill(uint64_t bytes, size_t count);
  // Those that another reader has filled in.
  void Use(uint64_t bytes) { bytes_ = bytes; }
  // Side by side into the registered buffer.  Throws Failure for any that is not read, or not over
  // the transport that was asked for.
  void Read(const std::vector<uint32_t>& numbers) { Move(numbers, false); }
  // The same, from the buffer: it has the values of those numbers after Read().
  void Write(const std::vector<uint32_t>& numbers) { Move(numbers, true); }
  bool Check(const std::vector<uint32_t>& numbers) const;
  client::Stats stats() const { return client_->stats(); }
  // Values may go over other transports from now on.
  void Tolerate() { strict_ = false; }

 private:
  void Move(const std::vector<uint32_t>& numbers, bool write);

  std::unique_ptr<client::Client> client_;
  MemoryBlock buffer_;
  client::Transport transport_ = client::Transport::kRdma;
  uint64_t bytes_ = 0;
  bool strict_ = true;
};

class RdmaServerRows {
 public:
  RdmaServerRows(const RdmaModeOptions& options, int reps, RdmaPool& pool, MeasuredRows& rows);

  // batch_get_into beside raw READs.  `session`: for these, of the pool.
  void Reads(std::string_view id, uint64_t bytes, size_t batch, size_t values, uint64_t session);
  // batch_put_from over RDMA and over tcp.
  void Writes();
  // What the server process spends.
  void Processor();
  void TwoNics();
  // Takes a NIC down; last.
  void Recovery();

 private:
  enum class Nics { kOne, kAll };
  // Without keys.
  TestServer& Server(Nics nics);
  std::string OneNic() const;  // options of a URL
  double seconds() const { return options_.common.quick ? 0.5 : 2; }

  const RdmaModeOptions& options_;
  const int reps_;
  RdmaPool& pool_;
  MeasuredRows& rows_;
  std::unique_ptr<TestServer> servers_[2];
};

}  // namespace moonpool::bench
