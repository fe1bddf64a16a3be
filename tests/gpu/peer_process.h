// A moonpool-gpu-peer that does not outlive the test.
//
// Threads: one at a time.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "tests/gpu/peer_messages.h"

namespace moonpool::gpu {

class PeerProcess {
 public:
  // `visible`: CUDA_VISIBLE_DEVICES there; empty: as here.
  explicit PeerProcess(bool cuda, const std::string& visible = "") {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    const std::string path = Path();
    std::vector<std::string> variables;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string text = *variable;
      if (visible.empty() || !text.starts_with("CUDA_VISIBLE_DEVICES=")) variables.push_back(text);
    }
    if (!visible.empty()) variables.push_back("CUDA_VISIBLE_DEVICES=" + visible);
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    const char* const arguments[] = {path.c_str(), cuda ? "cuda" : "double", nullptr};
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (ends[1] == kPeerSocket) {
        // dup2() would leave the flag that closes it.
        const int other = dup(ends[1]);
        dup2(other, kPeerSocket);
      } else {
        dup2(ends[1], kPeerSocket);
      }
      execve(path.c_str(), const_cast<char* const*>(arguments), environment.data());
      _exit(127);
    }
    close(ends[1]);
    socket_.Reset(ends[0]);
    const timeval patience{60, 0};
    setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    UniqueFd none;
    if (!ReceivePeer(socket_.get(), &ready_, &none)) {
      ready_.ok = 0;
      std::snprintf(ready_.text, sizeof(ready_.text), "%s did not start", path.c_str());
    }
  }
  ~PeerProcess() { Kill(); }
  PeerProcess(const PeerProcess&) = delete;

  bool ready() const { return ready_.ok != 0; }
  std::string why() const { return ready_.text; }

  // The answer; its file descriptor, if any, goes to `received`.
  PeerMessage Ask(PeerMessage message, int fd = -1, UniqueFd* received = nullptr) {
    UniqueFd unused;
    message.ok = 0;
    if (!SendPeer(socket_.get(), message, fd) ||
        !ReceivePeer(socket_.get(), &message, received != nullptr ? received : &unused)) {
      message.ok = 0;
      std::snprintf(message.text, sizeof(message.text), "the other process has ended");
    }
    return message;
  }
  PeerMessage Ask(PeerMessage::Command command, uint64_t seed = 0) {
    PeerMessage message;
    message.command = command;
    message.seed = seed;
    return Ask(message);
  }

  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  // Beside the test.
  static std::string Path() {
    char self[PATH_MAX] = {};
    const ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    const std::string path(self, length > 0 ? static_cast<size_t>(length) : 0);
    return path.substr(0, path.rfind('/') + 1) + "moonpool-gpu-peer";
  }

  pid_t pid_ = -1;
  UniqueFd socket_;
  PeerMessage ready_;
};

}  // namespace moonpool::gpu
