#include "tools/bench/options.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"

namespace moonpool::bench {

void Print(const CommonOptions& options, const std::string& text) {
  std::FILE* out = options.json == "-" ? stderr : stdout;
  std::fwrite(text.data(), 1, text.size(), out);
  std::fflush(out);
}

void Progress(const std::string& what) {
  static const Stopwatch since_start;
  std::fprintf(stderr, "[%6.1f s] %s\n", since_start.seconds(), what.c_str());
}

void Finish(const CommonOptions& options, const Report& report) {
  if (options.json.empty()) return;
  WriteText(options.json, ToJson(report).dump(2) + "\n");
  if (options.json != "-") Progress("wrote " + options.json);
}

Report NewReport(const CommonOptions& options, const std::string& mode) {
  Report report;
  report.mode = mode;
  report.command_line = options.command_line;
  report.machine = ThisMachine();
  report.settings["quick"] = options.quick;
  return report;
}

uint64_t ParseBytes(const std::string& text) {
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  std::string unit = end;
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (!unit.empty() && unit.back() == 'b') unit.pop_back();
  uint64_t factor = 0;
  if (unit.empty()) factor = 1;
  if (unit == "k") factor = 1ull << 10;
  if (unit == "m") factor = 1ull << 20;
  if (unit == "g") factor = 1ull << 30;
  if (unit == "t") factor = 1ull << 40;
  if (end == text.c_str() || factor == 0 || number <= 0) {
    throw Failure("'" + text + "' is no size (such as 512kb, 1mb, 4gb)");
  }
  return static_cast<uint64_t>(number * static_cast<double>(factor));
}

}  // namespace moonpool::bench
