// The rows of one mode: the table of those there are, which are wanted, and their figures as they come.
//
// Threads: one at a time.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/bench/report.h"

namespace moonpool::bench {

// A row before it was measured: what it is called and what is asked of it.
Row RowTemplate(std::string id, std::string name, std::string unit, Row::Better better,
                std::optional<double> at_least, std::optional<double> aim,
                Row::Judged judged = Row::Judged::kRatio);

class MeasuredRows {
 public:
  // `wanted`: a regular expression on ids and names; empty: all.  The table outlives this.
  MeasuredRows(const std::vector<Row>& table, std::string wanted);

  // Throw Failure for a row that is not in the table.
  bool Wants(std::string_view id) const;
  bool WantsAny(std::initializer_list<std::string_view> ids) const;
  // Calls `measure` so many times and adds the row, if it is wanted.
  void Measure(std::string_view id, int reps, const std::function<Pair()>& measure,
               const std::function<Json()>& details);
  // A row whose figures there are already, if it is wanted.
  void Add(std::string_view id, const std::vector<Pair>& pairs, Json details);
  // What was measured, in the order of the table.
  std::vector<Row> Ordered() const;

 private:
  const Row& TemplateOf(std::string_view id) const;

  const std::vector<Row>& table_;
  const std::string wanted_;
  std::vector<Row> rows_;
};

}  // namespace moonpool::bench
