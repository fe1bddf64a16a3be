#include "tools/bench/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "tools/bench/failure.h"
#include "tools/bench/process.h"

namespace moonpool::bench {

namespace {

// For gnuplot's single- and double-quoted strings alike, without its markup.
std::string Plain(std::string text) {
  std::erase_if(text, [](char c) { return c == '"' || c == '\'' || c == '\\' || c == '`'; });
  return text;
}

}  // namespace

void PlotComparison(const std::string& path, const std::vector<Row>& rows,
                    const std::string& subtitle) {
  const std::string gnuplot = FindInPath("gnuplot");
  if (gnuplot.empty()) {
    throw Failure("--plot needs gnuplot: 'apt-get install gnuplot-nox' or 'dnf install gnuplot'");
  }
  // A row's place on the axis: 1 is "at least"; twice as good is 2, whichever way is better.
  struct Bar {
    std::string name;
    double reached, low, high, aim;
  };
  std::vector<Bar> bars;
  for (const Row& row : rows) {
    const std::optional<double> figure = row.JudgedFigure();
    if (!figure || *figure <= 0 || !row.at_least || !row.aim) continue;
    const auto place = [&](double value) {
      const double ratio = row.better == Row::Better::kHigher ? value / *row.at_least
                                                              : *row.at_least / value;
      return std::clamp(ratio, 0.02, 500.0);
    };
    const double a = place(row.ratio_min.value_or(*figure));
    const double b = place(row.ratio_max.value_or(*figure));
    bars.push_back({Plain(row.name) + "  (" + Short(*figure) + ")", place(*figure),
                    std::min(a, b), std::max(a, b), place(*row.aim)});
  }
  if (bars.empty()) throw Failure("--plot: none of the rows has a target to draw");
  std::ostringstream script;
  script << "set terminal pngcairo noenhanced font 'Sans,11' size 1250,"
         << 130 + 26 * bars.size() << "\n"
         << "set output \"" << Plain(path) << "\"\n"
         << "set title \"Moonpool: how far each row is, 1 = the least asked for\\n"
         << Plain(subtitle) << "\"\n"
         << "set logscale x 2\nset grid x\nset key outside bottom center horizontal\n"
         << "set yrange [" << bars.size() << ":-1]\nset style fill solid 0.8\n"
         << "set boxwidth 0.6\nset ytics nomirror\n"
         << "$rows << EOD\n";
  double least = 0.5;
  double most = 2;
  for (size_t i = 0; i < bars.size(); ++i) {
    const Bar& bar = bars[i];
    least = std::min({least, bar.low});
    most = std::max({most, bar.high, bar.aim});
    script << i << " \"" << bar.name << "\" " << bar.reached << " " << bar.low << " " << bar.high
           << " " << bar.aim << "\n";
  }
  script << "EOD\n"
         << "set xrange [" << least * 0.8 << ":" << most * 1.25 << "]\n"
         << "left = " << least * 0.8 << "\n"
         << "plot $rows using (left):1:(left):3:($1-0.3):($1+0.3):ytic(2) with boxxyerror "
         << "lc rgb '#4477aa' title 'reached', "
         << "$rows using 3:1:4:5 with xerrorbars lc rgb '#222222' pt 0 title 'from, to', "
         << "$rows using 6:1 with points pt 2 ps 1.3 lw 2 lc rgb '#cc3311' title 'aim', "
         << "1, $rows using (1):1 with lines lw 2 lc rgb '#228833' title 'at least'\n";
  std::FILE* pipe = popen("gnuplot", "w");
  if (pipe == nullptr) throw Failure("cannot start gnuplot");
  const std::string text = script.str();
  const bool written = std::fwrite(text.data(), 1, text.size(), pipe) == text.size();
  if (pclose(pipe) != 0 || !written) throw Failure("gnuplot failed to draw " + path);
}

}  // namespace moonpool::bench
