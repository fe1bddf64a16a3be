// What fork() must not let a child share with its parent: connections and mappings.
//
// A child that kept the parent's sockets open would hide the parent's death from the server, and
// one that used them would mix two conversations.  So the child closes its copies at once (in a
// pthread_atfork handler), and state made before the fork is left alone there.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <utility>

namespace moonpool::client {

// How often this process's ancestors have forked since the library was first used: state made
// under a lower count belongs to a parent.
uint64_t ForkCount();

// A descriptor of somebody else, open for the life of the process, that forked children close.
void CloseInChildren(int fd);

// A descriptor that a forked child closes and forgets.  Threads: as an int.
class ForkSafeFd {
 public:
  ForkSafeFd() = default;
  explicit ForkSafeFd(int fd);
  ForkSafeFd(ForkSafeFd&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), slot_(other.slot_), forks_(other.forks_) {}
  ForkSafeFd& operator=(ForkSafeFd&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
      slot_ = other.slot_;
      forks_ = other.forks_;
    }
    return *this;
  }
  ~ForkSafeFd() { Close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
  int slot_ = -1;  // in the table of descriptors to close in a child
  uint64_t forks_ = 0;
};

}  // namespace moonpool::client
