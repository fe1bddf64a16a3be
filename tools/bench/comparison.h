// What the rows of a comparison share: servers, repetition, and where results go.
//
// Threads: one at a time.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/moonpool/client.h"
#include "tools/bench/compare.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/measured_rows.h"
#include "tools/bench/report.h"
#include "tools/bench/test_server.h"

namespace moonpool::bench {

// Figures of one side of a comparison, by name, over all repetitions.
class Figures {
 public:
  void Add(const std::string& name, double value);
  Json Medians() const;

 private:
  std::vector<std::pair<std::string, std::vector<double>>> by_name_;
};

class Comparison {
 public:
  explicit Comparison(const CompareOptions& options);

  const CompareOptions& options() const { return options_; }
  bool quick() const { return options_.common.quick; }
  int reps() const { return reps_; }
  // How long one measurement lasts.
  double seconds(double normal, double quick_seconds) const {
    return quick() ? quick_seconds : normal;
  }
  bool Wants(std::string_view id) const { return rows_.Wants(id); }
  bool WantsAny(std::initializer_list<std::string_view> ids) const { return rows_.WantsAny(ids); }

  // A Moonpool with --maxmemory as the options say, its pool populated.
  std::unique_ptr<TestServer> Moonpool(const std::vector<std::string>& flags = {});
  std::unique_ptr<TestServer> Redis();

  // Calls both sides in turn, reps() times, and puts the row into the report.
  void Row(std::string_view id, const std::function<double()>& ours,
           const std::function<double()>& theirs, const std::function<Json()>& details = {});
  // The same for what can only be measured as a whole.
  void Row(std::string_view id, int reps, const std::function<Pair()>& measure,
           const std::function<Json()>& details = {}) {
    rows_.Measure(id, reps, measure, details);
  }

  // In the order of the table of rows.
  Report Finish();

 private:
  const CompareOptions options_;
  const std::string moonpool_path_;
  int reps_;
  MeasuredRows rows_;
  Report report_;
};

const std::vector<Row>& RowTable();

// Connects, or throws Failure.
std::unique_ptr<client::Client> ConnectClient(const std::string& url);
// Throws Failure unless every result is kOk.
void ExpectOk(const std::vector<client::KeyResult>& results, std::string_view what);

// p99 of small GETs at a fixed rate, in microseconds; what else it found goes to `figures`.
double SmallP99(LoadGenerator& load, double seconds, Figures* figures);

// The groups of rows; each measures those of its rows that are wanted.
void SmallOperationRows(Comparison& comparison);
void LoopRows(Comparison& comparison);
void FairnessRows(Comparison& comparison);
void LargeRespRows(Comparison& comparison);
void TcpTransportRows(Comparison& comparison);
void SharedMemoryRows(Comparison& comparison);
void ViewRows(Comparison& comparison);
void DescriptorRows(Comparison& comparison);
void KeyMemoryRows(Comparison& comparison);
void ChurnRows(Comparison& comparison);

}  // namespace moonpool::bench
