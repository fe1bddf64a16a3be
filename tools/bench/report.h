// What a run found: rows with figures, as a table for people and as JSON for programs.
//
// Threads: one at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tools/bench/machine.h"

namespace moonpool::bench {

using Json = nlohmann::ordered_json;

struct Row {
  enum class Better { kNone, kHigher, kLower };
  // Which figure "at least" and "aim" are about.
  enum class Judged { kRatio, kOurs };

  std::string id;
  std::string name;
  std::string unit;
  std::optional<double> ours;
  std::optional<double> theirs;
  std::optional<double> ratio;  // of ours to theirs; the median over the pairs of one run
  std::optional<double> ratio_min;
  std::optional<double> ratio_max;
  Better better = Better::kNone;
  Judged judged = Judged::kRatio;
  std::optional<double> at_least;
  std::optional<double> aim;
  Json details = Json::object();

  // "aim", "at least", "below", or empty when nothing is asked for.
  std::string Verdict() const;
  std::optional<double> JudgedFigure() const { return judged == Judged::kRatio ? ratio : ours; }
};

// Fills in ours, theirs and the ratios from pairs that were measured side by side.
struct Pair {
  double ours = 0;
  std::optional<double> theirs;
};
void SetFromPairs(const std::vector<Pair>& pairs, Row* row);

double Median(std::vector<double> values);

struct Report {
  std::string mode;
  std::string command_line;
  Machine machine;
  Json versions = Json::object();
  Json settings = Json::object();
  std::vector<Row> rows;
};

Json ToJson(const Row& row);
Json ToJson(const Report& report);
// Every row on a line: name, ours, theirs, ratio and what is asked for.
std::string Table(const std::vector<Row>& rows);
// What else was measured: one line per row that has details.
std::string DetailTable(const std::vector<Row>& rows);
// "1.23 M", "45.6 k", "0.0123": three digits.
std::string Short(double value);

// Writes to a file, or for "-" to standard output.  Throws Failure.
void WriteText(const std::string& path, const std::string& text);

}  // namespace moonpool::bench
