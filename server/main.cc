// moonpool-server [configuration-file] [--key value ...]
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "protocol/unique_fd.h"
#include "server/config.h"
#include "server/log.h"
#include "server/server.h"
#include "server/version.h"

namespace {

using moonpool::Status;
using moonpool::server::Config;
using moonpool::server::Key;
using moonpool::server::Log;
using moonpool::server::LogLevel;

int Complain(const std::string& what) {
  std::fprintf(stderr, "moonpool-server: %s\n", what.c_str());
  return 1;
}

// Flags first win over the file: the file is loaded, then the flags are applied.
Status Configure(int argc, char** argv, Config& config) {
  std::vector<std::pair<std::string, std::string>> flags;
  std::string file;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      if (!file.empty()) {
        return moonpool::Fail(moonpool::ErrorCode::kInvalidArgument,
                              "two configuration files: " + file + " and " + word);
      }
      file = word;
      continue;
    }
    std::string value;
    while (i + 1 < argc && std::strncmp(argv[i + 1], "--", 2) != 0) {
      if (!value.empty()) value += ' ';
      value += argv[++i];
      // Only lists take several words.
      const auto* setting = Config::Find(word.substr(2));
      if (setting == nullptr || setting->type != moonpool::server::SettingType::kText) break;
    }
    flags.emplace_back(word.substr(2), value);
  }
  if (!file.empty()) {
    if (Status loaded = config.LoadFile(file); !loaded) return loaded;
  }
  for (const auto& [key, value] : flags) {
    if (Status set = config.SetAtStart(key, value); !set) return set;
  }
  return {};
}

// Goes into the background.  The calling process lives on, as the parent, until the child says that
// it serves (then it exits with 0) or is gone (then with the child's status).  Returns the child's
// end of the pipe to say so.
moonpool::UniqueFd Detach() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  moonpool::UniqueFd told(ends[0]), tell(ends[1]);
  const pid_t child = fork();
  if (child < 0) return {};
  if (child == 0) {
    setsid();
    return tell;
  }
  tell.Reset();
  char byte;
  if (read(told.get(), &byte, 1) == 1) _exit(0);
  int status = 0;
  waitpid(child, &status, 0);
  _exit(WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1);
}

// Until here complaints reached the terminal.
void TellReady(moonpool::UniqueFd tell) {
  if (const moonpool::UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC)); null) {
    for (int fd = 0; fd <= 2; ++fd) dup2(null.get(), fd);
  }
  [[maybe_unused]] const ssize_t n = write(tell.get(), "r", 1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2) {
    const std::string word = argv[1];
    if (word == "--help" || word == "-h") {
      std::printf(
          "Usage: moonpool-server [configuration-file] [--key value ...]\n"
          "       moonpool-server --sample-config | --version | --help\n"
          "\nKeys, in the file as `key value` and here as --key value:\n%s",
          Config::Help().c_str());
      return 0;
    }
    if (word == "--version" || word == "-v") {
      std::printf("moonpool-server %s (Redis %s commands)\n",
                  std::string(moonpool::server::kVersion).c_str(),
                  std::string(moonpool::server::kRedisVersion).c_str());
      return 0;
    }
    if (word == "--sample-config") {
      std::fputs(Config::Sample().c_str(), stdout);
      return 0;
    }
  }
  Config config;
  if (Status configured = Configure(argc, argv, config); !configured) {
    return Complain(configured.error().message);
  }
  // Before any thread starts, so that all of them inherit the mask and one thread gets them all.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGHUP, SIG_IGN);

  if (chdir(config.text(Key::kDir).c_str()) != 0) {
    return Complain(moonpool::FailErrno("dir " + config.text(Key::kDir)).value().message);
  }
  moonpool::UniqueFd tell_ready;
  if (config.boolean(Key::kDaemonize)) {
    tell_ready = Detach();
    if (!tell_ready) return Complain(moonpool::FailErrno("daemonize").value().message);
  }
  if (Status opened = moonpool::server::OpenLog(
          config.text(Key::kLogFile), static_cast<LogLevel>(config.number(Key::kLogLevel)));
      !opened) {
    return Complain(opened.error().message);
  }
  moonpool::server::Server server(config);
  if (Status started = server.Start(); !started) {
    Log(LogLevel::kWarning, "cannot start: {}", started.error().message);
    return Complain(started.error().message);
  }
  const std::string pid_file = config.text(Key::kPidFile);
  if (!pid_file.empty()) {
    if (std::FILE* file = std::fopen(pid_file.c_str(), "we")) {
      std::fprintf(file, "%d\n", getpid());
      std::fclose(file);
    } else {
      Log(LogLevel::kWarning, "cannot write the pidfile {}", pid_file);
    }
  }
  Log(LogLevel::kNotice, "Moonpool {} is ready to accept connections on port {}, pid {}",
      moonpool::server::kVersion, server.port(), getpid());
  if (tell_ready) TellReady(std::move(tell_ready));

  std::thread signal_thread([&] {
    int signal = 0;
    while (sigwait(&signals, &signal) != 0) {
    }
    if (signal != SIGINT && signal != SIGTERM) return;
    Log(LogLevel::kNotice, "received {}, shutting down",
        signal == SIGTERM ? "SIGTERM" : "SIGINT");
    server.RequestShutdown();
  });
  server.WaitForShutdown();
  // SHUTDOWN came over a connection: free the thread from its wait.
  pthread_kill(signal_thread.native_handle(), SIGTERM);
  signal_thread.join();
  const auto bye = [&pid_file] {
    if (!pid_file.empty()) unlink(pid_file.c_str());
    Log(LogLevel::kNotice, "bye");
  };
  // No thread can be called back from a driver.
  server.set_on_silent_gpu([&bye] {
    bye();
    std::_Exit(0);
  });
  server.Stop();
  bye();
  return 0;
}
