// What every mode takes.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/report.h"

namespace moonpool::bench {

struct CommonOptions {
  std::string json;    // where the JSON goes; "-": standard output; empty: nowhere
  bool quick = false;  // under 60 s
  std::string server;  // path of moonpool-server; empty: look for it
  std::string url;     // a running server instead of one of our own
  std::string command_line;
};

// Prints to where people look: standard output, or standard error when that carries the JSON.
void Print(const CommonOptions& options, const std::string& text);
// "[ 12.3 s] what" on standard error.
void Progress(const std::string& what);
// Prints the report's JSON where --json says.
void Finish(const CommonOptions& options, const Report& report);
Report NewReport(const CommonOptions& options, const std::string& mode);

// "4gb", "256k", "1024" -> bytes (k, kb, m, mb, g, gb: powers of 1024, as in the server's
// configuration).  Throws Failure.
uint64_t ParseBytes(const std::string& text);

}  // namespace moonpool::bench
