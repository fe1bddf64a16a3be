// A moonpool-rdma-peer beside this executable: to be killed.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "protocol/status.h"

namespace moonpool::rdma::test {

class PeerProcess {
 public:
  explicit PeerProcess(std::vector<std::string> arguments) {
    int ends[2];
    MOONPOOL_CHECK(pipe(ends) == 0);
    const std::string program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "moonpool-rdma-peer";
    std::vector<char*> words = {const_cast<char*>(program.c_str())};
    for (std::string& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    process_ = fork();
    MOONPOOL_CHECK(process_ >= 0);
    if (process_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      close(ends[0]);
      close(ends[1]);
      execv(program.c_str(), words.data());
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  ~PeerProcess() {
    Kill();
    std::fclose(output_);
  }
  PeerProcess(const PeerProcess&) = delete;

  // The next line of its output; empty at the end.
  std::string Line() {
    char line[512];
    if (std::fgets(line, sizeof(line), output_) == nullptr) return {};
    std::string text = line;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }
  void Kill() {
    if (process_ <= 0) return;
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
    process_ = -1;
  }

 private:
  pid_t process_ = -1;
  std::FILE* output_ = nullptr;
};

}  // namespace moonpool::rdma::test
