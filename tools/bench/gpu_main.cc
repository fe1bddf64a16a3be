// moonpool-gpu-bench: the mode `gpu` of moonpool-bench alone, for machines with a GPU and without
// the server's libraries (tools/gpu-check builds it).
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "tools/bench/gpu.h"

namespace {

constexpr char kHelp[] =
    "Measures copies to, from and within GPU memory beside the raw CUDA calls.\n\n"
    "  moonpool-gpu-bench [--quick] [--json FILE|-] [--rows EXPRESSION] [--reps N]\n"
    "                     [--device UUID] [--list]\n";

}  // namespace

int main(int argc, char** argv) {
  moonpool::bench::GpuModeOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    options.common.command_line += (i > 1 ? " " : "") + word;
    const bool has_value = i + 1 < argc;
    if (word == "--quick") {
      options.common.quick = true;
    } else if (word == "--list") {
      options.list = true;
    } else if (word == "--json" && has_value) {
      options.common.json = argv[++i];
    } else if (word == "--rows" && has_value) {
      options.rows = argv[++i];
    } else if (word == "--device" && has_value) {
      options.device = argv[++i];
    } else if (word == "--reps" && has_value) {
      options.reps = std::atoi(argv[++i]);
    } else {
      std::fputs(kHelp, word == "--help" ? stdout : stderr);
      return word == "--help" ? 0 : 2;
    }
  }
  try {
    return moonpool::bench::Gpu(options);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "moonpool-gpu-bench: %s\n", failure.what());
    return 1;
  }
}
