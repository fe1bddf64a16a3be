// What the rows about the SSD tier share: the folder, servers, values, and where results go.
//
// Threads: one at a time, except SsdValues::Put() and Get() of different values.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/moonpool/client.h"
#include "tools/bench/comparison.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/report.h"
#include "tools/bench/ssd.h"
#include "tools/bench/ssd_disk.h"
#include "tools/bench/test_server.h"

namespace moonpool::bench {

const std::vector<Row>& SsdRowTable();

class SsdComparison {
 public:
  explicit SsdComparison(const SsdModeOptions& options);

  const SsdModeOptions& options() const { return options_; }
  bool quick() const { return options_.common.quick; }
  int reps() const { return reps_; }
  const DiskFolder& folder() const { return folder_; }
  bool Wants(std::string_view id) const { return rows_.Wants(id); }
  bool WantsAny(std::initializer_list<std::string_view> ids) const { return rows_.WantsAny(ids); }

  // A server with its SSD tier in `name` under the folder, which stays when the server ends.
  std::unique_ptr<TestServer> Server(const std::string& name, uint64_t memory_bytes,
                                     const std::vector<std::string>& flags = {});
  void RemoveDirectory(const std::string& name) const;

  // Calls `measure` so many times and puts the row into the report.
  void Measure(std::string_view id, int reps, const std::function<Pair()>& measure,
               const std::function<Json()>& details = {}) {
    rows_.Measure(id, reps, measure, details);
  }
  // A row whose figures there are already.
  void Add(std::string_view id, const std::vector<Pair>& pairs, Json details) {
    rows_.Add(id, pairs, std::move(details));
  }

  // In the order of the table of rows.
  Report Finish();

 private:
  const SsdModeOptions options_;
  const std::string moonpool_path_;
  const int reps_;
  const DiskFolder folder_;
  MeasuredRows rows_;
  Report report_;
};

// Values of one size, their bytes known by their number.
class SsdValues {
 public:
  SsdValues(std::string prefix, uint64_t bytes, size_t batch);

  uint64_t bytes() const { return bytes_; }
  size_t batch() const { return batch_; }
  // One batch from `first` on; waits while the server says it has no memory.
  void Put(client::Client& client, uint64_t first, size_t count);
  // How many were there with the right bytes; `all`: every byte is looked at, not a page of each.
  size_t Get(client::Client& client, uint64_t first, size_t count, bool all = false);

 private:
  char* at(size_t i) const { return memory_.data() + i * bytes_; }
  void Name(uint64_t first, size_t count);

  const std::string prefix_;
  const uint64_t bytes_;
  const size_t batch_;
  MemoryBlock memory_;
  std::vector<std::string> names_;
  std::vector<std::string_view> keys_;
};

int64_t TierNumber(TestServer& server, const std::string& field);
// Waits until nothing is on its way down.
void WaitForDemotions(TestServer& server);

void SsdThroughputRows(SsdComparison& comparison);
void SsdServerRows(SsdComparison& comparison);
void SsdRestartRows(SsdComparison& comparison);
void SsdWarmthRows(SsdComparison& comparison);
void SsdCompressionRows(SsdComparison& comparison);

}  // namespace moonpool::bench
