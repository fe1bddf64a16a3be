// What a run ran on.
#pragma once

#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

namespace moonpool::bench {

struct Machine {
  std::string cpu;
  int cores = 0;
  std::string kernel;
  std::string system;  // the distribution
  uint64_t memory_bytes = 0;
  uint64_t l3_bytes = 0;  // of the largest cache; 32 MiB when the system does not say
  std::string congestion_control;
  std::string compiler;
  std::string date;  // ISO 8601, UTC
};

Machine ThisMachine();
nlohmann::ordered_json ToJson(const Machine& machine);
// "CPU, 2 cores, Linux 6.1": one line for people.
std::string Describe(const Machine& machine);

}  // namespace moonpool::bench
