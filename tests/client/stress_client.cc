// A client process for crash tests: writes, reads and holds stamped values until it is told to
// stop (SIGTERM), or killed.
//
//   moonpool-stress-client URL write|read|hold|mixed SEED [KEYS]
//
// Ends with one line, "good=N missed=N failed=N wrong=N"; the exit status is 1 when a read
// returned bytes that are not one whole version of their key.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "client/moonpool/client.h"
#include "tests/client/stamped_block.h"

namespace {

volatile std::sig_atomic_t stopped = 0;

}  // namespace

int main(int argc, char** argv) {
  namespace mp = moonpool::client;
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s URL write|read|hold|mixed SEED [KEYS]\n", argv[0]);
    return 2;
  }
  const std::string mode = argv[2];
  std::mt19937 random(static_cast<uint32_t>(std::strtoul(argv[3], nullptr, 10)));
  const size_t keys = argc > 4 ? std::strtoul(argv[4], nullptr, 10) : 100;
  std::signal(SIGTERM, [](int) { stopped = 1; });

  std::unique_ptr<mp::Client> client;
  uint64_t good = 0, missed = 0, failed = 0, wrong = 0, version = 0;
  std::vector<char> block(800000);
  std::vector<mp::View> views;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // somebody reads along
  std::printf("running\n");
  while (!stopped) {
    if (client == nullptr && !mp::Client::Connect(argv[1], {}, &client).ok()) {
      ++failed;  // the server may be between two lives
      continue;
    }
    const uint64_t key = random() % keys;
    const std::string name = "stress:" + std::to_string(key);
    const bool write = mode == "write" || (mode == "mixed" && random() % 2 == 0);
    const auto check = [&](const char* data, size_t bytes) {
      const std::string what = moonpool::CheckStamped(data, bytes, key);
      if (what.empty()) {
        ++good;
      } else if (++wrong <= 5) {
        std::printf("wrong bytes in %s: %s\n", name.c_str(), what.c_str());
      }
    };
    mp::Status status;
    if (write) {
      const size_t bytes = random() % 3 == 0 ? 24 + random() % 100 * 8 : 66000 + random() % 90000 * 8;
      moonpool::FillStamped(block.data(), bytes, {key, ++version});
      status = client->Set(name, {block.data(), bytes});
      if (status.ok()) ++good;
    } else if (mode == "hold") {
      mp::View view;
      status = client->GetView(name, &view);
      if (status.ok()) {
        const uint64_t wrong_before = wrong;
        check(view.data(), view.size());
        // Only what is still valid afterwards is proven.
        if (!view.still_valid()) {
          wrong = wrong_before;
          ++failed;
        }
        views.push_back(std::move(view));
        if (views.size() > 16) views.erase(views.begin());
      }
    } else {
      const std::string_view view = name;
      const mp::Buffer buffer{block.data(), block.size()};
      const auto result = client->BatchGetInto(std::span(&view, 1), std::span(&buffer, 1))[0];
      status = {result.code, result.message};
      if (status.ok()) check(block.data(), result.bytes);
    }
    if (status.code == mp::Code::kMiss) {
      ++missed;
    } else if (!status.ok() && ++failed <= 3) {
      std::printf("failed: %s: %s\n", std::string(mp::CodeName(status.code)).c_str(),
                  status.message.c_str());
    }
  }
  std::printf("good=%llu missed=%llu failed=%llu wrong=%llu\n",
              static_cast<unsigned long long>(good), static_cast<unsigned long long>(missed),
              static_cast<unsigned long long>(failed), static_cast<unsigned long long>(wrong));
  return wrong > 0 ? 1 : 0;
}
