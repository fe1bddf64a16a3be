#include "tools/bench/measured_rows.h"

#include <algorithm>
#include <regex>
#include <utility>

#include "tools/bench/failure.h"
#include "tools/bench/options.h"

namespace moonpool::bench {

Row RowTemplate(std::string id, std::string name, std::string unit, Row::Better better,
                std::optional<double> at_least, std::optional<double> aim, Row::Judged judged) {
  Row row;
  row.id = std::move(id);
  row.name = std::move(name);
  row.unit = std::move(unit);
  row.better = better;
  row.at_least = at_least;
  row.aim = aim;
  row.judged = judged;
  return row;
}

MeasuredRows::MeasuredRows(const std::vector<Row>& table, std::string wanted)
    : table_(table), wanted_(std::move(wanted)) {}

const Row& MeasuredRows::TemplateOf(std::string_view id) const {
  for (const Row& row : table_) {
    if (row.id == id) return row;
  }
  throw Failure("no row is called " + std::string(id));
}

bool MeasuredRows::Wants(std::string_view id) const {
  const Row& row = TemplateOf(id);
  if (wanted_.empty()) return true;
  const std::regex expression(wanted_, std::regex::icase);
  return std::regex_search(row.id, expression) || std::regex_search(row.name, expression);
}

bool MeasuredRows::WantsAny(std::initializer_list<std::string_view> ids) const {
  return std::any_of(ids.begin(), ids.end(), [this](std::string_view id) { return Wants(id); });
}

void MeasuredRows::Measure(std::string_view id, int reps, const std::function<Pair()>& measure,
                           const std::function<Json()>& details) {
  if (!Wants(id)) return;
  const Row& row = TemplateOf(id);
  std::vector<Pair> pairs;
  for (int rep = 0; rep < reps; ++rep) {
    pairs.push_back(measure());
    const Pair& pair = pairs.back();
    std::string text = row.name + ": " + Short(pair.ours);
    if (pair.theirs) text += " / " + Short(*pair.theirs);
    Progress(text + " " + row.unit);
  }
  Add(id, pairs, details ? details() : Json::object());
}

void MeasuredRows::Add(std::string_view id, const std::vector<Pair>& pairs, Json details) {
  if (!Wants(id)) return;
  Row row = TemplateOf(id);
  SetFromPairs(pairs, &row);
  row.details = std::move(details);
  rows_.push_back(std::move(row));
}

std::vector<Row> MeasuredRows::Ordered() const {
  std::vector<Row> ordered;
  for (const Row& known : table_) {
    for (const Row& row : rows_) {
      if (row.id == known.id) ordered.push_back(row);
    }
  }
  return ordered;
}

}  // namespace moonpool::bench
