// Writes one value of 8 MiB, reads it back three ways, and says how the bytes moved.
//
//   moonpool-example [moonpool://127.0.0.1:6379]
#include <moonpool/client.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace mp = moonpool::client;

static int Complain(const char* what, const mp::Status& status) {
  std::fprintf(stderr, "%s: %s: %s (%s)\n", what, std::string(mp::CodeName(status.code)).c_str(),
               status.message.c_str(), std::string(mp::CodeCure(status.code)).c_str());
  return 1;
}

int main(int argc, char** argv) {
  std::unique_ptr<mp::Client> client;
  const std::string url = argc > 1 ? argv[1] : "moonpool://127.0.0.1:6379";
  if (mp::Status status = mp::Client::Connect(url, {}, &client); !status.ok()) {
    return Complain("connect", status);
  }

  const std::string block(8 << 20, 'k');
  if (mp::Status status = client->Set("example:block", block); !status.ok()) {
    return Complain("set", status);
  }

  // By value.
  std::string value;
  if (mp::Status status = client->Get("example:block", &value); !status.ok()) {
    return Complain("get", status);
  }

  // Into memory of our own, in two pieces, a result per key.
  std::vector<char> first(1 << 20), second(7 << 20);
  const std::string_view keys[] = {"example:block", "example:nothing"};
  const std::vector<mp::Buffer> pieces[] = {
      {{first.data(), first.size()}, {second.data(), second.size()}},
      {{first.data(), first.size()}}};
  for (const mp::KeyResult& result : client->BatchGetIntoMulti(keys, pieces)) {
    std::printf("%-4s %8llu bytes in %6.1f us over %s\n",
                std::string(mp::CodeName(result.code)).c_str(),
                static_cast<unsigned long long>(result.bytes),
                static_cast<double>(result.elapsed_ns) / 1000,
                result.transport == mp::Transport::kShm    ? "shm"
                : result.transport == mp::Transport::kRdma ? "rdma"
                : result.transport == mp::Transport::kTcp  ? "tcp"
                : result.transport == mp::Transport::kCuda ? "cuda"
                                                           : "-");
  }

  // Without a copy.
  mp::View view;
  if (mp::Status status = client->GetView("example:block", &view); !status.ok()) {
    return Complain("view", status);
  }
  const bool same = view.bytes() == block && value == block;
  std::printf("view of %zu bytes, %s, %s\n", view.size(), view.is_copy() ? "copied" : "in place",
              same && view.still_valid() ? "verified" : "WRONG");
  client->Del("example:block");
  return same ? 0 : 1;
}
