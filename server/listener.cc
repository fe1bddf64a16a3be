#include "server/listener.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "server/log.h"

namespace moonpool::server {

namespace {

std::string AddressText(const sockaddr_storage& address, bool* loopback) {
  char text[INET6_ADDRSTRLEN] = "?";
  *loopback = false;
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    *loopback = (ntohl(v4.sin_addr.s_addr) >> 24) == 127;
    return std::string(text) + ":" + std::to_string(ntohs(v4.sin_port));
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
  *loopback = IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr) ||
              (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) && v6.sin6_addr.s6_addr[12] == 127);
  return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6.sin6_port));
}

}  // namespace

Listener::~Listener() { Stop(); }

Result<int> Listener::AddTcp(const std::string& address, int port, int backlog) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  const char* host = address.c_str();
  if (address == "*") {
    hints.ai_family = AF_INET;
    host = "0.0.0.0";
  } else if (address == "::*") {
    hints.ai_family = AF_INET6;
    host = "::";
  }
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    return Fail(ErrorCode::kInvalidArgument,
                "bind " + address + ": " + std::string(gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> info(found, freeaddrinfo);
  UniqueFd fd(socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const std::string what = "listening on " + address + " port " + std::to_string(port);
  if (!fd) return FailErrno(what);
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (info->ai_family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
  }
  if (bind(fd.get(), info->ai_addr, info->ai_addrlen) != 0 || listen(fd.get(), backlog) != 0) {
    return FailErrno(what);
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof(bound);
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  const int actual = ntohs(bound.ss_family == AF_INET
                               ? reinterpret_cast<sockaddr_in&>(bound).sin_port
                               : reinterpret_cast<sockaddr_in6&>(bound).sin6_port);
  sockets_.push_back({std::move(fd), ""});
  return actual;
}

Status Listener::AddUnix(const std::string& path, unsigned permissions, int backlog) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Fail(ErrorCode::kInvalidArgument,
                "unixsocket: the path is longer than " +
                    std::to_string(sizeof(address.sun_path) - 1) + " bytes: " + path);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  {
    UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(probe.get(), generic, sizeof(address)) == 0) {
      return Fail(ErrorCode::kInvalidArgument,
                  "unixsocket: another server listens on " + path);
    }
    // Its server is dead; what is not a socket is somebody's file.
    struct stat file{};
    if (errno == ECONNREFUSED && lstat(path.c_str(), &file) == 0 && S_ISSOCK(file.st_mode)) {
      unlink(path.c_str());
    }
  }
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd || bind(fd.get(), generic, sizeof(address)) != 0 || listen(fd.get(), backlog) != 0) {
    return FailErrno("listening on the Unix socket " + path);
  }
  if (permissions != 0) chmod(path.c_str(), static_cast<mode_t>(permissions));
  sockets_.push_back({std::move(fd), path});
  return {};
}

void Listener::Start() {
  stop_fd_.Reset(eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "listener");
}

void Listener::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(stop_fd_.get(), &one, sizeof(one));
    thread_.join();
  }
  // Who connects from now on is refused, instead of waiting in a backlog nobody looks at.
  for (const Socket& socket : sockets_) {
    if (!socket.unix_path.empty()) unlink(socket.unix_path.c_str());
  }
  sockets_.clear();
}

void Listener::Run() {
  std::vector<pollfd> polls;
  for (const Socket& socket : sockets_) polls.push_back({socket.fd.get(), POLLIN, 0});
  polls.push_back({stop_fd_.get(), POLLIN, 0});
  for (;;) {
    if (poll(polls.data(), polls.size(), -1) < 0) continue;
    if (polls.back().revents != 0) return;
    for (size_t i = 0; i < sockets_.size(); ++i) {
      if (polls[i].revents != 0) AcceptAll(sockets_[i]);
    }
  }
}

void Listener::AcceptAll(const Socket& socket) {
  for (;;) {
    sockaddr_storage peer{};
    socklen_t size = sizeof(peer);
    UniqueFd fd(accept4(socket.fd.get(), reinterpret_cast<sockaddr*>(&peer), &size,
                        SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        // The connection stays in the backlog; do not spin on it.
        Log(LogLevel::kWarning, "accepting a connection: {}; raise the open files limit",
            std::strerror(errno));
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
      return;
    }
    ConnectionOrigin origin;
    if (!socket.unix_path.empty()) {
      origin.address = socket.unix_path + ":0";
      origin.local_address = origin.address;
      origin.unix_socket = true;
      origin.loopback = true;
    } else {
      origin.address = AddressText(peer, &origin.loopback);
      sockaddr_storage local{};
      size = sizeof(local);
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&local), &size);
      bool ignored;
      origin.local_address = AddressText(local, &ignored);
    }
    on_accept_(std::move(fd), std::move(origin));
  }
}

}  // namespace moonpool::server
