#include "tools/bench/machine.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>
#include <thread>

namespace moonpool::bench {

namespace {

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The value of the first line of `path` that begins with `name`.
std::string Field(const std::string& path, const std::string& name, char separator) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name, 0) != 0) continue;
    const size_t at = line.find(separator);
    if (at == std::string::npos) continue;
    const size_t begin = line.find_first_not_of(" \t\"", at + 1);
    const size_t end = line.find_last_not_of(" \t\"");
    if (begin != std::string::npos) return line.substr(begin, end - begin + 1);
  }
  return "";
}

// "32768K", "1M" -> bytes.
uint64_t ParseSize(const std::string& text) {
  char* unit = nullptr;
  uint64_t bytes = std::strtoull(text.c_str(), &unit, 10);
  if (*unit == 'K') bytes <<= 10;
  if (*unit == 'M') bytes <<= 20;
  return bytes;
}

uint64_t LargestCache() {
  uint64_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    largest = std::max(largest, ParseSize(FirstLine(folder + "size")));
  }
  return largest != 0 ? largest : 32ull << 20;
}

}  // namespace

Machine ThisMachine() {
  Machine machine;
  machine.cpu = Field("/proc/cpuinfo", "model name", ':');
  machine.cores = static_cast<int>(std::thread::hardware_concurrency());
  utsname names{};
  uname(&names);
  machine.kernel = std::string(names.sysname) + " " + names.release + " " + names.machine;
  machine.system = Field("/etc/os-release", "PRETTY_NAME", '=');
  machine.memory_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  machine.l3_bytes = LargestCache();
  machine.congestion_control = FirstLine("/proc/sys/net/ipv4/tcp_congestion_control");
  machine.compiler = __VERSION__;
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  machine.date = text;
  return machine;
}

nlohmann::ordered_json ToJson(const Machine& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"kernel", machine.kernel},
          {"system", machine.system},
          {"memory_bytes", machine.memory_bytes},
          {"l3_bytes", machine.l3_bytes},
          {"tcp_congestion_control", machine.congestion_control},
          {"compiler", machine.compiler},
          {"date", machine.date}};
}

std::string Describe(const Machine& machine) {
  return machine.cpu + ", " + std::to_string(machine.cores) + " cores, " +
         std::to_string(machine.memory_bytes >> 30) + " GiB, " + machine.kernel;
}

}  // namespace moonpool::bench
