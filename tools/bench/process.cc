#include "tools/bench/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

constexpr double kStopSeconds = 15;

std::string Errno() { return std::strerror(errno); }

}  // namespace

std::string FindInPath(const std::string& name) {
  if (name.find('/') != std::string::npos) return access(name.c_str(), X_OK) == 0 ? name : "";
  const char* path = std::getenv("PATH");
  std::istringstream folders(path != nullptr ? path : "/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string candidate = folder + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

ChildProcess::ChildProcess(const std::vector<std::string>& command) {
  const std::string path = FindInPath(command[0]);
  if (path.empty()) throw Failure("cannot find the program " + command[0]);
  output_.Reset(memfd_create("output", MFD_CLOEXEC));
  if (!output_) throw Failure("memfd_create: " + Errno());
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) throw Failure("fork: " + Errno());
  if (pid_ == 0) {
    // Between fork and exec: only calls that are safe there.
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(output_.get(), STDOUT_FILENO);
    dup2(output_.get(), STDERR_FILENO);
    execv(path.c_str(), arguments.data());
    _exit(127);
  }
}

ChildProcess::~ChildProcess() { Stop(); }

bool ChildProcess::running() {
  if (pid_ <= 0) return false;
  if (waitpid(pid_, nullptr, WNOHANG) == 0) return true;
  pid_ = -1;
  return false;
}

void ChildProcess::Stop() {
  if (!running()) return;
  kill(pid_, SIGTERM);
  const Stopwatch waited;
  while (running()) {
    if (waited.seconds() > kStopSeconds) kill(pid_, SIGKILL);
    usleep(2000);
  }
}

std::string ChildProcess::Output() const {
  std::string text(1 << 16, '\0');
  const ssize_t n = pread(output_.get(), text.data(), text.size(), 0);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return text;
}

int FreePort() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw Failure("no free port: " + Errno());
  }
  return ntohs(address.sin_port);
}

double ProcessorSeconds(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/task";
  DIR* tasks = opendir(folder.c_str());
  if (tasks == nullptr) throw Failure("cannot read " + folder + ": " + Errno());
  uint64_t total_ns = 0;
  while (const dirent* task = readdir(tasks)) {
    if (task->d_name[0] == '.') continue;
    const std::string path = folder + "/" + task->d_name + "/schedstat";
    std::FILE* file = std::fopen(path.c_str(), "re");
    if (file == nullptr) continue;  // the thread has just ended
    unsigned long long ns = 0;
    if (std::fscanf(file, "%llu", &ns) == 1) total_ns += ns;
    std::fclose(file);
  }
  closedir(tasks);
  return Seconds(total_ns);
}

}  // namespace moonpool::bench
