#include "tools/bench/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

Json OrNull(const std::optional<double>& value) {
  if (!value || !std::isfinite(*value)) return nullptr;
  return *value;
}

std::string ShortOrDash(const std::optional<double>& value) { return value ? Short(*value) : "-"; }

// Lines with aligned columns; the first to the left, the others to the right.
std::string Align(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths;
  for (const auto& line : lines) {
    widths.resize(std::max(widths.size(), line.size()));
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      const std::string padding(widths[i] - line[i].size(), ' ');
      text += i == 0 ? line[i] + padding : "  " + padding + line[i];
    }
    text += '\n';
  }
  return text;
}

}  // namespace

std::string Row::Verdict() const {
  const std::optional<double> figure = JudgedFigure();
  if (!figure || better == Better::kNone) return "";
  const auto reached = [&](const std::optional<double>& target) {
    return target && (better == Better::kHigher ? *figure >= *target : *figure <= *target);
  };
  if (reached(aim)) return "aim";
  if (reached(at_least)) return "at least";
  return at_least ? "below" : "";
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void SetFromPairs(const std::vector<Pair>& pairs, Row* row) {
  std::vector<double> ours, theirs, ratios;
  for (const Pair& pair : pairs) {
    ours.push_back(pair.ours);
    if (!pair.theirs) continue;
    theirs.push_back(*pair.theirs);
    if (*pair.theirs != 0) ratios.push_back(pair.ours / *pair.theirs);
  }
  if (ours.empty()) return;
  row->ours = Median(ours);
  const std::vector<double>& spread = ratios.empty() ? ours : ratios;
  if (!theirs.empty()) row->theirs = Median(theirs);
  if (!ratios.empty()) row->ratio = Median(ratios);
  row->ratio_min = *std::min_element(spread.begin(), spread.end());
  row->ratio_max = *std::max_element(spread.begin(), spread.end());
}

Json ToJson(const Row& row) {
  Json json = {{"id", row.id},
               {"name", row.name},
               {"unit", row.unit},
               {"ours", OrNull(row.ours)},
               {"theirs", OrNull(row.theirs)},
               {"ratio", OrNull(row.ratio)}};
  if (row.ratio_min) {
    // Without a reference these are of the figure itself.
    json[row.ratio ? "ratio_min" : "min"] = OrNull(row.ratio_min);
    json[row.ratio ? "ratio_max" : "max"] = OrNull(row.ratio_max);
  }
  if (row.better != Row::Better::kNone) {
    json["better"] = row.better == Row::Better::kHigher ? "higher" : "lower";
  }
  if (row.at_least || row.aim) {
    json["judged"] = row.judged == Row::Judged::kRatio ? "ratio" : "ours";
    json["at_least"] = OrNull(row.at_least);
    json["aim"] = OrNull(row.aim);
    json["verdict"] = row.Verdict();
  }
  if (!row.details.empty()) json["details"] = row.details;
  return json;
}

Json ToJson(const Report& report) {
  Json rows = Json::array();
  for (const Row& row : report.rows) rows.push_back(ToJson(row));
  return {{"tool", "moonpool-bench"},
          {"mode", report.mode},
          {"command_line", report.command_line},
          {"machine", ToJson(report.machine)},
          {"versions", report.versions},
          {"settings", report.settings},
          {"rows", rows}};
}

std::string Short(double value) {
  const double size = std::fabs(value);
  const char* unit = "";
  if (size >= 1e9) {
    value /= 1e9;
    unit = " G";
  } else if (size >= 1e6) {
    value /= 1e6;
    unit = " M";
  } else if (size >= 1e4) {
    value /= 1e3;
    unit = " k";
  }
  const double scaled = std::fabs(value);
  const int digits = scaled >= 100 ? 0 : scaled >= 10 ? 1 : scaled >= 1 ? 2 : 3;
  char text[48];
  std::snprintf(text, sizeof(text), "%.*f%s", digits, value, unit);
  return text;
}

std::string Table(const std::vector<Row>& rows) {
  const bool with_theirs =
      std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.theirs; });
  const bool with_targets =
      std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.at_least; });
  const auto choose = [&](std::vector<std::string> cells, std::vector<std::string> theirs,
                          std::vector<std::string> targets) {
    if (with_theirs) cells.insert(cells.end(), theirs.begin(), theirs.end());
    if (with_targets) cells.insert(cells.end(), targets.begin(), targets.end());
    return cells;
  };
  std::vector<std::vector<std::string>> lines;
  lines.push_back(choose({"row", "unit", "ours"}, {"theirs", "ratio", "from", "to"},
                         {"at least", "aim", "reached"}));
  for (const Row& row : rows) {
    lines.push_back(choose(
        {row.name, row.unit, ShortOrDash(row.ours)},
        {ShortOrDash(row.theirs), ShortOrDash(row.ratio), ShortOrDash(row.ratio_min),
         ShortOrDash(row.ratio_max)},
        {ShortOrDash(row.at_least), ShortOrDash(row.aim), row.Verdict()}));
  }
  return Align(lines);
}

std::string DetailTable(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> lines;
  for (const Row& row : rows) {
    for (const auto& [side, figures] : row.details.items()) {
      std::string text;
      const auto add = [&text](const std::string& name, const Json& value) {
        if (!text.empty()) text += ", ";
        text += name + " " +
                (value.is_number() ? Short(value.get<double>())
                 : value.is_string() ? value.get<std::string>() : value.dump());
      };
      if (figures.is_object()) {
        for (const auto& [name, value] : figures.items()) add(name, value);
      } else {
        add(side, figures);
      }
      lines.push_back({row.name, figures.is_object() ? side : "", text});
    }
  }
  std::string text;
  std::vector<size_t> widths(2);
  for (const auto& line : lines) {
    for (size_t i = 0; i < 2; ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  for (const auto& line : lines) {
    text += line[0] + std::string(widths[0] - line[0].size() + 2, ' ') + line[1] +
            std::string(widths[1] - line[1].size() + 2, ' ') + line[2] + '\n';
  }
  return text;
}

void WriteText(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::cout << text << std::flush;
    return;
  }
  std::ofstream file(path);
  file << text;
  file.flush();
  if (!file) throw Failure("cannot write " + path);
}

}  // namespace moonpool::bench
