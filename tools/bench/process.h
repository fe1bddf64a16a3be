// A child process that does not outlive this one.
//
// Threads: start and stop it from one thread that lives as long as the child is wanted (the
// kernel ties the end of a child to the thread that made it).  Its output goes to an unnamed
// file, shown when something goes wrong.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "protocol/unique_fd.h"

namespace moonpool::bench {

class ChildProcess {
 public:
  // `command[0]` is a path or a name to be found in PATH.  Throws Failure.
  explicit ChildProcess(const std::vector<std::string>& command);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running();
  // SIGTERM, and SIGKILL when that was not enough.
  void Stop();
  // What it has printed so far.
  std::string Output() const;

 private:
  pid_t pid_ = -1;
  UniqueFd output_;
};

// The full path of an executable, or an empty string.
std::string FindInPath(const std::string& name);
// A TCP port of 127.0.0.1 that nobody listens on now.
int FreePort();
// Processor time that all threads of a process have taken, in seconds; resolution: nanoseconds.
double ProcessorSeconds(pid_t pid);

}  // namespace moonpool::bench
